"""Stands in for the SDK of Kubeflow Pipelines: a client whose questions are answered as KFP_ANSWERS says, one word for each: a run's
status, or `error` for a network that fails. The last one is repeated."""

import os
from types import SimpleNamespace

_answers = os.environ["KFP_ANSWERS"].split(",")


class Client:
    def __init__(self, host=None, namespace=None):
        pass

    def create_experiment(self, name):
        return SimpleNamespace(id="experiment")

    def run_pipeline(self, **kwargs):
        return SimpleNamespace(id="run")

    def get_run(self, run_id):
        answer = _answers.pop(0) if len(_answers) > 1 else _answers[0]
        if answer == "error":
            raise ConnectionResetError("Connection reset by peer")
        metrics = [SimpleNamespace(name="accuracy", number_value=0.93), SimpleNamespace(name="loss", number_value=0.2)]
        return SimpleNamespace(run=SimpleNamespace(status=answer, metrics=metrics))

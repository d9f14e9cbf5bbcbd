"""The smoke test of an installation: trains a model, logs it, registers it, and reads back what was stored.

    MLFLOW_TRACKING_URI=http://localhost:5000 python3 train.py [EXPERIMENT]

Needs mlflow and scikit-learn. Everything goes through the server: this machine needs no key of the database or the object store.
The last line is `ok` with the run and the model's version; what is not as it was logged ends it with an error.
"""

import os
import sys

# Large artifacts would otherwise be fetched from the object store itself, which this machine need not reach.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")

import mlflow  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

MODEL = "smoke-test"
PARAMETERS = {"C": 0.5, "max_iter": 200}


def main():
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        sys.exit("MLFLOW_TRACKING_URI is not set; http://localhost:5000 after kubectl port-forward -n mlflow service/mlflow 5000")
    mlflow.set_experiment(sys.argv[1] if len(sys.argv) > 1 else "smoke-test")
    features, classes = load_iris(return_X_y=True)
    model = LogisticRegression(**PARAMETERS).fit(features, classes)
    with mlflow.start_run() as run:
        mlflow.log_params(PARAMETERS)
        for step, score in enumerate([0.5, 0.75, model.score(features, classes)]):
            mlflow.log_metric("score", score, step=step)
        mlflow.log_text("kept", "notes/note.txt")
        logged = mlflow.sklearn.log_model(model, name="model", input_example=features[:2])
    version = mlflow.register_model(logged.model_uri, MODEL)
    check(run.info.run_id, f"models:/{MODEL}/{version.version}", model, features)
    print(f"ok: run {run.info.run_id}, model {MODEL} version {version.version}")


def check(run_id, model_uri, model, features):
    """Everything again, as somebody else would read it."""
    client = mlflow.MlflowClient()
    found = client.get_run(run_id)
    expect(found.info.status, "FINISHED")
    expect(found.data.params, {name: str(value) for name, value in PARAMETERS.items()})
    expect([metric.value for metric in client.get_metric_history(run_id, "score")][:2], [0.5, 0.75])
    expect(mlflow.artifacts.load_text(f"runs:/{run_id}/notes/note.txt"), "kept")
    expect(mlflow.sklearn.load_model(model_uri).predict(features).tolist(), model.predict(features).tolist())


def expect(found, wanted):
    if found != wanted:
        sys.exit(f"not as it was logged: {found!r}, and not {wanted!r}")


if __name__ == "__main__":
    main()

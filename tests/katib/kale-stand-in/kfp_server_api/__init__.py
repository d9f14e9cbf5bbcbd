"""Stands in for the SDK of Kubeflow Pipelines; nothing of this is used here."""

"""Stands in for the client of Kubernetes; nothing of this is used here."""

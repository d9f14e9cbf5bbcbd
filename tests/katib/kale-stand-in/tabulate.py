"""Stands in for tabulate; nothing of this is used here."""

"""Runs in MLflow, after the fact: what differs between them, and making one again."""

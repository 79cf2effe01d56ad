"""Tells MLflow which code, data, command and environment made a run.

Found by MLflow of any environment through PYTHONPATH, so it uses the standard library, MLflow and PyYAML alone, and
runs with Python 3.10 and later.
"""

"""MLflow plugin that records the code, data, command and environment of each run, and moves artifacts faster.

MLflow in any environment finds it through PYTHONPATH, so it uses only the standard library, MLflow and what MLflow
itself needs, and runs with Python 3.10 and later.
"""

"""MLflow plugin that records the code, data, command and environment of each run.

MLflow in any environment finds it through PYTHONPATH, so it uses only the standard library, MLflow and PyYAML, and runs
with Python 3.10 and later.
"""

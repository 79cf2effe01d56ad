"""The model runner: code that runs in the environment that a model recorded.

It imports only the standard library, numpy and MLflow, since a model's environment is certain to have nothing else. So
a new release of the platform needs no new environments.
"""

"""A model's own process: what runs in the environment that the model recorded.

The standard library, numpy and MLflow alone: a model's environment holds nothing else for sure, and a new version of
the platform must not mean a new environment for every model.
"""

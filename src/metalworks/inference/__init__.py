"""The inference server: one registered model behind MLflow's scoring protocol."""

from metalworks.inference.app import create_app, from_environment
from metalworks.inference.settings import Settings

__all__ = ["Settings", "create_app", "from_environment"]

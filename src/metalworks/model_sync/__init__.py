"""`metalworks-model`: fetches registered models to an inference host and follows their aliases.

Runs no code of a model; only the download process imports MLflow.
"""

from metalworks.model_sync.card import ModelCard
from metalworks.model_sync.cli import main

__all__ = ["ModelCard", "main"]

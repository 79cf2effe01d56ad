"""Fetches registered models to an inference host: `metalworks-model`.

Nothing here imports MLflow before it is needed: the inference server reads model cards with this package too.
"""

from metalworks.models.card import ModelCard
from metalworks.models.cli import main

__all__ = ["ModelCard", "main"]

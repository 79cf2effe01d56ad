"""Brings registered models to an inference host and keeps them what their aliases name: `metalworks-model`.

No code of a model runs in it, and MLflow is imported only by the process that downloads.
"""

from metalworks.model_sync.card import ModelCard
from metalworks.model_sync.cli import main

__all__ = ["ModelCard", "main"]

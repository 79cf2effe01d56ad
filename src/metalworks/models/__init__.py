"""Brings registered models to an inference host and keeps them what their aliases name: `metalworks-model`.

No code of a model runs in it, and MLflow is imported only by the process that downloads.
"""

from metalworks.models.card import ModelCard
from metalworks.models.cli import main

__all__ = ["ModelCard", "main"]

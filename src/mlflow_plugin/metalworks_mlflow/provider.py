"""What MLflow asks for the tags of a new run.

Loaded with every `import mlflow`, which a module that fails would break: everything else is imported when it is used.
"""

from __future__ import annotations

import logging
import sys

from mlflow.tracking.context.abstract_context import RunContextProvider

from .deadline import Deadline
from .tagging import CONTEXT

SECONDS = 0.07
"""So long a new run waits, for the imports too."""
_MAKER = ("mlflow.tracking.fluent", "start_run")
"""Where MLflow itself makes runs. It also describes data sets, models and traces with these tags."""


class MetalworksContext(RunContextProvider):
    """Never raises: what cannot be told is missing, and the run goes on."""

    def in_context(self) -> bool:
        """Tell whether a run is about to be made, by MLflow or by another library."""
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__", "").startswith("mlflow.tracking.context"):
            frame = frame.f_back
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        return (module, function) == _MAKER or module.split(".")[0] != "mlflow"

    def tags(self) -> dict[str, str]:
        """Return what can be told at once; a thread adds the rest to the run."""
        try:
            deadline = Deadline(SECONDS)
            from . import context

            return context.tags(deadline)
        except Exception as error:
            logging.getLogger(__name__).debug("The run's context is not known", exc_info=True)
            return {CONTEXT: f"failed: {type(error).__name__}: {error}"[:500].encode(errors="replace").decode()}

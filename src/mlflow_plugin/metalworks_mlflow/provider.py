"""The entry point that MLflow calls for the tags of a new run.

Every `import mlflow` loads this module and would break if it failed, so everything else is imported when it is used.
"""

from __future__ import annotations

import logging
import sys

from mlflow.tracking.context.abstract_context import RunContextProvider

from .deadline import Deadline
from .tagging import CONTEXT

SECONDS = 0.07
"""How long a new run waits at most, including imports."""
_MAKER = ("mlflow.tracking.fluent", "start_run")
"""Where MLflow itself creates runs. It also calls providers for data sets, models and traces."""


class MetalworksContext(RunContextProvider):
    """Adds tags to new runs. Never raises: what cannot be found out is left out, and the run goes on."""

    def in_context(self) -> bool:
        """Tell whether MLflow or another library is about to create a run."""
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__", "").startswith("mlflow.tracking.context"):
            frame = frame.f_back
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        return (module, function) == _MAKER or module.split(".")[0] != "mlflow"

    def tags(self) -> dict[str, str]:
        """Return the tags that are ready at once; a thread adds the rest to the run."""
        try:
            deadline = Deadline(SECONDS)
            from . import context

            return context.tags(deadline)
        except Exception as error:
            logging.getLogger(__name__).debug("The run's context is not known", exc_info=True)
            return {CONTEXT: f"failed: {type(error).__name__}: {error}"[:500].encode(errors="replace").decode()}

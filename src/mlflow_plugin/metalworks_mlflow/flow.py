"""The Prefect flow run that this process belongs to."""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

from . import masking


def tags(project: Path) -> dict[str, str]:
    """Return the flow run's tags, without asking Prefect's server; empty outside a flow run."""
    context = sys.modules.get("prefect.context")
    current = context.FlowRunContext.get() if context else None
    if current is None or current.flow_run is None:
        run = os.environ.get("PREFECT__FLOW_RUN_ID")  # set in programs that a flow starts, too
        return {"prefect.flow_run": run} if run else {}
    run, flow = current.flow_run, current.flow
    parameters = masking.parameters(run.parameters or current.parameters or {})
    found = {"prefect.flow_run": str(run.id), "prefect.parameters": json.dumps(parameters, default=str)}
    if flow is not None:
        found["prefect.flow"] = flow.name
        found["prefect.entrypoint"] = _entrypoint(flow, project)
    if run.deployment_id:
        name = os.environ.get("PREFECT__DEPLOYMENT_NAME")
        found["prefect.deployment"] = f"{flow.name}/{name}" if name and flow is not None else str(run.deployment_id)
    return {name: value for name, value in found.items() if value}


def _entrypoint(flow: Any, project: Path) -> str:
    """Return path:function, with the path relative to the project's folder."""
    function = inspect.unwrap(flow.fn)
    file = Path(function.__code__.co_filename).resolve()
    if not file.is_relative_to(project):
        return ""
    return f"{file.relative_to(project).as_posix()}:{function.__name__}"

"""Prepare code and environment, then become the flow run's process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from metalworks.errors import FlowRunError
from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.code import archive, unpack
from metalworks.flow_run.end import end, watch
from metalworks.flow_run.environment import Tell, environment_of, import_path, require_prefect

ENGINE = ["-m", "prefect.engine"]
RUN_ID = "PREFECT__FLOW_RUN_ID"
DEFAULT_CACHE = "/var/lib/prefect-worker"


def command(code: Path, variables: Mapping[str, str], tell: Tell) -> tuple[list[str], dict[str, str]]:
    """Prepare everything the flow needs; return the command line and environment variables that run it."""
    url = variables.get("METALWORKS_FLOW_CODE", "")
    if not url:
        return [sys.executable, *ENGINE], dict(variables)
    cache = Path(variables.get("METALWORKS_FLOW_CACHE", DEFAULT_CACHE))
    unpack(archive(url, variables.get("METALWORKS_FLOW_CODE_SHA256", ""), cache), code)
    require_prefect(code, tell)
    environment = environment_of(code, cache, tell)
    path = [*import_path(code), *filter(None, [variables.get("PYTHONPATH")])]
    return [f"{environment}/bin/python", *ENGINE], {
        **variables,
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment}/bin:{variables.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(path),
    }


def log(message: str) -> None:
    """Print a line and add it to the flow run's logs."""
    print(message, flush=True)
    if run := os.environ.get(RUN_ID):
        now = datetime.now(UTC).isoformat()
        line = {"name": "metalworks", "level": logging.INFO, "message": message, "timestamp": now, "flow_run_id": run}
        with contextlib.suppress(ApiError):  # the worker's journal has it, too
            Api(os.environ).ask("POST", "/logs/", [line])


def main() -> None:
    """Become the flow run's process; if it cannot start, end the flow run with the reason."""
    run = os.environ.get(RUN_ID)
    if run:
        watch(run)
    try:
        line, variables = command(Path.cwd(), os.environ, log)
    except FlowRunError as error:
        print(error, file=sys.stderr, flush=True)
        if run:
            try:
                end(Api(os.environ), run, str(error), again=False)
            except ApiError as unheard:
                print(unheard, file=sys.stderr, flush=True)
        raise SystemExit(1) from error
    os.execve(line[0], line, variables)

"""From what the worker says to the processes of the flow run."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from metalworks.errors import FlowRunError
from metalworks.flow_run import results
from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.code import archive, unpack
from metalworks.flow_run.end import end, watch
from metalworks.flow_run.environment import Tell, environment_of, import_path, require_prefect
from metalworks.flow_run.group import LIMIT, RunGroup, memory_limit
from metalworks.flow_run.keep import Keeper
from metalworks.flow_run.lock import locked_versions

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
    environment = environment_of(code, cache, tell, shared=True)
    path = [*import_path(code), *filter(None, [variables.get("PYTHONPATH")])]
    return [f"{environment}/bin/python", *ENGINE], {
        **{name: value for name, value in variables.items() if name != "NETRC"},
        **git_settings(code, variables),
        **results.storage(variables, locked_versions(code)),
        "VIRTUAL_ENV": str(environment),
        # `uv run` in a flow takes this environment as it is, and builds none of its own beside it.
        "UV_PROJECT_ENVIRONMENT": str(environment),
        "UV_NO_SYNC": "1",
        "PATH": f"{environment}/bin:{variables.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(path),
    }


def git_settings(code: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Give the run settings of Git that it may change, which begin with those of the platform.

    Git ignores both files, so that a clone which the flow makes in its folder counts as clean.
    """
    platforms = variables.get("GIT_CONFIG_GLOBAL", "")
    if not platforms:
        return {}
    own, ignored = code / ".metalworks-gitconfig", code / ".metalworks-gitignore"
    ignored.write_text(f"/{own.name}\n/{ignored.name}\n")
    own.write_text(f"[include]\n\tpath = {platforms}\n[core]\n\texcludesFile = {ignored}\n")
    return {"GIT_CONFIG_GLOBAL": str(own)}


def log(message: str) -> None:
    """Print a line and add it to the flow run's logs."""
    with contextlib.suppress(OSError):  # the worker that reads it is gone
        print(message, flush=True)
    if run := os.environ.get(RUN_ID):
        now = datetime.now(UTC).isoformat()
        line = {"name": "metalworks", "level": logging.INFO, "message": message, "timestamp": now, "flow_run_id": run}
        with contextlib.suppress(ApiError):  # the worker's journal has it, too
            Api(os.environ).ask("POST", "/logs/", [line])


def main() -> None:
    """Run the flow and keep its processes, or end the flow run with the reason why it cannot start."""
    run = os.environ.get(RUN_ID, "")
    group = RunGroup(run, os.getpid())
    if run:
        watch(run, group)
    try:
        limit = memory_limit(os.environ)
        line, variables = command(Path.cwd(), os.environ, log)
        unlimited = group.create(limit) if run else ""
    except (FlowRunError, OSError) as error:
        print(error, file=sys.stderr, flush=True)
        if run:
            try:
                end(Api(os.environ), run, str(error), again=False)
            except ApiError as unheard:
                print(unheard, file=sys.stderr, flush=True)
        raise SystemExit(1) from error
    if not run:
        os.execve(line[0], line, variables)
    if unlimited and LIMIT in variables and variables[LIMIT]:
        log(unlimited)
    raise SystemExit(Keeper(run, group, line, variables).keep(log))

"""Command line of `metalworks-model`: one JSON line on standard output, what is wrong on standard error.

Exit codes: 0 the version stands on this host, 1 it cannot be fetched, 3 there is no such model or alias yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

MISSING = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="metalworks-model", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("fetch", help="make DEST/<version> hold the version that an alias points to")
    command.add_argument("--model", required=True, help="name of the registered model")
    command.add_argument("--alias", default="champion", help="alias of the wanted version (default: %(default)s)")
    command.add_argument("--dest", required=True, type=Path, help="folder of the service's versions")
    command.add_argument("--server-lock", required=True, type=Path, help="locked requirements of the inference server")
    command.add_argument("--uv", default="uv", help="uv that resolves the environment (default: the one on PATH)")
    return _fetch(parser.parse_args(argv))


def _fetch(arguments: argparse.Namespace) -> int:
    # By itself MLflow's client tries for minutes to reach a server that is down, draws bars where nobody watches,
    # and reports to its makers.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from metalworks.models.errors import FetchError
    from metalworks.models.fetch import fetch

    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking_uri:
        print("metalworks-model: MLFLOW_TRACKING_URI is not set: it names the MLflow server", file=sys.stderr)
        return 1
    dest, server_lock = arguments.dest.absolute(), arguments.server_lock
    try:
        fetched = fetch(tracking_uri, arguments.model, arguments.alias, dest, server_lock, uv=arguments.uv)
    except (FetchError, OSError) as error:
        print(f"metalworks-model: {error}", file=sys.stderr)
        return 1
    if fetched is None:
        print(json.dumps({"missing": True}))
        return MISSING
    print(json.dumps({"missing": False, **dataclasses.asdict(fetched)}))
    return 0

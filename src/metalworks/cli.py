"""Command line of `metalworks`: what `git`, `dvc`, `mlflow` and `prefect` do not do.

Exit codes: 0 success, 1 failure (the message says why and what to do), 2 wrong usage. Those of `status` are its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from metalworks.errors import CommandError

COMMANDS = {
    "compare": ("metalworks.runs.compare", "show how runs differ: code, data, parameters, scores, environment"),
    "reproduce": ("metalworks.runs.reproduce", "repeat a run from its code, data and environment"),
    "deploy": ("metalworks.deploy.command", "check flows in their project's environment, then deploy them"),
    "status": ("metalworks.status.command", "show whether the platform is well, and what ran in the last 24 hours"),
}
"""Subcommand → the module with its `add_arguments(parser)` and `run(arguments) -> int`, and its help text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # In a network without Internet access, MLflow's telemetry can block for up to a minute.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    parser = argparse.ArgumentParser(
        prog="metalworks", description="Compare and reproduce runs, deploy flows, look how the platform is."
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name in argv[:1]:  # importing the others would take seconds
            import_module(module).add_arguments(command)
    arguments = parser.parse_args(argv)
    try:
        code: int = import_module(COMMANDS[arguments.command][0]).run(arguments)
    except CommandError as error:
        print(f"metalworks {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code

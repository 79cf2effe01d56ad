"""Command line of `metalworks`: what `git`, `dvc`, `mlflow` and `prefect` leave to us.

Exit codes: 0 done, 1 it cannot be done (the message says why and what to do), 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from metalworks.errors import CommandError

COMMANDS = {
    "compare": ("metalworks.runs.compare", "what differs between runs: code, data, parameters, scores, environment"),
    "reproduce": ("metalworks.runs.reproduce", "make a run again from its code, data and environment"),
    "deploy": ("metalworks.deploy.command", "check flows in an environment of their own and put them on schedule"),
}
"""Subcommand → the module that has `add_arguments(parser)` and `run(arguments) -> int`, and its line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # Clients that report to their makers wait up to a minute for it where a network lets nothing out.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    parser = argparse.ArgumentParser(prog="metalworks", description="The daily verbs of a team on Metalworks.")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name in argv[:1]:  # the others' modules would cost their seconds of import for nothing
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

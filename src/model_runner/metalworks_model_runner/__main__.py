"""`python -m metalworks_model_runner prove|serve`: see --help."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

REFUSED = 3
"""Exit code of a model that must not be served; the last line on standard error says why."""


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="metalworks_model_runner")
    commands = parser.add_subparsers(dest="command", required=True)
    prove = commands.add_parser("prove", help="find out what is true of the model")
    prove.add_argument("--into", type=Path, required=True, help="folder for what is found")
    serve = commands.add_parser("serve", help="answer on a Unix socket")
    serve.add_argument("--socket", type=Path, required=True)
    serve.add_argument("--way", required=True, help="pyfunc, mlflow, or a native way that was proven")
    serve.add_argument("--max-rows", type=int, default=1024, help="rows that go through the model together")
    serve.add_argument("--ready", type=int, required=True, help="file descriptor that is told when it is ready")
    serve.add_argument("--parent", type=int, required=True, help="file descriptor that is closed when the parent ends")
    for command in (prove, serve):
        command.add_argument("--model", type=Path, required=True, help="folder of the MLflow model")
    arguments = parser.parse_args()
    # Models with type hints hold callers to them only where MLflow is told that it serves.
    os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"
    try:
        if arguments.command == "prove":
            from metalworks_model_runner.proof import prove as prove_model

            prove_model(arguments.model, arguments.into)
            return 0
        from metalworks_model_runner.model import Model
        from metalworks_model_runner.server import Server, end_with

        end_with(arguments.parent)
        server = Server(Model(arguments.model), arguments.way, arguments.max_rows)
    except Exception as error:  # a model's own code may raise anything
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:600]}", file=sys.stderr)
        return REFUSED
    server.listen(arguments.socket, lambda: os.close(arguments.ready))
    return 0


if __name__ == "__main__":
    sys.exit(main())

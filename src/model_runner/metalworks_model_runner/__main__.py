"""`python -m metalworks_model_runner prove|serve`: see --help."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import traceback
from pathlib import Path

REFUSED = 3
"""Exit code of a model that must not be served; the last line on standard error says why."""


CAP_SYS_NICE = 23
"""As <linux/capability.h> numbers it."""


class Polite:
    """Lets those go first who answer requests, until `end`: loading and proving a model can wait."""

    STEPS = 10

    def __init__(self, *, for_good: bool) -> None:
        """Begin: `for_good`, or where the limits allow to end it."""
        self.now = os.getpriority(os.PRIO_PROCESS, 0)
        self.may = for_good or _may_be_as_important_as(self.now)
        if self.may:
            os.setpriority(os.PRIO_PROCESS, 0, self.now + self.STEPS)

    def end(self) -> None:
        """Be as important as before, with the threads that libraries have made since."""
        if self.may:
            for thread in Path("/proc/self/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), self.now)


def _may_be_as_important_as(nice: int) -> bool:
    """Tell whether a process that stepped back may have this nice value again: by its limit, or its capability."""
    if 20 - resource.getrlimit(resource.RLIMIT_NICE)[0] <= nice:
        return True
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> CAP_SYS_NICE & 1)


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="metalworks_model_runner")
    commands = parser.add_subparsers(dest="command", required=True)
    prove = commands.add_parser("prove", help="find out what is true of the model")
    prove.add_argument("--into", type=Path, required=True, help="folder for what is found")
    serve = commands.add_parser(
        "serve",
        help="answer on a Unix socket",
        description="Loads the model, reads from standard input how to ask it (pyfunc, mlflow, or a way proven equal), "
        "and answers until standard input ends.",
    )
    serve.add_argument("--socket", type=Path, required=True)
    serve.add_argument("--proof", type=Path, required=True, help="folder with what `prove` found")
    serve.add_argument("--stuck-after", type=float, default=60, help="seconds that no answer may take")
    serve.add_argument("--first-after", type=float, default=300, help="seconds that the first answer may take")
    serve.add_argument("--max-rows", type=int, default=1024, help="rows that go through the model together")
    for command in (prove, serve):
        command.add_argument("--model", type=Path, required=True, help="folder of the MLflow model")
    arguments = parser.parse_args()
    polite = Polite(for_good=arguments.command == "prove")
    # Models with type hints hold callers to them only where MLflow is told that it serves.
    os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"
    try:
        if arguments.command == "prove":
            from metalworks_model_runner.inspection import inspect_model

            inspect_model(arguments.model, arguments.into)
            return 0
        from metalworks_model_runner import evidence, memory
        from metalworks_model_runner.model import Model
        from metalworks_model_runner.server import ModelServer, end_with

        model = Model(arguments.model)
        memory.trim()
        polite.end()
        executor = sys.stdin.readline().strip()
        if not executor:
            return 0
        rows = evidence.read(arguments.proof).get("rows", []) if executor != "mlflow" else []
        server = ModelServer(model, executor, arguments.max_rows, rows)
        end_with(sys.stdin.fileno())
    except Exception as error:  # a model's own code may raise anything
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:600]}", file=sys.stderr)
        return REFUSED
    server.end_when_stuck(arguments.stuck_after, arguments.first_after)
    server.listen(arguments.socket)
    return 0


if __name__ == "__main__":
    sys.exit(main())

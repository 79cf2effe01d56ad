"""`python -m metalworks_model_runner inspect|serve`: see --help."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import traceback
from pathlib import Path

REFUSED = 3
"""Exit code if the model must not be served; the last line on standard error is the reason."""


CAP_SYS_NICE = 23
"""Its number in <linux/capability.h>."""


class Polite:
    """Runs this process at low priority until `end`, so that loading and checking a model do not slow down requests."""

    STEPS = 10

    def __init__(self, *, for_good: bool) -> None:
        """Lower the priority if it is `for_good`, or if the limits allow to raise it again."""
        self.now = os.getpriority(os.PRIO_PROCESS, 0)
        self.may = for_good or _may_be_as_important_as(self.now)
        if self.may:
            os.setpriority(os.PRIO_PROCESS, 0, self.now + self.STEPS)

    def end(self) -> None:
        """Restore the priority, also of threads that libraries have started since."""
        if self.may:
            for thread in Path("/proc/self/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), self.now)


def _may_be_as_important_as(nice: int) -> bool:
    """Return whether the process may return to this nice value, by its limit or capability."""
    if 20 - resource.getrlimit(resource.RLIMIT_NICE)[0] <= nice:
        return True
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> CAP_SYS_NICE & 1)


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="metalworks_model_runner")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect", help="load the model, compare executors with MLflow, and record what is found"
    )
    inspect.add_argument("--into", type=Path, required=True, help="folder for the results")
    serve = commands.add_parser(
        "serve",
        help="serve the model on a Unix socket",
        description="Load the model, read the executor from standard input (pyfunc, mlflow, or the name of a native "
        "function that `inspect` found), and serve until standard input ends.",
    )
    serve.add_argument("--socket", type=Path, required=True)
    serve.add_argument("--evidence", type=Path, required=True, help="folder with the results of `inspect`")
    serve.add_argument(
        "--stuck-after",
        type=float,
        default=60,
        help="seconds after which a prediction is considered stuck and the process ends",
    )
    serve.add_argument("--first-after", type=float, default=300, help="the same for the first prediction")
    serve.add_argument("--max-rows", type=int, default=1024, help="largest batch")
    for command in (inspect, serve):
        command.add_argument("--model", type=Path, required=True, help="folder of the MLflow model")
    arguments = parser.parse_args()
    polite = Polite(for_good=arguments.command == "inspect")
    # Only in a serving environment does MLflow enforce a model's type hints.
    os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"
    try:
        if arguments.command == "inspect":
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
        rows = evidence.read(arguments.evidence).get("rows", []) if executor != "mlflow" else []
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

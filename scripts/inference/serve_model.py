"""Serve a folder that `mlflow.….save_model` wrote, on this machine: for tests and measurements, without a platform.

The model's environment is this interpreter's, unless --python names another. Everything else is as on a host.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metalworks.serving.rollout import supervisor
from scripts import processes
from scripts.common import ProblemError

START_SECONDS = 180.0


def version(
    folder: Path, number: str, model: Path, python: str = sys.executable, service: str = "model"
) -> dict[str, str]:
    """Return a version's entry in desired.json, with its files in `folder`, as model sync writes it."""
    at = folder / "versions" / number
    at.mkdir(parents=True, exist_ok=True)
    link = at / "model"
    if not link.is_symlink():
        link.symlink_to(model.resolve())
    card = {"name": service, "version": number, "alias": "champion", "source": str(model), "created": 0}
    new = at / "model.new"
    new.write_text(json.dumps(card))
    new.replace(at / "model.json")  # atomically: a service may be reading it
    return {"version": number, "path": str(at), "python": python, "environment": ""}


def want(folder: Path, champion: Any, shadow: Any = None, canary: Any = None) -> None:
    """Request that these versions be served."""
    new = folder / "desired.new"
    new.write_text(json.dumps({"champion": champion, "shadow": shadow, "canary": canary}))
    new.replace(folder / "desired.json")


def state(folder: Path) -> dict[str, Any]:
    """Return a service's state; before it has started, a state in which nothing is served."""
    try:
        current: dict[str, Any] = json.loads((folder / "run" / "state.json").read_text())
    except FileNotFoundError:
        return {"champion": None, "canary": None, "shadow": None, "refused": {}, "canary_verdict": None}
    return current


def champion(folder: Path) -> str | None:
    """Return the version in service."""
    current = state(folder)["champion"]
    return str(current["version"]) if current else None


def wait_until_serving(service: subprocess.Popen[bytes], folder: Path, number: str) -> float:
    """Wait until a version is in service; return that moment."""
    deadline = time.monotonic() + START_SECONDS
    while champion(folder) != number:
        if service.poll() is not None or time.monotonic() > deadline:
            output = (folder / "log").read_text()[-2000:]
            raise ProblemError(f"version {number} did not come into service:\n{output}")
        time.sleep(0.05)
    return time.monotonic()


@contextlib.contextmanager
def runtime(folder: Path) -> Iterator[None]:
    """Link `run` in `folder` to a short path: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="metalworks-", dir="/tmp") as short:
        (folder / "run").symlink_to(short)
        try:
            yield
        finally:
            (folder / "run").unlink()


def settings_for(folder: Path, port: int, service: str = "model", **settings: Any) -> dict[str, str]:
    """Return the environment variables of a service in `folder`; `settings` adds more, in lower case."""
    given: dict[str, Any] = {"service": service, "desired": folder / "desired.json", "port": port}
    given |= {"runtime": (folder / "run").resolve(), "state": folder / "state"} | settings
    return {f"METALWORKS_INFERENCE_{name.upper()}": str(value) for name, value in given.items()}


@contextlib.contextmanager
def served(folder: Path, model: Path, **settings: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a service whose first version is `model`; yield its process and port."""
    port = processes.free_port()
    want(folder, version(folder, "1", model))
    command = [sys.executable, "-m", "metalworks.serving.rollout.supervisor"]
    with runtime(folder):
        variables = {**os.environ, **settings_for(folder, port, **settings)}
        with processes.running(command, variables, folder, folder / "log") as process:
            yield process, port


def main() -> int:
    """Serve until stopped. METALWORKS_INFERENCE_… variables of the environment take precedence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder that contains MLmodel")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the model's environment")
    arguments = parser.parse_args()
    if not (arguments.model / "MLmodel").is_file():
        parser.error(f"{arguments.model} is not an MLflow model: it contains no file MLmodel")
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        want(folder, version(folder, "1", arguments.model, arguments.python))
        with runtime(folder):
            given = settings_for(folder, arguments.port, workers=arguments.workers)
            os.environ.update({name: value for name, value in given.items() if name not in os.environ})
            return supervisor.main()


if __name__ == "__main__":
    sys.exit(main())

"""Versions of the model in service whose ways are known; a developer's script, run in the example project.

versions.py register KIND …: register one each, print their numbers as JSON. versions.py alias NAME VERSION|-: move an
alias, or take it away. versions.py tags VERSION: what the platform says on a version.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import mlflow.sklearn
import numpy as np
from mlflow import MlflowClient

MODEL = "flight-delay"


class Late(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers well, and takes its time."""

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        time.sleep(1)
        return np.full(len(model_input), 7.0)


class Spy(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Tries what no model may, where it is loaded, and leaves in report.json of its home what it could."""

    READ = (
        "/etc/metalworks/tls/host.key", "/etc/metalworks/inference-delay.env", "/etc/metalworks/model-follower.env",
        "/run/inference-delay/state.json", "/run/inference-delay/route.json", "/run/inference-delay/stats-0.json",
        "/var/lib/inference-delay/serving.json", "/etc/shadow",
    )  # fmt: skip
    FOLDERS = (
        "/run/inference-delay", "/var/lib/inference-delay", "/var/lib/inference-delay/spool",
        "/var/lib/inference-delay/proofs", "/var/lib/model-follower/delay", "/var/lib/model-follower/delay/versions",
        "/run/model-follower", "/etc/metalworks", "/opt/metalworks/inference/current/bin",
    )  # fmt: skip
    READABLE = FOLDERS[4:]

    def load_context(self, context: Any) -> None:
        """Try all of it."""
        import ctypes
        import json
        import os
        import socket
        from pathlib import Path

        report = {}

        def attempt(what: str, how: Any) -> None:
            try:
                how()
            except OSError as error:
                report[what] = str(error)
            else:
                report[what] = "done"

        def ask(path: str) -> None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                connection.sendall(b'{"do": "keep", "proofs": ["none"]}\n')
                connection.shutdown(socket.SHUT_WR)
                if not connection.recv(1):
                    raise OSError("no answer")

        def trace(pid: int) -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.ptrace(0x4206, pid, 0, 0):  # PTRACE_SEIZE, which stops nothing and ends with this process
                raise OSError(ctypes.get_errno(), "ptrace")

        home = Path(os.environ["HOME"])
        attempt("own file", lambda: (home / "tried").write_text("yes"))
        for path in self.READ:
            attempt(f"read {path}", Path(path).read_bytes)
        for path in self.FOLDERS:
            if path not in self.READABLE:
                attempt(f"list {path}", lambda path=path: [*Path(path).iterdir()])
            attempt(f"write {path}", lambda path=path: Path(path, "planted").write_text("x"))
            attempt(f"link {path}", lambda path=path: Path(path, "planted.new").symlink_to("/etc/passwd"))
        others = 0
        for pid in range(1, int(Path("/proc/sys/kernel/pid_max").read_text())):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                continue
            except PermissionError:
                others += 1
                attempt(f"trace {pid}", lambda pid=pid: trace(pid))
                continue
            try:
                if Path(f"/proc/{pid}").stat().st_uid != os.getuid():
                    report[f"signal {pid}"] = "done"
            except FileNotFoundError:  # it has ended: those of others are not seen, and not signalled either
                continue
        report["processes of others"] = str(others)
        attempt("ask the launcher", lambda: ask("/run/models-delay/launcher.sock"))
        (home / "report.json").write_text(json.dumps(report))

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        return np.full(len(model_input), 8.0)


def register(kinds: list[str]) -> dict[str, str]:
    """Register a version of each kind, made of the champion."""
    client = MlflowClient()
    champion = client.get_model_version_by_alias(MODEL, "champion")
    source = f"models:/{MODEL}/{champion.version}"
    pipeline = mlflow.sklearn.load_model(source)
    info = mlflow.models.get_model_info(source)
    example = mlflow.pyfunc.load_model(source).input_example
    requirements = mlflow.pyfunc.get_model_dependencies(source)
    recorded = [line.strip() for line in Path(requirements).read_text().splitlines() if line.strip()]
    numbers = {}
    mlflow.set_experiment("flight-delay-trials")
    for kind in kinds:
        offset = {"later": 1000.0, "again": 2000.0}.get(kind, 3000.0)
        model = type(pipeline)([*pipeline.steps[:-1], (pipeline.steps[-1][0], moved(pipeline.steps[-1][1], offset))])
        expected = model.predict(example).tolist()
        options: dict[str, Any] = {"signature": info.signature, "input_example": example, "name": "model"}
        options["pip_requirements"] = recorded + (["no-such-package-of-anybody==99.9"] if kind == "missing" else [])
        if kind == "wrong":
            expected[0] += 1.0
        options["metadata"] = {"metalworks.example_predictions": expected}
        with mlflow.start_run(run_name=kind):
            if kind in ("late", "spy"):
                del options["metadata"]
                logged = mlflow.pyfunc.log_model(python_model={"late": Late, "spy": Spy}[kind](), **options)
            else:
                logged = mlflow.sklearn.log_model(model, skops_trusted_types=trusted(), **options)
        numbers[kind] = mlflow.register_model(logged.model_uri, MODEL).version
    return numbers


def moved(regressor: Any, offset: float) -> Any:
    """A copy of a fitted linear regressor that answers so much more."""
    other = copy.deepcopy(regressor)
    other.intercept_ = other.intercept_ + offset
    return other


def trusted() -> list[str]:
    """What the example's models hold besides what skops trusts."""
    from flights import models

    return models.TRUSTED


def main() -> None:
    """Do what the command line says."""
    command, *rest = sys.argv[1:]
    client = MlflowClient()
    if command == "register":
        print(json.dumps(register(rest)))
    elif command == "alias" and rest[1] == "-":
        client.delete_registered_model_alias(MODEL, rest[0])
    elif command == "alias":
        client.set_registered_model_alias(MODEL, rest[0], rest[1])
    elif command == "tags":
        print(json.dumps(client.get_model_version(MODEL, rest[0]).tags))
    elif command == "aliases":
        print(json.dumps(client.get_registered_model(MODEL).aliases))
    else:
        raise SystemExit(__doc__)


main()

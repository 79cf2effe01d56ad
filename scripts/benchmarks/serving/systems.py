"""The measured systems: how each one starts, and the requests it gets."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.benchmarks.serving.models import Model
from scripts.common import CACHE, ROOT, capture

PEERS = ROOT / "tests/benchmarks/peers"
"""Folder with NAME.in, an environment's requirements, and NAME.txt, locked from it as its first lines say."""
ENVIRONMENTS = CACHE / "bench"
QUIET = {
    "BENTOML_DO_NOT_TRACK": "true",
    "BENTOML_HOME": str(ENVIRONMENTS / "bentoml-home"),
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Switches off the peers' telemetry."""


def split(model: Model) -> Any:
    """Return the request body with a row for MLflow's servers."""
    return {"dataframe_split": {"columns": model.columns, "data": [model.row]}}


def named(model: Model) -> Any:
    """Return the request body with a row for a FastAPI application."""
    return {"rows": [dict(zip(model.columns, model.row, strict=True))]}


@dataclass(frozen=True)
class System:
    """A way to serve a model."""

    title: str
    command: str
    """Started with one worker, on 127.0.0.1, and otherwise with defaults."""
    environment: str = ""
    """Name in PEERS; empty for the controller's environment, which has the server's and the models' packages."""
    path: str = "/predict"
    body: Callable[[Model], Any] = split
    variables: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ("ridge", "forest", "boosted")
    constant: bool = False
    """Whether it responds to everything with 0.0."""

    def python(self) -> Path:
        """Return the interpreter that it runs with."""
        return ENVIRONMENTS / self.environment / "bin/python" if self.environment else Path(sys.executable)

    def expected(self, model: Model) -> float:
        """Return the correct response."""
        return 0.0 if self.constant else model.prediction

    def argv(self, model: Model, port: int) -> list[str]:
        """Return the command that starts it."""
        program, *options = self.command.format(model=model.folder, port=port).split()
        return [str(self.python().with_name(program)), *options]

    def folder(self) -> Path:
        """Return the folder that it is started in."""
        return PEERS if self.environment else ROOT

    def process_environment(self, model: Model, port: int) -> dict[str, str]:
        """Return its environment variables: the machine's, with its programs first on PATH."""
        path = os.pathsep.join([str(self.python().parent), os.environ.get("PATH", os.defpath)])
        own = {"PATH": path, "BENCH_MODEL": str(model.pickle), "BENCH_PORT": str(port)}
        return {**os.environ, **QUIET, **own, **self.variables}


SERVE = "python -m scripts.inference.serve_model {model} --port {port} --workers 1"
UVICORN = "uvicorn --host 127.0.0.1 --port {port} --no-access-log"
SYSTEMS = {
    "ours": System("Metalworks", SERVE, path="/invocations"),
    "ours_native": System(
        "Metalworks without ONNX",
        SERVE,
        path="/invocations",
        variables={"METALWORKS_INFERENCE_EXECUTORS": '["native"]'},
        models=("forest",),
    ),
    "mlflow": System(
        "mlflow models serve",
        "mlflow models serve --model-uri {model} --env-manager local --host 127.0.0.1 --port {port}",
        "mlflow",
        "/invocations",
    ),
    "bentoml": System(
        "BentoML, batching",
        "bentoml serve bentoml_app:Model --host 127.0.0.1 --port {port}",
        "bentoml",
        body=lambda model: {"rows": [model.row]},
    ),
    "litserve": System(
        "LitServe, batching", "python litserve_app.py", "litserve", body=lambda model: {"row": model.row}
    ),
    "fastapi": System("FastAPI, a plain route", f"{UVICORN} fastapi_app:app", "fastapi", body=named),
    "noop_fastapi": System(
        "FastAPI answering nothing", f"{UVICORN} noop_fastapi_app:app", "fastapi", models=("ridge",), constant=True
    ),
    "noop_uvicorn": System(
        "uvicorn answering nothing", f"{UVICORN} noop_uvicorn_app:app", "fastapi", models=("ridge",), constant=True
    ),
}


def install(environment: str) -> None:
    """Build a peer's environment from its lock, unless it exists."""
    lock, folder = PEERS / f"{environment}.txt", ENVIRONMENTS / environment
    made_from = folder / "made-from"
    wanted = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if made_from.exists() and made_from.read_text() == wanted:
        return
    uv = Path(sys.executable).with_name("uv")
    capture([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder])
    capture([uv, "pip", "sync", "--quiet", "--require-hashes", "--python", folder / "bin/python", lock])
    made_from.write_text(wanted)


def versions() -> dict[str, str]:
    """Return the peers' names and versions, from their requirements."""
    asked = sorted(line for file in PEERS.glob("*.in") for line in file.read_text().split())
    return dict(line.split("==") for line in asked)

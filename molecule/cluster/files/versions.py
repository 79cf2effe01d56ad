"""Register versions of the model in service that behave in known ways; runs in the example project.

versions.py KIND …: register one of each kind and print their numbers as JSON.
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
import spy  # its folder is on PYTHONPATH
from mlflow import MlflowClient

MODEL = "flight-delay"


class Late(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Predicts correctly but slowly."""

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        time.sleep(1)
        return np.full(len(model_input), 7.0)


READ = (
    "/etc/metalworks/tls/host.key", "/etc/metalworks/inference-delay.env", "/etc/metalworks/model-follower.env",
    "/run/inference-delay/state.json", "/run/inference-delay/route.json", "/run/inference-delay/stats-0.json",
    "/var/lib/inference-delay/serving.json", "/etc/shadow",
)  # fmt: skip
FOLDERS = (
    "/run/inference-delay", "/var/lib/inference-delay", "/var/lib/inference-delay/spool",
    "/var/lib/inference-delay/evidence", "/var/lib/model-follower/delay", "/var/lib/model-follower/delay/versions",
    "/run/model-follower", "/etc/metalworks", "/opt/metalworks/inference/current/bin",
)  # fmt: skip
READABLE = FOLDERS[4:]
TARGETS = {
    "read": READ,
    "list": [path for path in FOLDERS if path not in READABLE],
    "write": FOLDERS,
    "signal": None,
    "ask": "/run/models-delay/launcher.sock",
}


def register(kinds: list[str]) -> dict[str, str]:
    """Register a version of each kind, derived from the champion."""
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
                custom = Late() if kind == "late" else spy.Spy(TARGETS)
                code = {} if kind == "late" else {"code_paths": [spy.__file__]}
                logged = mlflow.pyfunc.log_model(python_model=custom, **code, **options)
            else:
                logged = mlflow.sklearn.log_model(model, skops_trusted_types=trusted(), **options)
        numbers[kind] = mlflow.register_model(logged.model_uri, MODEL).version
    return numbers


def moved(regressor: Any, offset: float) -> Any:
    """Return a copy of a fitted linear regressor whose predictions are larger by `offset`."""
    other = copy.deepcopy(regressor)
    other.intercept_ = other.intercept_ + offset
    return other


def trusted() -> list[str]:
    """Return the types in the example's models that skops does not trust by default."""
    from flights import models

    return models.TRUSTED


print(json.dumps(register(sys.argv[1:])))

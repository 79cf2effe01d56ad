"""The served models, saved once as MLflow folders below .cache/bench/models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.common import CACHE

FOLDER = CACHE / "bench/models"
TRAINING_ROWS = 2000
RECORDED = ("mlflow", "scikit-learn", "numpy", "pandas")


@dataclass(frozen=True)
class Model:
    """One model on disk, a row for it, and what it predicts for that row."""

    name: str
    folder: Path
    """In MLflow's layout; peers that do not support MLflow load `pickle`."""
    pickle: Path
    columns: list[str]
    row: list[float]
    prediction: float


def ridge() -> Any:
    """Return a tiny model, for which nearly all the time is serving."""
    from sklearn.linear_model import Ridge

    return Ridge()


def forest() -> Any:
    """Return a model whose prediction is slow in scikit-learn and fast in other runtimes."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(n_estimators=200, max_depth=12, n_jobs=1, random_state=0)


def boosted() -> Any:
    """Return a model that skl2onnx 1.20 cannot convert: it does not support splits by categories."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=100, categorical_features=[2], random_state=0)


KINDS: dict[str, tuple[int, Callable[[], Any]]] = {
    "ridge": (13, ridge),
    "forest": (30, forest),
    "boosted": (13, boosted),
}
"""Name → columns and estimator."""


def recorded() -> dict[str, str]:
    """Return the package versions that a model is made with."""
    return {package: version(package) for package in RECORDED}


def save(name: str) -> None:
    """Train a model on made-up data and save it with its signature and an input example."""
    import mlflow
    import numpy
    import pandas

    width, make = KINDS[name]
    random = numpy.random.default_rng(0)
    columns = [f"column_{number}" for number in range(width)]
    data = pandas.DataFrame(random.normal(size=(TRAINING_ROWS, width)), columns=columns)
    data[columns[2]] = random.integers(0, 5, TRAINING_ROWS).astype(float)
    target = data[columns[0]] * 3 + numpy.sin(data[columns[1]]) + data[columns[2]]
    model = make().fit(data, target)
    example = data.head(1)
    predicted = model.predict(example)

    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    mlflow.sklearn.save_model(
        model,
        folder,
        signature=mlflow.models.infer_signature(data, predicted),
        input_example=example,
        serialization_format="cloudpickle",  # the format of most registered models
        pip_requirements=[f"{package}=={number}" for package, number in recorded().items()],
    )
    import joblib  # type: ignore[import-untyped]

    joblib.dump(model, FOLDER / f"{name}.joblib")
    facts = {"columns": columns, "row": example.iloc[0].tolist(), "prediction": float(predicted[0])}
    (FOLDER / f"{name}.json").write_text(json.dumps({**facts, "made_with": recorded()}))


def load(name: str) -> Model:
    """Return a model; train it if it is missing or was made with other versions."""
    file = FOLDER / f"{name}.json"
    if not file.exists() or json.loads(file.read_text())["made_with"] != recorded():
        FOLDER.mkdir(parents=True, exist_ok=True)
        save(name)
    facts = json.loads(file.read_text())
    row = [float(value) for value in facts["row"]]
    return Model(name, FOLDER / name, FOLDER / f"{name}.joblib", facts["columns"], row, facts["prediction"])

"""The code, data and packages behind a result. The platform's MLflow plugin tags runs with them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import yaml

from flights.errors import FlightsError

DATA = Path("data/features")
LOCK = Path("dvc.lock")
# The plugin's tag for the data of a run.
DATA_TAG = f"dvc.{DATA}"

# What a served model needs; the rest of uv.lock is for preparing, scheduling and recording.
MODEL_PACKAGES = ["mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops"]


def require_plugin() -> None:
    """Refuse to record runs without commit and data."""
    if importlib.util.find_spec("metalworks_mlflow") is None:
        raise FlightsError(
            "The platform's MLflow plugin is missing, so runs would not record their commit and data: PYTHONPATH must "
            "contain its folder, as it does after a fresh login on a dev host and on every worker."
        )


def commit() -> str:
    """Return the Git commit of the working tree."""
    return _git("rev-parse", "HEAD")


def dirty() -> bool:
    """Tell whether the working tree differs from that commit."""
    return bool(_git("status", "--porcelain"))


def data() -> str | None:
    """Return DVC's hash of the prepared data from dvc.lock, or None if nothing is prepared yet."""
    if not LOCK.exists():
        return None
    outs = yaml.safe_load(LOCK.read_text())["stages"]["prepare"]["outs"]
    found: str = next(out["md5"] for out in outs if out["path"] == str(DATA))
    return found.removesuffix(".dir")


def data_of(tags: dict[str, str]) -> str | None:
    """Return the hash of the data that a run with these tags used, or None if they do not say."""
    recorded = json.loads(tags.get(DATA_TAG, "{}")).get("recorded")
    return recorded.removesuffix(".dir") if recorded else None


def model_requirements() -> list[str]:
    """Return pins of a model's packages as installed here, which `uv sync --locked` takes from uv.lock."""
    return [f"{name}=={version(name)}" for name in MODEL_PACKAGES]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()

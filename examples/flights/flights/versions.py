"""Which code, which data and which packages a result is made with. The platform's MLflow plugin tags runs with them."""

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
# The plugin's tag that says which data a run saw.
DATA_TAG = f"dvc.{DATA}"

# What a served model needs; the rest of uv.lock is for preparing, scheduling and recording.
MODEL_PACKAGES = ["mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops"]


def require_plugin() -> None:
    """Refuse to record runs that nobody could tell apart later."""
    if importlib.util.find_spec("metalworks_mlflow") is None:
        raise FlightsError(
            "The platform's MLflow plugin is not there, so runs would not say their commit and data: PYTHONPATH must "
            "have its folder, as in a fresh login on a developer's machine and on every worker."
        )


def commit() -> str:
    """The Git commit of the working tree."""
    return _git("rev-parse", "HEAD")


def dirty() -> bool:
    """Whether the working tree differs from that commit."""
    return bool(_git("status", "--porcelain"))


def data() -> str | None:
    """DVC's hash of the prepared data, as dvc.lock has it; None: nothing is prepared yet."""
    if not LOCK.exists():
        return None
    outs = yaml.safe_load(LOCK.read_text())["stages"]["prepare"]["outs"]
    found: str = next(out["md5"] for out in outs if out["path"] == str(DATA))
    return found.removesuffix(".dir")


def data_of(tags: dict[str, str]) -> str | None:
    """The hash of the data that a run with these tags was made with; None: they do not tell."""
    recorded = json.loads(tags.get(DATA_TAG, "{}")).get("recorded")
    return recorded.removesuffix(".dir") if recorded else None


def model_requirements() -> list[str]:
    """Pins of what a model needs, as installed here: `uv sync --locked` makes that uv.lock's."""
    return [f"{name}=={version(name)}" for name in MODEL_PACKAGES]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()

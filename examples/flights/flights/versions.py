"""Which code, which data and which packages a result was made with."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import distributions, version
from pathlib import Path, PurePosixPath

import yaml

DATA = Path("data/features")
LOCK = Path("dvc.lock")

# What a served model needs; the rest of uv.lock is for preparing, scheduling and recording.
MODEL_PACKAGES = ["mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops"]


def commit() -> str:
    """The Git commit of this code: on a worker the one it was deployed from, else the working tree's."""
    deployed = os.environ.get("METALWORKS_FLOW_CODE")
    if deployed:
        return PurePosixPath(deployed).name.removesuffix(".tar.gz")
    return _git("rev-parse", "HEAD")


def dirty() -> bool:
    """Whether the working tree differs from that commit."""
    return "METALWORKS_FLOW_CODE" not in os.environ and bool(_git("status", "--porcelain"))


def data() -> str | None:
    """DVC's hash of the prepared data, as dvc.lock has it; None: nothing is prepared yet."""
    if not LOCK.exists():
        return None
    outs = yaml.safe_load(LOCK.read_text())["stages"]["prepare"]["outs"]
    found: str = next(out["md5"] for out in outs if out["path"] == str(DATA))
    return found.removesuffix(".dir")


def model_requirements() -> list[str]:
    """Pins of what a model needs, as installed here: `uv sync --locked` makes that uv.lock's."""
    return [f"{name}=={version(name)}" for name in MODEL_PACKAGES]


def environment() -> str:
    """Pins of everything installed here."""
    return "".join(sorted(f"{found.name}=={found.version}\n" for found in distributions()))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()

"""A package index for the tests of locks and environments: a folder of almost empty wheels."""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

UV = str(Path(sys.executable).parent / "uv")
MLFLOW = metadata.version("mlflow")


def add_wheel(folder: Path, name: str, version: str, extra: str = "", files: dict[str, str] | None = None) -> None:
    """Put a package, empty by default, into the folder that uv resolves from."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Provides-Extra: {extra}\n" if extra else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the only index uv knows: MLflow, as the platform has it and others, and a `scaler`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("mlflow", "mlflow-skinny"):
        for version in ("2.5.0", "2.22.0", MLFLOW, "999.0"):
            add_wheel(folder, name, version)
    add_wheel(folder, "scaler", "1.0")
    config = tmp_path / "uv.toml"
    config.write_text(f'no-index = true\nfind-links = ["{folder}"]\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(config))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return folder

"""A package index for the tests of locks: a folder of wheels without content."""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

UV = str(Path(sys.executable).parent / "uv")


def add_wheel(folder: Path, name: str, version: str, extra: str = "") -> None:
    """Put a package without content into the folder that uv resolves from."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Provides-Extra: {extra}\n" if extra else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


SERVER = {name: metadata.version(name) for name in ("mlflow", "fastapi", "uvicorn", "pydantic-settings")}


@pytest.fixture
def server_lock(tmp_path: Path) -> Path:
    """Write the lock of the inference server, as exported for all Pythons."""
    lock = tmp_path / "server.txt"
    pins = [f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n" for name, version in SERVER.items()]
    lock.write_text("# Exported\n" + "".join(pins) + "fastapi==999.0 ; python_full_version < '3'\n")
    return lock


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the only index uv knows: what the server needs, as locked and in a later version, and a `scaler`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, locked in SERVER.items():
        for version in (locked, "999.0"):
            add_wheel(folder, name, version, extra="standard" if name == "uvicorn" else "")
    add_wheel(folder, "scaler", "1.0")
    config = tmp_path / "uv.toml"
    config.write_text(f'no-index = true\nfind-links = ["{folder}"]\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(config))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return folder

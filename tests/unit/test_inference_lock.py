"""The environment that a fetched model is served in, resolved by uv from a folder of small wheels."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from metalworks.models import lock
from metalworks.models.errors import FetchError
from tests.unit.inference_wheels import SERVER, UV, add_wheel, server_lock, wheels

__all__ = ["server_lock", "wheels"]

ROOT = Path(__file__).resolve().parents[2]
MLFLOW = SERVER["mlflow"]


def version_dir(folder: Path, *requirements: str) -> Path:
    """Make a fetched version that recorded these requirements."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "requirements.txt").write_text("\n".join((f"mlflow=={MLFLOW}", *requirements)) + "\n")
    return folder


Lock = Callable[[Path], dict[str, str]]


@pytest.fixture
def locked(server_lock: Path, wheels: Path) -> Lock:
    """Return a function that locks a version and gives what its lock pins."""

    def run(folder: Path) -> dict[str, str]:
        assert lock.ensure_lock(folder, server_lock, uv=UV)
        assert not lock.ensure_lock(folder, server_lock, uv=UV)
        return lock.pins((folder / "requirements.lock").read_text())

    return run


def test_versions_are_those_the_server_is_tested_with(locked: Lock, tmp_path: Path) -> None:
    assert locked(version_dir(tmp_path / "1", "scaler")) == {"scaler": "1.0", **SERVER}


def test_every_package_has_its_hash(locked: Lock, wheels: Path, tmp_path: Path) -> None:
    locked(version_dir(tmp_path / "1", "scaler"))
    text = (tmp_path / "1" / "requirements.lock").read_text()
    digest = hashlib.sha256((wheels / "scaler-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert f"scaler==1.0 \\\n    --hash=sha256:{digest}\n" in text
    assert text.count("==") == text.count("--hash=sha256:")


def test_what_the_model_recorded_wins(locked: Lock, tmp_path: Path) -> None:
    assert locked(version_dir(tmp_path / "1", "fastapi==999.0"))["fastapi"] == "999.0"


def test_recorded_constraints_hold(locked: Lock, wheels: Path, tmp_path: Path) -> None:
    add_wheel(wheels, "scaler", "2.0")
    folder = version_dir(tmp_path / "1", "-c constraints.txt", "scaler")
    (folder / "model" / "constraints.txt").write_text("scaler<2\n")
    assert locked(folder)["scaler"] == "1.0"
    (folder / "model" / "constraints.txt").write_text("scaler>=2\n")
    assert locked(folder)["scaler"] == "2.0"


def test_same_requirements_share_one_lock(locked: Lock, wheels: Path, server_lock: Path, tmp_path: Path) -> None:
    locked(version_dir(tmp_path / "1", "scaler"))
    add_wheel(wheels, "scaler", "2.0")
    assert lock.ensure_lock(version_dir(tmp_path / "2", "scaler"), server_lock, uv="not asked")
    assert (tmp_path / "2/requirements.lock").read_bytes() == (tmp_path / "1/requirements.lock").read_bytes()


def test_versions_of_the_lock_before_are_kept_where_they_fit(locked: Lock, wheels: Path, tmp_path: Path) -> None:
    locked(version_dir(tmp_path / "1", "scaler"))
    add_wheel(wheels, "scaler", "2.0")
    add_wheel(wheels, "compressor", "1.0")
    assert locked(version_dir(tmp_path / "2", "scaler", "compressor"))["scaler"] == "1.0"
    assert locked(version_dir(tmp_path / "3", "scaler>=2"))["scaler"] == "2.0"


def test_other_needs_of_the_server_make_a_new_lock(
    locked: Lock, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = version_dir(tmp_path / "1", "scaler")
    before = locked(folder)
    add_wheel(wheels, "compressor", "1.0")
    add_wheel(wheels, "scaler", "2.0")
    monkeypatch.setattr(lock, "SERVER_REQUIREMENTS", (*lock.SERVER_REQUIREMENTS, "compressor"))
    assert locked(folder) == {**before, "compressor": "1.0"}


@pytest.mark.parametrize("requirement", ["mlflow<3.1", "MLflow-Skinny==2.0  # the one it was trained with"])
def test_other_mlflow_is_refused_with_the_reason(server_lock: Path, tmp_path: Path, requirement: str) -> None:
    folder = version_dir(tmp_path / "1", requirement)
    with pytest.raises(FetchError, match=f"but this platform serves with mlflow {MLFLOW}: log the model again"):
        lock.ensure_lock(folder, server_lock, uv=UV)


def test_environment_that_cannot_be_is_refused_with_the_reason(wheels: Path, server_lock: Path, tmp_path: Path) -> None:
    folder = version_dir(tmp_path / "1", "no-such-package")
    with pytest.raises(FetchError, match="no-such-package was not found"):
        lock.ensure_lock(folder, server_lock, uv=UV)
    assert not (folder / "requirements.lock").exists()


def test_model_without_requirements_is_refused(server_lock: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"requirements\.txt is missing"):
        lock.ensure_lock(tmp_path, server_lock, uv=UV)


def test_missing_uv_is_named(server_lock: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no-uv is not installed"):
        lock.ensure_lock(version_dir(tmp_path / "1"), server_lock, uv="no-uv")


def test_server_needs_what_its_dependency_group_says() -> None:
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["inference"]
    assert group == [f"mlflow=={MLFLOW}", *lock.SERVER_REQUIREMENTS]

"""The environment of a fetched model, resolved and built by uv from a folder of small wheels."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from metalworks.errors import FetchError, Stopped
from metalworks.model_sync.environments import Environments
from metalworks.model_sync.lock import Resolver, pins
from metalworks.model_sync.programs import Programs
from tests.unit.inference_wheels import MLFLOW, UV, add_wheel, wheels

__all__ = ["wheels"]

ONNX = {"skl2onnx": "1.20.0", "onnx": "1.19.0"}


def version_dir(folder: Path, *requirements: str, flavours: tuple[str, ...] = ("python_function",)) -> Path:
    """Create a fetched version with these recorded requirements."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (folder / "model" / "MLmodel").write_text("flavors:\n" + "".join(f"  {each}: {{}}\n" for each in flavours))
    return folder


@pytest.fixture
def resolver(wheels: Path) -> Resolver:
    return Resolver(Programs(threading.Event()), UV, sys.executable, MLFLOW)


Lock = Callable[[Path], dict[str, str]]


@pytest.fixture
def locked(resolver: Resolver) -> Lock:
    """Return a function that locks a version and returns the pins of its lock."""

    def run(folder: Path) -> dict[str, str]:
        lock = resolver.ensure_lock(folder)
        written = lock.stat().st_mtime_ns
        assert resolver.ensure_lock(folder).stat().st_mtime_ns == written
        return pins(lock.read_text())

    return run


@pytest.mark.parametrize(
    ("recorded", "mlflow"),
    [
        (["scaler"], {"mlflow": MLFLOW}),  # the platform's, if the model recorded none
        ([f"mlflow=={MLFLOW}", "scaler"], {"mlflow": MLFLOW}),
        (["mlflow==2.22.0", "scaler"], {"mlflow": "2.22.0"}),
        (["MLflow<3", "scaler"], {"mlflow": "2.22.0"}),
        (["mlflow-skinny==2.22.0  # trained with", "scaler"], {"mlflow": "2.22.0", "mlflow-skinny": "2.22.0"}),
    ],
)  # fmt: skip
def test_the_recorded_mlflow_version_is_used(
    locked: Lock, tmp_path: Path, recorded: list[str], mlflow: dict[str, str]
) -> None:
    assert locked(version_dir(tmp_path / "1", *recorded)) == {"scaler": "1.0", **mlflow}


@pytest.mark.parametrize("recorded", ["mlflow==2.5.0", "mlflow-skinny==2.5.0", "mlflow<2.6"])
def test_an_mlflow_that_cannot_serve_is_refused(locked: Lock, tmp_path: Path, recorded: str) -> None:
    folder = version_dir(tmp_path / "1", recorded)
    with pytest.raises(FetchError, match=r"requires mlflow 2\.5\.0, but the oldest .* is 2\.6: log the model again"):
        locked(folder)
    assert not (folder / "requirements.lock").exists()


def test_every_package_has_its_hash(locked: Lock, wheels: Path, tmp_path: Path) -> None:
    locked(version_dir(tmp_path / "1", "scaler"))
    text = (tmp_path / "1" / "requirements.lock").read_text()
    digest = hashlib.sha256((wheels / "scaler-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert f"scaler==1.0 \\\n    --hash=sha256:{digest}\n" in text
    assert text.count("==") == text.count("--hash=sha256:")


def test_recorded_constraints_hold(locked: Lock, wheels: Path, tmp_path: Path) -> None:
    add_wheel(wheels, "scaler", "2.0")
    folder = version_dir(tmp_path / "1", "-c constraints.txt", "scaler")
    (folder / "model" / "constraints.txt").write_text("scaler<2\n")
    assert locked(folder)["scaler"] == "1.0"
    (folder / "model" / "constraints.txt").write_text("scaler>=2\n")
    assert locked(folder)["scaler"] == "2.0"


def test_same_requirements_share_one_lock(locked: Lock, resolver: Resolver, wheels: Path, tmp_path: Path) -> None:
    locked(version_dir(tmp_path / "1", "scaler"))
    add_wheel(wheels, "scaler", "2.0")
    dataclasses.replace(resolver, uv="not asked").ensure_lock(version_dir(tmp_path / "2", "scaler"))
    assert (tmp_path / "2/requirements.lock").read_bytes() == (tmp_path / "1/requirements.lock").read_bytes()


def test_versions_of_the_previous_lock_are_preferred(locked: Lock, wheels: Path, tmp_path: Path) -> None:
    locked(version_dir(tmp_path / "1", "scaler"))
    add_wheel(wheels, "scaler", "2.0")
    add_wheel(wheels, "compressor", "1.0")
    assert locked(version_dir(tmp_path / "2", "scaler", "compressor"))["scaler"] == "1.0"
    assert locked(version_dir(tmp_path / "3", "scaler>=2"))["scaler"] == "2.0"


@pytest.mark.parametrize("flavour", ["sklearn", "xgboost", "lightgbm"])
def test_converters_come_with_the_flavours_they_convert(
    locked: Lock, wheels: Path, tmp_path: Path, flavour: str
) -> None:
    converters = ONNX | ({} if flavour == "sklearn" else {"onnxmltools": "1.16.0"})
    for name, version in (ONNX | {"onnxmltools": "1.16.0"}).items():
        add_wheel(wheels, name, version)
    found = locked(version_dir(tmp_path / "1", "scaler", flavours=("python_function", flavour)))
    assert found == {"scaler": "1.0", "mlflow": MLFLOW, **converters}
    assert locked(version_dir(tmp_path / "2", "scaler", flavours=("python_function", "pytorch"))) == {
        "scaler": "1.0",
        "mlflow": MLFLOW,
    }


def test_a_model_is_served_without_converters(locked: Lock, tmp_path: Path) -> None:
    assert locked(version_dir(tmp_path / "1", "scaler", flavours=("sklearn",))) == {"scaler": "1.0", "mlflow": MLFLOW}


def test_unresolvable_requirements_are_refused_with_the_reason(locked: Lock, tmp_path: Path) -> None:
    folder = version_dir(tmp_path / "1", "no-such-package", flavours=("sklearn",))
    with pytest.raises(FetchError, match="no-such-package was not found"):
        locked(folder)
    assert not (folder / "requirements.lock").exists()


def test_incomplete_models_and_hosts_are_named(resolver: Resolver, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"requirements\.txt is missing: log the model"):
        resolver.ensure_lock(tmp_path)
    folder = version_dir(tmp_path / "1", "scaler")
    with pytest.raises(FetchError, match="no-uv is not installed"):
        dataclasses.replace(resolver, uv="no-uv").ensure_lock(folder)
    (folder / "model/MLmodel").write_text("not: [a model")
    with pytest.raises(FetchError, match=r"cannot read .*MLmodel"):
        resolver.ensure_lock(folder)


# -- Environments


@pytest.fixture
def environments(wheels: Path, tmp_path: Path) -> Environments:
    return Environments(tmp_path / "environments", Programs(threading.Event()), UV, sys.executable)


def test_an_environment_is_built_once_per_lock(
    environments: Environments, resolver: Resolver, wheels: Path, tmp_path: Path
) -> None:
    add_wheel(wheels, "scaler", "1.5", files={"scaler.py": "FACTOR = 3\n"})
    first, second = (resolver.ensure_lock(version_dir(tmp_path / number, "scaler")) for number in "12")
    python = environments.ensure(first)
    answer = subprocess.run([python, "-c", "import scaler; print(scaler.FACTOR)"], capture_output=True, text=True)
    assert answer.stdout == "3\n"
    assert list(python.parent.parent.glob("lib/*/site-packages/__pycache__/scaler.*.pyc"))
    assert len(python.parent.parent.name) == 16
    environments.uv = "not asked"
    assert environments.ensure(second) == python


def test_installing_a_package_runs_none_of_its_code(
    environments: Environments, resolver: Resolver, wheels: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    add_wheel(wheels, "scaler", "1.5", files={"scaler.pth": f"import pathlib; pathlib.Path({str(ran)!r}).touch()\n"})
    python = environments.ensure(resolver.ensure_lock(version_dir(tmp_path / "1", "scaler")))
    assert not ran.exists()
    subprocess.run([python, "-c", ""], check=True)
    assert ran.exists()  # the package's code does run once the environment is used


def test_packages_without_a_wheel_are_refused(locked: Lock, wheels: Path, tmp_path: Path) -> None:
    source = tmp_path / "source/sauce-1.0"
    source.mkdir(parents=True)
    (source / "setup.py").write_text("raise SystemExit('it ran')\n")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: sauce\nVersion: 1.0\n")
    subprocess.run(["tar", "-czf", wheels / "sauce-1.0.tar.gz", "-C", source.parent, "sauce-1.0"], check=True)
    with pytest.raises(FetchError, match="no usable wheels"):
        locked(version_dir(tmp_path / "1", "sauce"))


def test_an_incomplete_environment_is_rebuilt(
    environments: Environments, resolver: Resolver, wheels: Path, tmp_path: Path
) -> None:
    lock = resolver.ensure_lock(version_dir(tmp_path / "1", "scaler"))
    (wheels / "scaler-1.0-py3-none-any.whl").rename(tmp_path / "away.whl")
    with pytest.raises(FetchError, match=r"(?s)cannot install the model's environment: .*scaler"):
        environments.ensure(lock)
    assert list(environments.root.iterdir()) == []
    (tmp_path / "away.whl").rename(wheels / "scaler-1.0-py3-none-any.whl")
    folder = environments.ensure(lock).parent.parent
    (folder / ".complete").unlink()  # as after a kill before the last step
    (folder / "half").touch()
    again = Environments(environments.root, environments.programs, UV, sys.executable)
    assert list(again.root.iterdir()) == []
    assert (again.ensure(lock).parent.parent / ".complete").exists()


def test_unused_environments_are_removed(environments: Environments, tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        (environments.root / name).mkdir(parents=True)
        (environments.root / name / ".complete").touch()
        subprocess.run(["touch", "--date", f"{age} hours ago", environments.root / name / ".complete"], check=True)
    lock = tmp_path / "lock"
    lock.touch()
    (environments.root / environments._name(lock)).mkdir()
    environments.tidy([lock], more=2)
    assert {path.name for path in environments.root.iterdir()} == {environments._name(lock), "a", "b"}


def test_unused_packages_leave_uvs_cache(
    environments: Environments, resolver: Resolver, wheels: Path, tmp_path: Path
) -> None:
    def kept() -> set[str]:
        found = (tmp_path / "uv-cache").rglob("*.dist-info/METADATA")
        return {path.parent.name.removesuffix(".dist-info") for path in found}

    add_wheel(wheels, "scaler", "1.5")
    add_wheel(wheels, "helper", "2.0")
    old, new = (
        resolver.ensure_lock(version_dir(tmp_path / version, f"scaler=={version}", "helper"))
        for version in ("1.0", "1.5")
    )
    for lock in (old, new):
        python = environments.ensure(lock)
    both = {"helper-2.0", f"mlflow-{MLFLOW}"}
    assert kept() >= {"scaler-1.0", "scaler-1.5", *both}
    environments.tidy([new], more=0)
    assert kept() >= both
    assert not kept() & {"scaler-1.0", "scaler-1.5"}
    assert "scaler-1.5" in {path.name.removesuffix(".dist-info") for path in python.parents[1].rglob("*.dist-info")}


def test_programs_are_killed_when_the_follower_stops() -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        Programs(stop).run(["sleep", "60"], cwd=Path("/"))
    with pytest.raises(Stopped):
        Programs(stop).run(["touch", "/nothing/is/started"], cwd=Path("/"))
    with pytest.raises(FetchError, match="sleep did not finish within 0 s"):
        Programs(threading.Event(), timeout=0.1).run(["sleep", "60"], cwd=Path("/"))

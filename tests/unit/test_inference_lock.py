"""The environment of a fetched model, resolved and built by uv from a folder of small wheels."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalworks.errors import FetchError, Stopped
from metalworks.model_sync.environments import Environments
from metalworks.model_sync.lock import Resolver, pins
from metalworks.model_sync.programs import Programs
from metalworks.requirement_files import Index
from tests.unit.inference_wheels import MLFLOW, UV, Serve, add_wheel, wheels

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
    with pytest.raises(FetchError, match=r"(?s)no usable wheels.*set inference_build_packages: true"):
        locked(version_dir(tmp_path / "1", "sauce"))


# -- Requirements as people record them


@pytest.fixture
def public(wheels: Path, serve: Serve, tmp_path: Path) -> Path:
    """Make a served index the default, as PyPI is, with the packages of `wheels`; return its folder."""
    (tmp_path / "uv.toml").write_text(f'[[index]]\nurl = "{serve(wheels)}"\ndefault = true\n')
    return wheels


Installed = Callable[..., set[str]]


@pytest.fixture
def installed(environments: Environments, resolver: Resolver) -> Installed:
    """Return a function that installs a version, and returns the installed packages as name-version."""

    def run(folder: Path, site: tuple[Index, ...] = ()) -> set[str]:
        given = dataclasses.replace(resolver, site=site)
        python = environments.ensure(given.ensure_lock(folder), given.variables(folder))
        found = python.parents[1].glob("lib/*/site-packages/*.dist-info")
        return {path.name.removesuffix(".dist-info") for path in found} - {f"mlflow-{MLFLOW}"}

    return run


@pytest.mark.parametrize("option", ["--extra-index-url", "--index-url"])
def test_packages_come_from_the_recorded_index(
    installed: Installed, public: Path, serve: Serve, tmp_path: Path, option: str
) -> None:
    own = tmp_path / "own"
    line = f"{option} {serve(own)}"
    add_wheel(own, "acmescale", "1.0")
    add_wheel(own, "torch", "2.0+cpu")
    add_wheel(public, "acmescale", "99.0")  # a stranger's, of the same name
    add_wheel(public, "torch", "2.0")
    found = installed(version_dir(tmp_path / "1", line, "acmescale", "torch==2.0+cpu"))
    assert found == {"acmescale-1.0", "torch-2.0+cpu"}


def test_old_copies_in_the_recorded_index_do_not_matter(
    installed: Installed, public: Path, serve: Serve, tmp_path: Path
) -> None:
    """PyTorch's index has old releases of numpy and others."""
    old = tmp_path / "old"
    line = f"--extra-index-url {serve(old)}"
    add_wheel(old, "six", "1.0.0")
    add_wheel(public, "six", "1.17.0")
    assert installed(version_dir(tmp_path / "1", line, "six==1.17.0")) == {"six-1.17.0"}


def test_packages_of_the_sites_index_come_from_nowhere_else(
    installed: Installed, public: Path, serve: Serve, tmp_path: Path
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    site = (Index(serve(own), ("acme*",)),)
    line = f"--extra-index-url {serve(other)}"
    add_wheel(own, "acmescale", "1.0")
    add_wheel(other, "acmescale", "99.0")
    add_wheel(public, "acmebase", "1.0")
    assert installed(version_dir(tmp_path / "1", line, "acmescale"), site) == {"acmescale-1.0"}
    for wanted in ("acmescale==99.0", "acmebase"):
        with pytest.raises(
            FetchError, match=rf"{wanted.partition('==')[0]} .* would come from .* alone \(package_indexes\)"
        ):
            installed(version_dir(tmp_path / wanted, line, wanted), site)


def test_an_index_with_a_login(
    installed: Installed, public: Path, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    url = serve(own, login="ci:s3cret")
    add_wheel(own, "acmescale", "1.0")
    add_wheel(public, "acmescale", "99.0")  # a stranger's, who waits for a password to expire
    with pytest.raises(FetchError, match=r"name it with user and password in package_indexes"):
        installed(version_dir(tmp_path / "1", f"--extra-index-url {url}", "acmescale"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ci password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert installed(version_dir(tmp_path / "2", "acmescale"), (Index(url),)) == {"acmescale-1.0"}
    monkeypatch.delenv("NETRC")
    recorded = url.replace("http://", "http://ci:s3cret@")  # by its author
    assert installed(version_dir(tmp_path / "3", f"--extra-index-url {recorded}", "acmescale==1.0")) == {
        "acmescale-1.0"
    }
    assert not any("s3cret" in (tmp_path / version / "requirements.lock").read_text() for version in "23")
    with pytest.raises(FetchError, match="acmescale") as refused:
        installed(version_dir(tmp_path / "4", f"--extra-index-url {recorded}", "acmescale==2.0"))
    assert "s3cret" not in str(refused.value)


def test_a_wheel_that_travels_in_the_model(installed: Installed, public: Path, tmp_path: Path) -> None:
    def logged(number: str, content: str) -> Path:
        folder = version_dir(tmp_path / number, "code/acmescale-1.0-py3-none-any.whl")
        (folder / "model/code").mkdir()
        add_wheel(folder / "model/code", "acmescale", "1.0", files={"acmescale.py": content})
        return folder

    assert installed(logged("1", "FACTOR = 1\n")) == {"acmescale-1.0"}
    assert installed(logged("2", "FACTOR = 2\n")) == {"acmescale-1.0"}
    first, second = ((tmp_path / number / "requirements.lock").read_text() for number in "12")
    assert first != second  # the same requirements.txt, but another wheel
    folder = version_dir(tmp_path / "3", "--find-links code", "acmescale")
    (folder / "model/code").mkdir()
    add_wheel(folder / "model/code", "acmescale", "3.0")
    assert installed(folder) == {"acmescale-3.0"}


def test_a_wheel_that_mlflow_put_into_the_model(installed: Installed, public: Path, tmp_path: Path) -> None:
    """As MLflow documents it for private code: the wheel is among `code_paths`, the requirement is a path."""
    import mlflow

    class Plain(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input

    add_wheel(tmp_path, "acmescale", "1.0")
    name = "acmescale-1.0-py3-none-any.whl"
    paths, requirements = [str(tmp_path / name)], [f"code/{name}"]
    mlflow.pyfunc.save_model(
        tmp_path / "1/model", python_model=Plain(), code_paths=paths, pip_requirements=requirements
    )
    assert installed(tmp_path / "1") == {"acmescale-1.0"}


def test_a_package_from_git(
    environments: Environments, resolver: Resolver, installed: Installed, public: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        "[project]\nname = 'acmegit'\nversion = '1.0'\n"
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (source / "backend.py").write_text(
        "import zipfile\n"
        "def build_wheel(folder, config_settings=None, metadata_directory=None):\n"
        "    info = 'acmegit-1.0.dist-info'\n"
        "    with zipfile.ZipFile(f'{folder}/acmegit-1.0-py3-none-any.whl', 'w') as wheel:\n"
        "        wheel.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\\nName: acmegit\\nVersion: 1.0\\n')\n"
        "        wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "        wheel.writestr(f'{info}/RECORD', '')\n"
        "    return 'acmegit-1.0-py3-none-any.whl'\n"
    )
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    line = f"acmegit @ git+file://{source}"
    with pytest.raises(FetchError, match="set inference_build_packages: true"):
        installed(version_dir(tmp_path / "1", line))
    environments.build_packages = True
    building = dataclasses.replace(resolver, build_packages=True)
    lock = building.ensure_lock(version_dir(tmp_path / "2", line, "scaler"))
    built = environments.ensure(lock, building.variables(tmp_path / "2")).parents[1]
    assert list(built.glob("lib/*/site-packages/acmegit-1.0.dist-info"))
    lock.write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", lock.read_text()))  # the others are verified
    with pytest.raises(FetchError, match="cannot install the model's environment"):
        environments.ensure(lock, building.variables(tmp_path / "2"))


# -- Models that were made with another Python than the host's


def made_with(version: str, folder: Path, *requirements: str) -> Path:
    version_dir(folder, *requirements)
    (folder / "model/MLmodel").write_text(f"flavors:\n  python_function:\n    python_version: {version}\n")
    return folder


@pytest.fixture
def other_python(resolver: Resolver, tmp_path: Path) -> Resolver:
    """Return a resolver on a host that has a Python 3.99 (the one of the tests, by another name)."""
    python = tmp_path / "python3.99"
    python.symlink_to(sys.executable)
    uv = tmp_path / "uv"
    uv.write_text(
        "#!/bin/sh\n"
        'if [ "$1 $2" = "python find" ]; then\n'
        f'  [ "$5" = 3.99 ] && echo {shlex.quote(str(python))} && exit\n'
        "  exit 2\nfi\n"
        f'exec {shlex.quote(UV)} "$@"\n'
    )
    uv.chmod(0o755)
    return dataclasses.replace(resolver, uv=str(uv))


def test_a_python_of_the_models_version_is_used_if_the_host_has_it(
    environments: Environments, other_python: Resolver, tmp_path: Path
) -> None:
    folder = made_with("3.99.1", tmp_path / "1", "scaler")
    lock = other_python.ensure_lock(folder)
    assert f"# Python {tmp_path / 'python3.99'}\n" in lock.read_text()
    assert other_python.other_python(folder) == ""
    assert other_python.find_lock(folder) == lock
    ordinary = other_python.ensure_lock(version_dir(tmp_path / "2", "scaler"))
    assert environments.ensure(lock) != environments.ensure(ordinary)
    assert pins(lock.read_text()) == pins(ordinary.read_text())


def test_a_python_that_comes_later_is_taken(resolver: Resolver, other_python: Resolver, tmp_path: Path) -> None:
    folder = made_with("3.99.1", tmp_path / "1", "scaler")
    assert f"# Python {sys.executable}\n" in resolver.ensure_lock(folder).read_text()
    assert f"# Python {tmp_path / 'python3.99'}\n" in other_python.ensure_lock(folder).read_text()


@pytest.mark.parametrize(
    ("made", "advice"),
    [
        ("3.99.1", r"If that is the cause, install Python 3\.99 on the host, set python_builds_url"),
        ("3.8.20", r"If that is the cause, make the model with Python"),
    ],
)
def test_another_python_is_named(
    resolver: Resolver, tmp_path: Path, made: str, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made_with(made, tmp_path / "1", "scaler")
    resolver.ensure_lock(folder)
    said = rf"The model was made with Python {made.rpartition('.')[0]}; this host serves with 3\.\d+\. {advice}"
    assert re.search(said, caplog.text)
    assert re.search(said, resolver.other_python(folder))


def test_the_same_python_is_not_mentioned(resolver: Resolver, tmp_path: Path) -> None:
    folder = made_with(f"3.{sys.version_info.minor}.0", tmp_path / "1", "scaler")
    assert "# Python" not in resolver.ensure_lock(folder).read_text()
    assert resolver.other_python(folder) == ""


def test_a_wheel_of_the_authors_machine_is_explained(locked: Lock, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="log the wheel with the model"):
        locked(version_dir(tmp_path / "1", "a @ file:///home/ada/a-1.0-py3-none-any.whl"))


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

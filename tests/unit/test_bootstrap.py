"""scripts/bootstrap.sh: unsupported setups are refused at the start, with a hint."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.repository import ROOT

# A stand-in for uv that records its calls; the environment that it creates contains its path.
UV = """#!/bin/sh
echo "$*" >>asked
mkdir -p .venv/bin
echo "VIRTUAL_ENV='$PWD/.venv'" >.venv/bin/activate
ln -sf /bin/true .venv/bin/python
"""


def clone(folder: Path) -> Path:
    """Create a clone without its environment."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/bootstrap.sh", folder / "scripts")
    for name in ("pyproject.toml", "uv.lock"):
        (folder / name).touch()
    (folder / "group_vars/all").mkdir(parents=True)
    (folder / "group_vars/all/versions.yml").write_text("uv_version: 1.0\n")
    uv = folder / ".cache/tools/uv-1.0/bin/uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(UV)
    uv.chmod(0o755)
    return folder


def bootstrap(folder: Path, home: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    environment = {**os.environ, "HOME": str(folder) if home is None else home}
    script = folder / "scripts/bootstrap.sh"
    return subprocess.run([script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["a:b", "100%", 'a"b', "a$b", "a\\b"])
def test_a_folder_with_unsupported_characters_is_refused(tmp_path: Path, name: str) -> None:
    done = bootstrap(clone(tmp_path / name))
    assert done.returncode == 1
    assert "in its path" in done.stderr
    assert done.stderr.rstrip().endswith("move it")


@pytest.mark.parametrize("name", ["metalworks", "My Projects", "it's", "測試", "x" * 150])
def test_other_folders_are_accepted(tmp_path: Path, name: str) -> None:
    done = bootstrap(clone(tmp_path / name))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("home", ["", "/nonexistent", "/proc/version"])
def test_an_unwritable_home_is_refused(tmp_path: Path, home: str) -> None:
    done = bootstrap(clone(tmp_path / "metalworks"), home)
    assert done.returncode == 1
    assert done.stderr.startswith("FAILED: HOME, ")
    assert done.stderr.rstrip().endswith("set it to one")


def test_the_environment_is_built_once_and_rebuilt_in_a_moved_folder(tmp_path: Path) -> None:
    first, second = clone(tmp_path / "first"), tmp_path / "second"
    for _ in range(2):
        bootstrap(first)
    assert len((first / "asked").read_text().splitlines()) == 1
    first.rename(second)
    (second / ".venv/old").touch()
    assert bootstrap(second).returncode == 0
    assert len((second / "asked").read_text().splitlines()) == 2
    assert not (second / ".venv/old").exists()


def test_of_several_at_once_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    folder = clone(tmp_path / "metalworks")
    uv = folder / ".cache/tools/uv-1.0/bin/uv"
    uv.write_text(UV + "until test -e proceed; do sleep 0.05; done\n")
    command = [folder / "scripts/bootstrap.sh"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stdout
        first.stdout.readline()  # it builds
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr
            assert "waiting for another process" in second.stderr.readline()
            (folder / "proceed").touch()
            assert (first.wait(), second.wait()) == (0, 0)
    assert len((folder / "asked").read_text().splitlines()) == 1

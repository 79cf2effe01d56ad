"""The Makefile: the output of `make` alone, and the exit code of `make smoke`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.repository import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # As from a shell, though the tests may have been started by make itself.
    env = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_make_alone_shows_first_what_a_newcomer_needs() -> None:
    shown = make(ROOT).stdout
    first, line, rest = shown.partition("\nLess often ---")
    assert line
    targets = re.findall(r"^  make ([a-z-]+)  ", first, re.M)
    assert {"lab", "lab-down", "smoke", "secrets", "test-fast", "test"} <= set(targets)
    assert len(targets) <= 12
    assert {"lint", "bench-flow", "soak", "locks"} <= set(re.findall(r"^  make ([a-z-]+)  ", rest, re.M))


def test_make_alone_fits_a_terminal() -> None:
    assert [line for line in make(ROOT).stdout.splitlines() if len(line) > 120] == []


def test_a_file_named_like_a_target_does_not_stop_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in re.findall(r"^([a-z-]+):", MAKEFILE, re.M):
        (tmp_path / name).touch()
    assert "Build the whole platform" in make(tmp_path, "help").stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Create a clone in a folder with a blank, whose Python exits with the code in the file `code`."""
    place = tmp_path / "My Projects"
    for folder in ("scripts", ".venv/bin"):
        (place / folder).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", place)
    programs = {"scripts/bootstrap.sh": "#!/bin/sh\n", ".venv/bin/python": '#!/bin/sh\necho "$@"\nexit $(cat code)\n'}
    for name, text in programs.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    return place


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("smoke", "smoke "),
        ("gpu-validate", "smoke --gpu "),
        ("gpu-burnin", "smoke --burnin 60 "),
        ("status", "status "),
    ],
)
def test_make_exits_as_the_check_did(checkout: Path, target: str, options: str, code: int) -> None:
    (checkout / "code").write_text(str(code))
    ended = make(checkout, target, "INVENTORY=inventory/ours")
    assert (ended.returncode, ended.stdout) == (code, f"-m scripts.site.{options}--inventory inventory/ours\n")

"""The lookup that packs a package into one program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.errors import AnsibleError

from tests.unit.repository import ROOT, load

lookup = load("plugins/lookup/python_program.py")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "with blank" / "packed"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "words.py").write_text('WORDS = "it\'s {here}"\n')
    run = "import json\nfrom .words import WORDS\ndef main(given): print(json.dumps([WORDS, given, __file__]))\n"
    (folder / "run.py").write_text(run)
    return folder


def test_the_program_runs_without_the_folder(package: Path, tmp_path: Path) -> None:
    text = lookup.program(package, "run")
    for path in package.iterdir():
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-"], input=f"{text}main(json.loads('[1]'))\n", capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr == ""
    words, given, file = json.loads(done.stdout)
    assert (words, given) == ("it's {here}", [1])
    assert file.startswith("/proc/self/fd/")
    assert [*tmp_path.rglob("*.py*")] == []


def test_the_text_changes_with_the_files_alone(package: Path) -> None:
    text = lookup.program(package, "run")
    (package / "words.py").touch()
    assert lookup.program(package, "run") == text
    (package / "words.py").write_text("WORDS = 1\n")
    assert lookup.program(package, "run") != text


def test_a_module_that_is_not_there_is_named(package: Path) -> None:
    with pytest.raises(AnsibleError, match="has no module walk"):
        lookup.program(package, "walk")


def test_the_checks_of_gpus_run_as_one_program(tmp_path: Path) -> None:
    """They start with the system's modules alone, as on a host."""
    text = lookup.program(ROOT / "roles/gpu_checks/files/gpu_checks", "validate")
    done = subprocess.run(
        [sys.executable, "-I", "-"], input=f"{text}print([*main.__globals__['CHECKS']][0])\n", capture_output=True,
        text=True, cwd=tmp_path,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("GPU devices\n", "")

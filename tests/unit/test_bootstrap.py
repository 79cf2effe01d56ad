"""scripts/bootstrap.sh: what cannot be supported is refused at the start, with the cure."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.repository import ROOT


def bootstrap(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a copy of the script in a clone that has its environment already."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/bootstrap.sh", folder / "scripts")
    for name in ("pyproject.toml", "uv.lock"):
        (folder / name).touch()
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to("/bin/true")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (folder / ".venv/made-from").write_text(f"{empty}\n")
    return subprocess.run([folder / "scripts/bootstrap.sh"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["a:b", "100%", 'a"b', "a$b", "a\\b"])
def test_a_folder_that_not_every_program_takes_is_refused(tmp_path: Path, name: str) -> None:
    done = bootstrap(tmp_path / name)
    assert done.returncode == 1
    assert "in its path" in done.stderr
    assert done.stderr.rstrip().endswith("move it")


@pytest.mark.parametrize("name", ["metalworks", "My Projects", "it's", "測試", "x" * 150])
def test_other_folders_are_fine(tmp_path: Path, name: str) -> None:
    done = bootstrap(tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")

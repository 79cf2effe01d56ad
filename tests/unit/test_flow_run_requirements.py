"""Projects without uv.lock need a requirements.txt that pins everything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from inference_wheels import add_wheel

from metalworks.errors import FlowRunError
from metalworks.flow_run import environment, lock


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    code = tmp_path / "code"
    code.mkdir()
    (tmp_path / "wheels").mkdir()
    add_wheel(tmp_path / "wheels", "prefect", "3.0.0")
    add_wheel(tmp_path / "wheels", "other", "1.0")
    (code / "requirements.txt").write_text(f"--no-index\n--find-links {tmp_path / 'wheels'}\nprefect==3.0.0  # ours\n")
    return code


def test_the_environment_contains_the_files_packages(project: Path, tmp_path: Path) -> None:
    built = environment.environment_of(project, tmp_path / "cache", print)
    assert [path.name for path in built.glob("lib/python*/site-packages/*.dist-info")] == ["prefect-3.0.0.dist-info"]
    assert environment.import_path(project) == [str(project)]
    environment.require_prefect(project, print)


def test_another_file_or_python_gives_another_environment(project: Path) -> None:
    first = environment.identity(project)
    (project / ".python-version").write_text("3.12\n")
    second = environment.identity(project)
    (project / "requirements.txt").write_text("prefect==3.0.1\n")
    assert len({first, second, environment.identity(project)}) == 3


@pytest.mark.parametrize("line", ["other", "other>=1", "other==1.*", "-r more.txt", "-e .", ".", "other==1,<2"])
def test_unpinned_lines_are_refused_and_named(line: str, project: Path, tmp_path: Path) -> None:
    with (project / "requirements.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(FlowRunError, match="line 4: "):
        environment.environment_of(project, tmp_path / "cache", print)


def test_hashes_and_markers_are_pins() -> None:
    text = "a[x]==1.0 ; python_version > '3' \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nb @ https://x/b.whl#sha256=0\n"
    lock.check_requirements(text)
    assert lock.has_hashes(text)
    assert not lock.has_hashes("a==1")


def test_a_project_without_either_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowRunError, match=r"has neither uv\.lock nor requirements\.txt at its root"):
        lock.lock_of(tmp_path)

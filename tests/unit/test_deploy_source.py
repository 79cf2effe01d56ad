"""A deployment's code is the project's folder at a pushed commit."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from metalworks.deploy import source
from metalworks.errors import CommandError


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project in a subfolder of a repository, pushed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "ada")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "ada@example.org")
    git(tmp_path, "init", "-q", "--bare", "remote.git")
    git(tmp_path, "init", "-q", "-b", "main", "clone")
    clone = tmp_path / "clone"
    git(clone, "remote", "add", "origin", str(tmp_path / "remote.git"))
    folder = clone / "project"
    folder.mkdir()
    (clone / "other.py").write_text("")
    (folder / "flow.py").write_text("WHAT = 1\n")
    (folder / ".gitignore").write_text("secret\n")
    git(clone, "add", "--all")
    git(clone, "commit", "-qm", "first")
    git(clone, "push", "-q", "-u", "origin", "main")
    return folder


def files(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        return {item.name: archive.extractfile(item).read() for item in archive if item.isfile()}  # type: ignore[union-attr]


def test_a_pushed_commit_is_packed_the_same_each_time(project: Path, tmp_path: Path) -> None:
    found = source.read(project, as_it_is=False)
    assert (found.folder, found.branch, found.dirty, found.problems) == ("project", "main", False, ())
    assert found.commit == found.version == git(project, "rev-parse", "HEAD")
    assert found.remote == str(tmp_path / "remote.git")
    assert files(found.content) == {"flow.py": b"WHAT = 1\n", ".gitignore": b"secret\n"}
    os.utime(project / "flow.py", (0, 0))
    git(project, "config", "tar.umask", "0077")
    assert source.read(project, as_it_is=False).digest == found.digest
    assert gzip.decompress(found.content)[:10]  # and no time is in the gzip header
    assert found.content[4:8] == b"\0\0\0\0"


def test_changes_beside_the_project_do_not_matter(project: Path) -> None:
    (project.parent / "other.py").write_text("changed")
    assert source.read(project, as_it_is=False).problems == ()


@pytest.mark.parametrize("name", ["flow.py", "new.py"])
def test_uncommitted_changes_are_refused(project: Path, name: str) -> None:
    (project / name).write_text("WHAT = 2\n")
    found = source.read(project, as_it_is=False)
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"not committed: project/{name}")


def test_ignored_files_do_not_matter(project: Path) -> None:
    (project / "secret").write_text("password")
    assert source.read(project, as_it_is=False).problems == ()


def test_an_unpushed_commit_is_refused(project: Path) -> None:
    git(project, "commit", "-q", "--allow-empty", "-m", "second")
    (problem,) = source.read(project, as_it_is=False).problems
    assert "is in no branch of origin: `git push origin main`" in problem


def test_a_commit_only_on_a_deleted_remote_branch_is_refused(project: Path, tmp_path: Path) -> None:
    git(project, "checkout", "-q", "-b", "topic")
    git(project, "commit", "-q", "--allow-empty", "-m", "second")
    git(project, "push", "-q", "origin", "topic")
    assert source.read(project, as_it_is=False).problems == ()
    git(tmp_path / "remote.git", "branch", "-D", "topic")
    assert "is in no branch" in source.read(project, as_it_is=False).problems[0]


def test_an_unreachable_remote_is_reported(project: Path) -> None:
    git(project, "remote", "set-url", "origin", "/nowhere.git")
    assert "`git fetch origin` fails" in source.read(project, as_it_is=False).problems[0]


def test_a_repository_without_a_remote_is_refused(project: Path) -> None:
    git(project, "remote", "remove", "origin")
    assert "git remote add" in source.read(project, as_it_is=False).problems[0]


def test_the_working_tree_is_packed_on_request(project: Path) -> None:
    (project / "flow.py").write_text("WHAT = 2\n")
    (project / "new.py").write_text("")
    (project / "secret").write_text("password")
    found = source.read(project, as_it_is=True)
    assert found.dirty
    assert found.problems == ()
    assert found.version == f"{found.commit}-dirty-{found.digest[:8]}"
    assert files(found.content) == {"flow.py": b"WHAT = 2\n", "new.py": b"", ".gitignore": b"secret\n"}
    os.utime(project / "flow.py", (0, 0))
    assert source.read(project, as_it_is=True).digest == found.digest


def test_a_clean_pushed_tree_is_not_dirty_on_request(project: Path) -> None:
    assert source.read(project, as_it_is=True).version == git(project, "rev-parse", "HEAD")


def test_data_in_the_code_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LIMIT_BYTES", 100_000)
    (project / "data.csv").write_bytes(b"0" * 200_000)
    with pytest.raises(CommandError, match=r"data\.csv.*DVC"):
        source.read(project, as_it_is=True)
    git(project, "add", "--all")
    git(project, "commit", "-qm", "data")
    with pytest.raises(CommandError, match=r"data\.csv.*DVC"):
        source.read(project, as_it_is=False)


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="is not in a Git repository"):
        source.read(tmp_path, as_it_is=False)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://ada:token@git.example.org/a.git", "https://git.example.org/a.git"),
        ("https://token@git.example.org/a.git?x=y", "https://git.example.org/a.git"),
        ("ssh://git:pw@git.example.org:22/a.git", "ssh://git@git.example.org:22/a.git"),
        ("git@git.example.org:a.git", "git@git.example.org:a.git"),
    ],
)
def test_urls_have_no_credentials(url: str, shown: str) -> None:
    assert source.address(url) == shown

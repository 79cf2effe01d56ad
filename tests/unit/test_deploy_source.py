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


@pytest.fixture
def shared(project: Path, tmp_path: Path) -> Path:
    """Return the project with shared code as a submodule that has one of its own."""
    for name, inner in (("inner", ""), ("shared", "inner")):
        folder = tmp_path / name
        git(tmp_path, "init", "-q", "-b", "main", name)
        (folder / f"{name}.py").write_text(f"{name} = 1\n")
        if inner:
            add(folder, tmp_path / inner, "inner")
        git(folder, "add", "--all")
        git(folder, "commit", "-qm", "first")
    add(project, tmp_path / "shared", "libs/shared")
    git(project, "-c", "protocol.file.allow=always", "submodule", "update", "-q", "--init", "--recursive")
    (project / "common").symlink_to("libs/shared")
    git(project, "add", "--all")
    git(project, "commit", "-qm", "shared")
    git(project, "push", "-q", "origin", "main")
    return project


def add(folder: Path, module: Path, place: str) -> None:
    git(folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(module), place)


@pytest.mark.parametrize("dirty", [False, True])
def test_the_files_of_submodules_are_packed(shared: Path, dirty: bool) -> None:
    if dirty:
        (shared / "libs/shared/shared.py").write_text("shared = 2\n")
    found = source.read(shared, as_it_is=dirty)
    assert (found.problems, found.dirty) == ((), dirty)
    packed = files(found.content)
    assert packed["libs/shared/shared.py"] == (b"shared = 2\n" if dirty else b"shared = 1\n")
    assert packed["libs/shared/inner/inner.py"] == b"inner = 1\n"
    assert source.read(shared, as_it_is=dirty).digest == found.digest


def test_a_changed_submodule_is_not_committed(shared: Path) -> None:
    (shared / "libs/shared/shared.py").write_text("shared = 2\n")
    (problem,) = source.read(shared, as_it_is=False).problems
    assert problem.startswith("not committed: project/libs/shared")


@pytest.mark.parametrize("as_it_is", [False, True])
def test_a_submodule_that_is_not_here_is_named(shared: Path, as_it_is: bool) -> None:
    git(shared, "submodule", "deinit", "-q", "--all")
    with pytest.raises(CommandError, match=r"libs/shared is a Git submodule .* `git submodule update --init"):
        source.read(shared, as_it_is=as_it_is)


def test_what_releases_leave_out_is_packed_and_the_index_stays(project: Path) -> None:
    (project / ".gitattributes").write_text("flow.py export-ignore\n*.txt export-subst\n")
    (project / "about.txt").write_text("$Format:%H$\n")
    git(project, "add", "--all")
    git(project, "commit", "-qm", "second")
    git(project, "push", "-q", "origin", "main")
    packed = files(source.read(project, as_it_is=False).content)
    assert packed["flow.py"] == b"WHAT = 1\n"
    assert packed["about.txt"] == b"$Format:%H$\n"
    assert git(project, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://git.example.org/team/a.git", "git@git.example.org:team/a.git", True),
        ("ssh://git@Git.example.org:2222/team/a", "https://git.example.org/team/a/", True),
        ("git@git:a.git", "git@git:b.git", False),
        ("git@git:ada/a.git", "git@git:team/a.git", False),
        ("https://one.example.org/a.git", "https://two.example.org/a.git", False),
        ("/srv/a.git", "/srv/a", True),
        ("", "", True),
        ("", "git@git:a.git", False),
    ],
)
def test_a_repository_is_the_same_by_any_protocol(one: str, other: str, same: bool) -> None:
    assert source.same_repository(one, other) is same


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

"""scripts/maintenance/release.py: checks before a release, reproducible builds, and installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.common import ProblemError
from scripts.maintenance import release

GALAXY = """
namespace: metalworks
name: platform
version: 0.1.0
readme: README.md
authors: [Metalworks]
"""
CHANGELOG = """# Changelog

## [Unreleased]

## [0.1.0] - 2026-11-28

- First.

## [0.0.9] - 2026-01-01

- Old.
"""
FILES = {
    "galaxy.yml": GALAXY,
    "README.md": "# Metalworks\n",
    "CHANGELOG.md": CHANGELOG,
    "pyproject.toml": '[project]\nname = "metalworks"\nversion = "0.1.0"\n',
    ".gitignore": "/build/\n",
    **{f"plugins/modules/{name}.py": f'"""Module {name}."""\n' for name in ("b", "a", "c")},
}
TARBALL = "metalworks-platform-0.1.0.tar.gz"


def git(folder: Path, *arguments: str) -> str:
    author = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    variables = {**os.environ, **author, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(["git", *arguments], cwd=folder, env=variables, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Change something")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that is ready to be released, in a folder with a blank."""
    place = tmp_path / "My Projects"
    place.mkdir()
    git(place, "init", "--quiet")
    commit(place, **FILES)
    use(place, monkeypatch)
    for what in ("NAME", "EMAIL"):
        monkeypatch.setenv(f"GIT_COMMITTER_{what}", "a@b.c")
    return place


def use(place: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Build the release from the repository in this folder."""
    monkeypatch.setattr(release, "ROOT", place)
    monkeypatch.setattr(release, "RESULT", place / "build/release")
    monkeypatch.setattr(sys, "argv", ["release", *options])


def test_a_release_is_prepared_without_a_tag(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release.main()
    result = repository / "build/release"
    assert sorted(path.name for path in result.iterdir()) == ["CHANGES.md", "SHA256SUMS", TARBALL]
    checked = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=result, capture_output=True, text=True, check=True
    )
    assert checked.stdout.splitlines() == ["CHANGES.md: OK", f"{TARBALL}: OK"]
    assert (result / "CHANGES.md").read_text() == "# Metalworks 0.1.0\n\n- First.\n"
    assert git(repository, "tag") == ""
    assert "git tag --annotate v0.1.0" in capsys.readouterr().out


def test_another_clone_builds_the_same_bytes_later(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release.main()
    other = repository.with_name("other")
    git(repository.parent, "clone", "--quiet", str(repository), str(other))
    (other / "build").mkdir()
    (other / "build/ignored").touch()
    use(other, monkeypatch)
    release.main()
    sums = [(place / "build/release/SHA256SUMS").read_text() for place in (repository, other)]
    assert sums[0] == sums[1]


def test_the_collection_installs_with_all_its_files(repository: Path, tmp_path: Path) -> None:
    release.main()
    program = str(Path(sys.executable).with_name("ansible-galaxy"))
    tarball = repository / "build/release" / TARBALL
    command = [program, "collection", "install", str(tarball), "--collections-path", str(tmp_path / "empty")]
    subprocess.run([*command, "--offline"], cwd=tmp_path, check=True, capture_output=True)
    installed = tmp_path / "empty/ansible_collections/metalworks/platform"
    assert sorted(path.name for path in (installed / "plugins/modules").iterdir()) == ["a.py", "b.py", "c.py"]


def test_all_problems_are_reported_at_once(repository: Path) -> None:
    (repository / "pyproject.toml").write_text('[project]\nname = "metalworks"\nversion = "0.2.0"\n')
    (repository / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n- First.\n")
    git(repository, "tag", "v0.1.0")
    commit(repository, notes="later\n")
    (repository / "README.md").write_text("# Changed\n")
    with pytest.raises(ProblemError) as told:
        release.main()
    for part in ("pyproject.toml has 0.2.0, galaxy.yml has 0.1.0", "M README.md", "no section", "v0.1.0 exists"):
        assert part in str(told.value)
    assert not (repository / "build").exists()


def test_an_empty_section_does_not_count(repository: Path) -> None:
    (repository / "CHANGELOG.md").write_text(CHANGELOG.replace("- First.", ""))
    assert release.changes("0.1.0") == ""
    assert release.changes("0.0.9") == "- Old."


def test_without_a_collection_nothing_is_released(repository: Path) -> None:
    (repository / "galaxy.yml").unlink()
    with pytest.raises(ProblemError, match=r"galaxy\.yml is missing"):
        release.main()


def test_a_tag_is_created_on_request_and_kept_by_another_build(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(repository, monkeypatch, "--tag")
    release.main()
    assert git(repository, "cat-file", "-t", "v0.1.0") == "tag"
    assert git(repository, "rev-list", "-n", "1", "v0.1.0") == git(repository, "rev-parse", "HEAD")
    made = git(repository, "rev-parse", "v0.1.0")
    release.main()
    assert git(repository, "rev-parse", "v0.1.0") == made
    assert capsys.readouterr().out.rstrip().endswith("git push origin v0.1.0")

"""The commit of the code, and the uncommitted changes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from . import masking
from .deadline import Deadline, Late

COMMIT = "mlflow.source.git.commit"
BRANCH = "mlflow.source.git.branch"
REMOTE = "mlflow.source.git.repoURL"
DIRTY = "git.dirty"
PUSHED = "git.pushed"
FOLDER = "git.folder"
DIFF_BYTES = 10_000_000
_PROJECT = (".dvc", "pyproject.toml", "uv.lock", "requirements.txt")


class GitError(Exception):
    """Git failed; the message says why."""


class Call:
    """A Git command that runs in the background."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        """Start it. Raises GitError if there is no Git."""
        # Read only: take no locks that would block the user's own Git, and never prompt.
        quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        try:
            self.process = subprocess.Popen(
                ["git", *arguments],
                cwd=folder,
                env={**os.environ, **quiet},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise GitError(f"git cannot be started: {error.strerror}") from error
        self.answer: tuple[int, str, str] | None = None

    def __call__(self, deadline: Deadline) -> tuple[int, str, str]:
        """Return its status, output and errors. Raises Late; call it again later."""
        if self.answer is None:
            try:
                output, errors = self.process.communicate(timeout=deadline.left)
            except subprocess.TimeoutExpired:
                raise Late from None
            self.answer = self.process.returncode, os.fsdecode(output), os.fsdecode(errors)
        return self.answer


class Repository:
    """The clone that contains a folder, in its current state."""

    def __init__(self, root: Path, project: Path, commit: str, branch: str) -> None:
        """Start the Git commands. Raises GitError."""
        self.root, self.project, self.commit, self.branch = root, project, commit, branch
        self._status = Call(root, "status", "--porcelain=v2", "-z", "--untracked-files=normal")
        self._settings = Call(root, "config", "-z", "--get-regexp", r"^(remote\..*\.url|branch\..*\.remote)$")
        self._holds = commit and Call(root, "for-each-ref", "--count=1", f"--contains={commit}", "refs/remotes")
        self._known: Call | None = None

    @property
    def folder(self) -> str:
        """Return the project's folder within the repository."""
        relative = self.project.relative_to(self.root).as_posix()
        return "" if relative == "." else relative

    def at_once(self) -> dict[str, str]:
        """Return the tags that are known already."""
        found = {COMMIT: self.commit, BRANCH: self.branch}
        return {name: value for name, value in found.items() if value} | {FOLDER: self.folder}

    def remote(self, deadline: Deadline) -> str | None:
        """Return the URL of the branch's remote, else of origin, else of any remote, else None."""
        lines = [entry.partition("\n") for entry in self._settings(deadline)[1].split("\0") if entry]
        settings = {name: value for name, _, value in reversed(lines)}
        urls = {name[len("remote.") : -len(".url")]: url for name, url in settings.items() if name.endswith(".url")}
        wanted = [settings.get(f"branch.{self.branch}.remote", ""), "origin", *sorted(urls)]
        return next((masking.address(urls[name]) for name in wanted if name in urls), None)

    def changes(self, deadline: Deadline) -> tuple[bool, list[str]]:
        """Tell whether tracked files differ from the commit, and return the untracked files."""
        status, output, errors = self._status(deadline)
        if status:
            raise GitError(f"git status: {_last(errors)}")
        lines = output.split("\0")
        # For a renamed file, the old name follows as an extra field, which may look like anything.
        fields = [line for line, before in zip(lines, ["", *lines]) if line and not before.startswith("2 ")]  # noqa: B905
        untracked = [line[2:] for line in fields if line.startswith("? ")]
        return len(untracked) < len(fields), untracked

    def tags(self, deadline: Deadline) -> dict[str, str]:
        """Return all tags. Raises Late and GitError."""
        found = self.at_once()
        tracked, untracked = self.changes(deadline)
        found[DIRTY] = _word(tracked or bool(untracked))
        remote = self.remote(deadline)
        if remote:
            found[REMOTE] = remote
        if self._holds and self._holds(deadline)[1]:
            found[PUSHED] = "true"
        else:
            # A clone that never fetched knows nothing about the remote.
            self._known = self._known or Call(self.root, "for-each-ref", "--count=1", "refs/remotes")
            found[PUSHED] = "unknown" if remote and not self._known(deadline)[1] else "false"
        return found

    def diff(self) -> bytes:
        """Return the diff to the commit, and only the names of untracked files."""
        tracked, untracked = self.changes(Deadline())
        # As comments before the first file, where `git apply` ignores them.
        lines = ["# Untracked files, not included here:", *(f"#   {name}" for name in untracked)] if untracked else []
        head = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
        if not tracked:
            return _cut(head)
        base = self.commit or "--cached"
        line = ["git", "diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", base, "--"]
        with subprocess.Popen(
            line, cwd=self.root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None  # noqa: S101
            body = process.stdout.read(DIFF_BYTES + 1)
            process.kill()
        return _cut(head + body)


def repository(place: Path, deadline: Deadline) -> Repository | None:
    """Return the clone that contains a folder, or None. Raises GitError and Late."""
    if not in_clone(place):
        return None
    call = Call(place, "rev-parse", "--show-toplevel", "HEAD", "--symbolic-full-name", "HEAD")
    _, output, errors = call(deadline)
    lines = output.splitlines()
    if not lines:
        raise GitError(f"git: {_last(errors)}")
    root = Path(lines[0])
    commit = next((line for line in lines[1:] if re.fullmatch("[0-9a-f]{40,64}", line)), "")
    branch = next((line[len("refs/heads/") :] for line in lines[1:] if line.startswith("refs/heads/")), "")
    return Repository(root, project(place.resolve(), root), commit, branch)


def in_clone(place: Path) -> bool:
    """Tell whether a folder seems to be in a clone, without running Git."""
    return any((folder / ".git").exists() for folder in (place, *place.parents)) or "GIT_DIR" in os.environ


def project(place: Path, root: Path | None) -> Path:
    """Return the project's folder in the clone: DVC's root, else the nearest folder with an environment file.

    Without a clone, look in all folders above; the default is the place itself.
    """
    above = [folder for folder in (place, *place.parents) if root is None or folder.is_relative_to(root)]
    found = [folder for folder in above if (folder / _PROJECT[0]).is_dir()]
    found += [folder for folder in above if any((folder / name).is_file() for name in _PROJECT[1:])]
    return (found or [root or place])[0]


def given(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of code that came without its repository, from the deployment's variables."""
    commit = variables.get("METALWORKS_GIT_COMMIT", "")
    if not commit:
        return {}
    dirty = variables.get("METALWORKS_GIT_DIRTY", "").lower()
    found = {
        COMMIT: commit,
        BRANCH: variables.get("METALWORKS_GIT_BRANCH", ""),
        REMOTE: masking.address(variables.get("METALWORKS_GIT_REMOTE", "")),
        DIRTY: dirty if dirty in ("true", "false") else "",
        PUSHED: "unknown",
    }
    folder = variables.get("METALWORKS_GIT_FOLDER", "")
    return {name: value for name, value in found.items() if value} | {FOLDER: folder}


def _cut(content: bytes) -> bytes:
    if len(content) <= DIFF_BYTES:
        return content
    return content[:DIFF_BYTES] + f"\n# Cut here: the difference is larger than {DIFF_BYTES} bytes.\n".encode()


def _word(value: bool) -> str:
    return "true" if value else "false"


def _last(errors: str) -> str:
    return masking.text((errors.strip().splitlines() or ["no answer"])[-1])

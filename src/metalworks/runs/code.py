"""The code of a run: a clone of its remote at its commit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from metalworks.runs import record
from metalworks.runs.record import Recorded


def git(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Git, whatever comes of it."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def last_line(text: str) -> str:
    """Return what a program said last, which mostly is why it failed."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message").strip()


def places(old: Recorded) -> bool:
    """Tell whether the run says where its code is."""
    commit = re.fullmatch("[0-9a-f]{40,64}", old.tags.get(record.COMMIT, ""))
    return bool(commit and old.tags.get(record.REMOTE) and _inside(old.tags.get(record.FOLDER, "")))


def check(old: Recorded) -> list[str]:
    """Return what the run's record of its code lacks for making it again."""
    tags, missing = old.tags, []
    if not re.fullmatch("[0-9a-f]{40,64}", tags.get(record.COMMIT, "")):
        missing.append("code: no commit is recorded (made outside a Git repository, or without the MLflow plugin)")
    if not tags.get(record.REMOTE):
        missing.append("code: no remote is recorded to clone from (the repository had none: `git remote add`)")
    if tags.get(record.DIRTY) == "true":
        missing.append(f"code: the tree was not as committed; {_describe(old.diff)}: commit, push and run again")
    elif tags.get(record.DIRTY) != "false":
        missing.append("code: whether the tree was as committed is not recorded")
    if not _inside(tags.get(record.FOLDER, "")):
        missing.append(f"code: the folder {tags[record.FOLDER]!r} is none of a repository")
    return missing


def _describe(diff: str | None) -> str:
    """Say what the file git.diff of a run holds."""
    if diff is None:
        return "what differed was not kept"
    files = sorted(set(re.findall(r"^diff --git a/.* b/(.*)$", diff, re.MULTILINE)))
    return f"the difference is in the run's file versions/git.diff ({', '.join(files) or 'no tracked file'})"


def _inside(folder: str) -> bool:
    path = Path(folder)
    return not path.is_absolute() and ".." not in path.parts


def fetch(remote: str, commit: str, into: Path, *, keep: bool) -> str | None:
    """Make the folder a clone of the remote at the commit; return why that cannot be.

    Objects that the clone around the current directory has are borrowed, or copied if the new one is to outlive it.
    """
    here = git("rev-parse", "--path-format=absolute", "--git-common-dir").stdout.strip()
    borrow = ["--reference-if-able", here, *(["--dissociate"] if keep else [])] if here else []
    cloned = git("clone", "--quiet", "--no-checkout", *borrow, "--", remote, str(into))
    if cloned.returncode:
        return f"code: {remote} cannot be cloned: {last_line(cloned.stderr)}"
    # That a commit is here is no proof: it may be a borrowed one that was never pushed.
    if not git("for-each-ref", f"--contains={commit}", "--count=1", "refs/remotes", "refs/tags", folder=into).stdout:
        # Hosts keep commits that no branch leads to any more for a while, and give them when asked by name.
        shutil.rmtree(into)
        git("init", "--quiet", str(into))
        git("remote", "add", "--", "origin", remote, folder=into)
        asked = git("fetch", "--quiet", "--depth=1", "origin", commit, folder=into)
        if asked.returncode:
            return (
                f"code: commit {commit} is not in {remote} (never pushed, or vanished after a rebase): push it from "
                f"the clone where the run was made ({last_line(asked.stderr)})"
            )
    placed = git("checkout", "--quiet", "--detach", commit, folder=into)
    return f"code: commit {commit} cannot be checked out: {last_line(placed.stderr)}" if placed.returncode else None

"""The code of a run: a clone of its remote at its commit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from metalworks.runs import record
from metalworks.runs.record import Recorded


def git(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Git; the caller checks the return code."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def last_line(text: str) -> str:
    """Return the last line of a program's output, which usually says why it failed."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message").strip()


def places(old: Recorded) -> bool:
    """Tell whether the run recorded where its code is."""
    commit = re.fullmatch("[0-9a-f]{40,64}", old.tags.get(record.COMMIT, ""))
    return bool(commit and old.tags.get(record.REMOTE) and _inside(old.tags.get(record.FOLDER, "")))


def check(old: Recorded) -> list[str]:
    """Return what is missing in the run's record of its code to reproduce it."""
    tags, missing = old.tags, []
    if not re.fullmatch("[0-9a-f]{40,64}", tags.get(record.COMMIT, "")):
        missing.append("code: no commit is recorded (it ran outside a Git repository, or without the MLflow plugin)")
    if not tags.get(record.REMOTE):
        missing.append("code: no remote is recorded to clone from: `git remote add`, push, and run again")
    if tags.get(record.DIRTY) == "true":
        missing.append(f"code: there were uncommitted changes; {_describe(old.diff)}: commit, push and run again")
    elif tags.get(record.DIRTY) != "false":
        missing.append("code: it is not recorded whether there were uncommitted changes")
    if not _inside(tags.get(record.FOLDER, "")):
        missing.append(f"code: the recorded folder {tags[record.FOLDER]!r} is not inside a repository")
    return missing


def _describe(diff: str | None) -> str:
    """Describe the content of a run's file git.diff."""
    if diff is None:
        return "they were not recorded"
    files = sorted(set(re.findall(r"^diff --git a/.* b/(.*)$", diff, re.MULTILINE)))
    return f"they are in the run's file versions/git.diff ({', '.join(files) or 'no tracked file'})"


def _inside(folder: str) -> bool:
    path = Path(folder)
    return not path.is_absolute() and ".." not in path.parts


def fetch(remote: str, commit: str, into: Path, *, keep: bool) -> str | None:
    """Clone the remote into the folder at the commit; return the problem, or None.

    Objects of the clone around the current directory are borrowed, or copied if the new clone is kept.
    """
    here = git("rev-parse", "--path-format=absolute", "--git-common-dir").stdout.strip()
    borrow = ["--reference-if-able", here, *(["--dissociate"] if keep else [])] if here else []
    cloned = git("clone", "--quiet", "--no-checkout", *borrow, "--", remote, str(into))
    if cloned.returncode:
        return f"code: cannot clone {remote}: {last_line(cloned.stderr)}"
    # The commit may be a borrowed object that was never pushed, so check that a remote branch or tag contains it.
    if not git("for-each-ref", f"--contains={commit}", "--count=1", "refs/remotes", "refs/tags", folder=into).stdout:
        # Git hosts keep commits that no branch contains for a while, and serve them by name.
        shutil.rmtree(into)
        git("init", "--quiet", str(into))
        git("remote", "add", "--", "origin", remote, folder=into)
        asked = git("fetch", "--quiet", "--depth=1", "origin", commit, folder=into)
        if asked.returncode:
            return (
                f"code: commit {commit} is not in {remote} (never pushed, or removed by a rebase): push it from "
                f"the clone where the run was started ({last_line(asked.stderr)})"
            )
    placed = git("checkout", "--quiet", "--detach", commit, folder=into)
    return f"code: cannot check out commit {commit}: {last_line(placed.stderr)}" if placed.returncode else None

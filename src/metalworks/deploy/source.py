"""The code of a deployment: the project's folder at a Git commit, as an archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from metalworks.errors import CommandError

LIMIT_BYTES = 100_000_000
"""Size limit of the unpacked archive. Code is small; anything larger is data, which belongs in DVC."""


@dataclass(frozen=True)
class Source:
    """A project at a commit, or its working tree."""

    folder: str
    """Folder of the project in the repository; empty for the root."""
    commit: str
    branch: str
    remote: str
    """URL to clone, without credentials; empty if there is none."""
    dirty: bool
    """Whether the code is that of the working tree."""
    content: bytes
    """A tar.gz archive, identical for identical files."""
    problems: tuple[str, ...]
    """Why a worker or a colleague could not get this code."""

    @property
    def digest(self) -> str:
        """Return the archive's SHA-256."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def version(self) -> str:
        """Return the version of the deployments."""
        return f"{self.commit}-dirty-{self.digest[:8]}" if self.dirty else self.commit


def git(*arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run Git without password prompts; the caller checks the return code."""
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **quiet}, capture_output=True, check=False
    )


def _line(*arguments: str, folder: Path) -> str:
    """Return Git's output; empty if it fails."""
    return git(*arguments, folder=folder).stdout.decode(errors="replace").strip()


def address(url: str) -> str:
    """Return a URL to clone without credentials; SSH URLs keep their user, which is not a secret."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    kept = f"{user.partition(':')[0]}@" if at and parts.scheme.endswith("ssh") else ""
    return urlunsplit((parts.scheme, kept + host, parts.path, "", ""))


def read(project: Path, *, as_it_is: bool) -> Source:
    """Return the project's code, with the problems that prevent deploying it.

    With `as_it_is`, a working tree that is not committed or pushed is not a problem.
    """
    inside = git("rev-parse", "--show-prefix", folder=project)
    if inside.returncode:
        raise CommandError(f"{project} is not in a Git repository: `git init`, commit, and push to your Git host.")
    commit = _line("rev-parse", "--quiet", "--verify", "HEAD", folder=project)
    if not commit:
        raise CommandError("the repository has no commits yet: commit and push.")
    branch = _line("symbolic-ref", "--quiet", "--short", "HEAD", folder=project)
    changed = _changed(project)
    remote, url = _remote(project, branch)
    problems = [*_uncommitted(changed), *_unpushed(project, commit, branch, remote)]
    tree = bool(changed) or (bool(problems) and as_it_is)
    return Source(
        folder=inside.stdout.decode(errors="replace").strip().rstrip("/"),
        commit=commit,
        branch=branch,
        remote=address(url),
        dirty=tree,
        content=_packed(_working_tree(project) if tree else _committed(project, commit)),
        problems=() if as_it_is else tuple(problems),
    )


def _changed(project: Path) -> list[str]:
    """Return the project's files that differ from the commit or are not tracked."""
    output = git(
        "status", "--porcelain", "--untracked-files=all", "--no-renames", "-z", "--", ".", folder=project
    ).stdout
    return [line[3:] for line in output.decode(errors="replace").split("\0") if line]


def _uncommitted(changed: list[str]) -> list[str]:
    if not changed:
        return []
    shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    return [f"not committed: {shown}. Commit and push, or discard the changes (to try them out: --dirty)"]


def _remote(project: Path, branch: str) -> tuple[str, str]:
    """Return name and URL of the branch's remote, else of origin, else of the only remote."""
    known = _line("remote", folder=project).splitlines()
    wanted = [_line("config", f"branch.{branch}.remote", folder=project) if branch else "", "origin"]
    name = next((name for name in wanted if name in known), known[0] if len(known) == 1 else "")
    return name, _line("config", "--get", f"remote.{name}.url", folder=project) if name else ""


def _unpushed(project: Path, commit: str, branch: str, remote: str) -> list[str]:
    """Fetch the remote and return why nobody else can get the commit."""
    if not remote:
        return ["the repository has no remote: `git remote add origin URL`, then push"]
    fetched = git("fetch", "--quiet", "--prune", remote, folder=project)
    if fetched.returncode:
        lines = re.sub(r"://[^\s/@]*@", "://", fetched.stderr.decode(errors="replace")).splitlines()
        return [f"cannot tell whether it is pushed: `git fetch {remote}` fails: {lines[-1] if lines else 'no message'}"]
    refs = f"refs/remotes/{remote}"
    if _line("for-each-ref", "--count=1", f"--contains={commit}", refs, folder=project):
        return []
    push = f"git push {remote} {branch}" if branch else f"git push {remote} HEAD:refs/heads/BRANCH"
    return [f"commit {commit[:10]} is in no branch of {remote}: `{push}` (to try it out: --dirty)"]


def _committed(project: Path, commit: str) -> bytes:
    """Return the folder at the commit as a tar with the commit's time, whatever the user's Git settings are."""
    done = git("-c", "tar.umask=0002", "-c", "core.autocrlf=false", "archive", "--format=tar", commit, folder=project)
    if done.returncode:
        raise CommandError(f"Git cannot pack the commit: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _working_tree(project: Path) -> bytes:
    """Return the folder's files, except ignored ones, as a tar without times and owners."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".", folder=project).stdout
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted({os.fsdecode(name) for name in listed.split(b"\0") if name}):
            path = project / name
            if not (path.is_symlink() or path.is_file()):
                continue  # deleted but still tracked, or a nested repository
            entry = archive.gettarinfo(path, name)
            entry.mtime = entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.mode = 0o775 if entry.mode & 0o100 else 0o664
            if entry.isreg():
                if packed.tell() + entry.size > LIMIT_BYTES:
                    raise CommandError(_too_large({name: entry.size}))
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            elif entry.issym():
                archive.addfile(entry)
    return packed.getvalue()


def _packed(tar: bytes) -> bytes:
    """Return the tar compressed reproducibly."""
    if len(tar) > LIMIT_BYTES:
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            sizes = {entry.name: entry.size for entry in archive}
        raise CommandError(_too_large(dict(sorted(sizes.items(), key=lambda item: -item[1])[:5])))
    return gzip.compress(tar, compresslevel=9, mtime=0)


def _too_large(sizes: dict[str, int]) -> str:
    named = ", ".join(f"{name} ({size / 1e6:.0f} MB)" for name, size in sizes.items())
    return (
        f"the project's files are larger than {LIMIT_BYTES / 1e6:.0f} MB; the largest: {named}. Put data into DVC "
        "(`dvc add`) and list results in .gitignore."
    )

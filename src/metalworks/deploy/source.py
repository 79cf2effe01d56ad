"""The code of a deployment: the project's folder at a Git commit, as an archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
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


def git(
    *arguments: str, folder: Path, variables: Mapping[str, str] | None = None, given: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run Git without password prompts; the caller checks the return code."""
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **(variables or {})}
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **quiet},
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        check=False,
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


def same_repository(one: str, other: str) -> bool:
    """Tell whether two URLs name one repository, whatever the protocol and the user."""

    def plain(url: str) -> str:
        text = url.rpartition("://")[2]
        host, slash, path = text.partition("/")
        if "://" not in url and ":" in host:  # git@host:path
            host, _, first = host.partition(":")
            path = f"{first}{slash}{path}"
        host = re.sub(r":\d+$", "", host.rpartition("@")[2]).lower()
        return f"{host}/{path.strip('/').removesuffix('.git')}"

    return plain(one) == plain(other)


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
    """Return the folder at the commit as a tar with the commit's time and the files of a checkout.

    Not by `git archive`: that leaves out submodules, and what .gitattributes marks for releases (`export-ignore`).
    """
    with tempfile.TemporaryDirectory() as scratch:
        target, index = Path(scratch, "code"), Path(scratch, "index")
        names = _checkout(project, commit, target, index)
        time = int(_line("show", "--no-patch", "--format=%ct", commit, folder=project))
        return _tar(target, names, time)


def _checkout(project: Path, commit: str, target: Path, index: Path) -> list[str]:
    """Write the folder at the commit, with its submodules; return the files. The user's index stays as it is."""
    variables = {"GIT_INDEX_FILE": str(index)}
    quiet = ("-c", "core.autocrlf=false")
    steps = [git(*quiet, "read-tree", commit, folder=project, variables=variables)]
    prefix = _line("rev-parse", "--show-prefix", folder=project)
    place = Path(tempfile.mkdtemp(dir=index.parent))
    links, names = _tracked(project, variables)
    write = ("checkout-index", "-z", "--stdin", f"--prefix={place}/")
    paths = b"".join(os.fsencode(name) + b"\0" for name in names)
    steps.append(git(*quiet, *write, folder=project, variables=variables, given=paths))
    for done in steps:
        if done.returncode:
            raise CommandError(f"Git cannot pack the commit: {done.stderr.decode(errors='replace').strip()}")
    if (place / prefix).is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        (place / prefix).rename(target)
    target.mkdir(parents=True, exist_ok=True)
    for name, wanted in links.items():
        module = _submodule(project, name, wanted)
        names += [f"{name}/{inner}" for inner in _checkout(module, wanted, target / name, index)]
    return names


def _tracked(project: Path, variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the submodules of a folder with their commits, and its other files, as an index has them."""
    listed = git("ls-files", "-z", "--stage", "--", ".", folder=project, variables=variables).stdout
    links, names = dict[str, str](), []
    for line in filter(None, listed.split(b"\0")):
        about, _, name = line.partition(b"\t")
        mode, commit, _ = about.decode().split()
        if mode == "160000":
            links[os.fsdecode(name)] = commit
        else:
            names.append(os.fsdecode(name))
    return links, names


def _submodule(project: Path, name: str, commit: str) -> Path:
    """Return where a submodule is checked out; raise CommandError if its commit is not there."""
    folder = project / name
    if not (folder / ".git").exists() or git("cat-file", "-e", commit, folder=folder).returncode:
        raise CommandError(
            f"{name} is a Git submodule whose commit {commit[:10]} is not here: `git submodule update --init "
            "--recursive`"
        )
    return folder


def _working_tree(project: Path) -> bytes:
    """Return the folder's files, except ignored ones, as a tar without times and owners."""
    return _tar(project, _present(project), 0)


def _present(project: Path) -> list[str]:
    """Return the files of a working tree, those of its submodules among them."""
    links, names = _tracked(project, {})
    others = git("ls-files", "-z", "--others", "--exclude-standard", "--", ".", folder=project).stdout
    names += [os.fsdecode(name) for name in others.split(b"\0") if name]
    for name, commit in links.items():
        names += [f"{name}/{inner}" for inner in _present(_submodule(project, name, commit))]
    return names


def _tar(folder: Path, names: Iterable[str], time: int) -> bytes:
    """Return files as a tar that depends on nothing but their content and this time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(set(names)):
            path = folder / name
            if not (path.is_symlink() or path.is_file()):
                continue  # deleted but still tracked, or a nested repository
            entry = archive.gettarinfo(path, name)
            entry.mtime, entry.uid, entry.gid = time, 0, 0
            entry.uname = entry.gname = "root"
            entry.mode = 0o775 if entry.mode & 0o100 else 0o664
            if entry.islnk():  # two names of one file
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size
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

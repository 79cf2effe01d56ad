"""What scripts share: paths, running commands, locks, and reporting problems."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
LAB = CACHE / "lab"
BUILD = ROOT / "build"
LOG = BUILD / "lab.log"
OPEN_FOLDERS = ("/run/lock", "/tmp")  # noqa: S108 - a lock holds no secret
"""Folders in which every user can make files."""


class ProblemError(Exception):
    """A problem that a person has to solve. The text says what is wrong and what to do."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for child processes, with this interpreter's programs first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, **(extra or {})}


def capture(argv: Sequence[str | Path], *, stdin: str | None = None) -> str:
    """Run a command and return its output. If it fails, raise a ProblemError with the last lines of output."""
    done = subprocess.run(argv, capture_output=True, text=True, input=stdin, env=environment(), cwd=ROOT, check=False)
    if done.returncode:
        raise ProblemError(failure(argv, done.returncode, done.stderr or done.stdout))
    return done.stdout


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Run a command for its exit code alone; return whether that is 0."""
    return subprocess.run(argv, capture_output=True, env=environment(), check=False).returncode == 0


def listed_inventory(inventory: Path) -> dict[str, Any]:
    """Return what `ansible-inventory --list` says about an inventory."""
    listed: dict[str, Any] = json.loads(capture(["ansible-inventory", "-i", inventory, "--list"]))
    return listed


def write_json(path: Path, content: Any) -> None:
    """Write a file for programs to read, in a folder that is created if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def logged(argv: Sequence[str | Path], *, extra_env: Mapping[str, str] | None = None, log: Path = LOG) -> None:
    """Run a command and append its output to a log. If it fails, raise a ProblemError with the last lines."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        sink.write(f"$ {' '.join(map(str, argv))}\n".encode())
        sink.flush()
        start = sink.tell()
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment(extra_env),
            cwd=ROOT,
            check=False,
        )
    if done.returncode:
        with log.open("rb") as source:
            source.seek(start)
            output = source.read().decode(errors="replace")
        raise ProblemError(f"{failure(argv, done.returncode, output)}\nThe whole output is in {log}")


def failure(argv: Sequence[str | Path], code: int, output: str, lines: int = 15) -> str:
    """Return a summary of a failed command: the command, its exit code, and the last lines of output."""
    last = "\n".join(f"    {line}" for line in output.strip().splitlines()[-lines:])
    return f"`{' '.join(map(str, argv))}` failed with exit code {code}:\n{last}"


def wait_until(ready: Callable[[], bool], what: str, timeout: float, every: float = 0.3) -> None:
    """Wait until the condition holds. After the time limit, raise a ProblemError that says what was awaited."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise ProblemError(f"{what} (gave up after {timeout:.0f} s)")
        time.sleep(every)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Let one process of this clone at a time do this; the others wait."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("a+") as handle:
        yield from held(handle, name)


@contextmanager
def machine_lock(name: str) -> Iterator[None]:
    """Let one process on this machine at a time do this: clones share the engine, its hosts' names and addresses.

    Take the clone's locks first, then the machine's, each in one order: otherwise two processes wait for each other.
    """
    with open_for_all(shared_folder(OPEN_FOLDERS) / f"metalworks-{name}.lock") as handle:
        yield from held(handle, name)


def held(handle: IO[str], name: str) -> Iterator[None]:
    """Hold the lock of a file, which says who does; say once whom this waits for."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = "".join(letter for letter in handle.read(1000) if letter.isprintable())  # others can write there too
        print(f"Waiting for the lock `{name}`, held by {holder or 'another process'}", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    command = shlex.join(sys.orig_argv[1:])
    rewrite(handle, f"process {os.getpid()} in {ROOT}: {command}")
    try:
        yield
    finally:
        rewrite(handle, "")


def rewrite(handle: IO[str], text: str) -> None:
    """Replace a file's content and keep the file."""
    handle.seek(0)
    handle.truncate()
    handle.write(text)
    handle.flush()


def shared_folder(candidates: Sequence[str]) -> Path:
    """Return the first folder in which every user can make files: the same one for all, whoever asks."""
    for folder in map(Path, candidates):
        if folder.is_dir() and folder.stat().st_mode & 0o1777 == 0o1777:
            return folder
    raise ProblemError(f"no folder for locks: {' or '.join(candidates)} must let every user make files (mode 1777)")


def open_for_all(path: Path) -> IO[str]:
    """Open a file that every user can write to, whatever their umask; create it if it is missing.

    Linux refuses O_CREAT for another user's file in a folder like /tmp, even to root. So the file is made under another
    name and then linked.
    """
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as new:
            os.fchmod(new.fileno(), 0o666)
            with suppress(FileExistsError):
                os.link(new.name, path)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+")


def apt_install(*packages: str, reason: str) -> None:
    """Install Debian packages, or say which to install by hand."""
    names = " ".join(packages)
    if os.geteuid() != 0:
        raise ProblemError(f"{reason} needs the packages {names}: `sudo apt-get install {names}`, or run this as root")
    if not shutil.which("apt-get"):
        raise ProblemError(f"{reason} needs {names}; this machine has no apt-get, so install them by hand")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    waits = ["-o", "DPkg::Lock::Timeout=600"]  # a new machine may be installing its security updates
    with machine_lock("apt"):
        logged(["apt-get", "update", "-q"], extra_env=quiet)
        logged(["apt-get", "install", "-qy", *waits, "--no-install-recommends", *packages], extra_env=quiet)


def end(error: ProblemError) -> NoReturn:
    """Print the problem to stderr and exit with 1."""
    print(f"\nFAILED: {error}", file=sys.stderr)
    sys.exit(1)

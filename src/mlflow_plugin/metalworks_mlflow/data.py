"""The DVC outputs of a project: what the repository records, what is on disk, what the remote has."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from . import git, masking, tagging
from .deadline import Deadline, Late

PREFIX = "dvc."
FIELDS = ("md5", "size", "remote", "clean", "pushed", "recorded")
_QUICK_BYTES = 200_000
"""Files larger than this take too long to read before the run starts."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CACHED = ("outs", "metrics", "plots")


def tags(outputs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return a tag for each output, with null for unknown values.

    A path that MLflow does not allow in a tag's name, such as `year=2024.csv`, is in the value.
    """
    found = {}
    for path, facts in outputs.items():
        name = tagging.key(PREFIX + path)
        told = {} if name == PREFIX + path else {"path": path}
        found[name] = json.dumps(told | {field: facts.get(field) for field in FIELDS})
    return found


def recorded(project: Path, in_clone: bool, deadline: Deadline) -> dict[str, str]:
    """Return the tags of the outputs in dvc.lock and *.dvc, without looking at the disk. Raises Late."""
    if not (project / ".dvc").is_dir():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for file in _listed(project, deadline) if in_clone else _walked(project, deadline):
        for folder, out in _outs(file, deadline):
            place = Path(os.path.normpath(file.parent / folder / out["path"]))
            if out.get("md5") and place.is_relative_to(project):
                found[place.relative_to(project).as_posix()] = {"recorded": out["md5"]}
    return tags(found)


def _listed(project: Path, deadline: Deadline) -> list[Path]:
    """Return the files that define outputs, from Git's list without ignored files."""
    options = ["-z", "--cached", "--others", "--exclude-standard", "--", "*.dvc", "*dvc.lock"]
    _, output, _ = git.Call(project, "ls-files", *options)(deadline)
    files = [project / name for name in dict.fromkeys(output.split("\0")) if name]
    return [file for file in files if (file.suffix == ".dvc" or file.name == "dvc.lock") and file.is_file()]


def _walked(project: Path, deadline: Deadline) -> Iterator[Path]:
    """Yield the files that define outputs, for a project outside a clone."""
    for folder, folders, files in os.walk(project):
        deadline.check()
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if name.endswith(".dvc") or name == "dvc.lock")


def _outs(file: Path, deadline: Deadline) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cached outputs of a file, each with the folder that its path is relative to.

    Stages with variables are left to DVC.
    """
    content = _read(file, deadline)
    if file.suffix == ".dvc":
        yield from ((content.get("wdir", "."), out) for out in content.get("outs") or [] if out.get("cache", True))
        return
    stages = _read(file.with_name("dvc.yaml"), deadline).get("stages") or {}
    for name, locked in (content.get("stages") or {}).items():
        stage = stages.get(name)
        if not isinstance(stage, dict) or "${" in json.dumps(stage, default=str):
            continue
        named = [entry for kind in _CACHED for entry in stage.get(kind) or [] if isinstance(entry, dict)]
        uncached = {path for entry in named for path, how in entry.items() if (how or {}).get("cache") is False}
        yield from ((stage.get("wdir", "."), out) for out in locked.get("outs") or [] if out["path"] not in uncached)


def _read(file: Path, deadline: Deadline) -> dict[str, Any]:
    deadline.check()
    if not file.is_file():
        return {}
    if deadline.quick and file.stat().st_size > _QUICK_BYTES:
        raise Late
    content = yaml.load(file.read_bytes(), _LOADER)  # noqa: S506 - one of the two safe ones
    return content if isinstance(content, dict) else {}


class Dvc:
    """A process that inspects a project's outputs with a Python that has DVC."""

    def __init__(self, project: Path) -> None:
        """Start it, if the project uses DVC."""
        self.project = project
        self.failure = ""
        self._pythons = pythons() if (project / ".dvc").is_dir() else iter(())
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        self._next()

    def _next(self) -> None:
        """Start the process with the next candidate Python."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self._process = None
        for python in self._pythons:
            if self._stopped:
                return
            with suppress(OSError):
                self._process = subprocess.Popen(
                    [python, Path(__file__).with_name("dvc_outputs.py")],
                    cwd=self.project,
                    env={name: value for name, value in os.environ.items() if name not in hidden},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                return

    def facts(self) -> Iterator[dict[str, str]]:
        """Yield tags as they become known: first about the disk, then also about the remote."""
        finished = not (self.project / ".dvc").is_dir()
        while self._process is not None and not finished:
            with self._process as process:
                for line in process.stdout or ():
                    told = json.loads(line)
                    self.failure = masking.text(told.get("error", ""))
                    for facts in told.get("outputs", {}).values():
                        facts["remote"] = masking.address(facts["remote"]) if facts.get("remote") else None
                    yield tags(told.get("outputs", {}))
            finished = process.returncode == 0
            if not finished:
                self._next()
        if self._stopped and not finished:
            self.failure = "DVC: not finished when the program ended"
        elif not finished and not self.failure:
            self.failure = "DVC: not found (looked at METALWORKS_PYTHON, this environment, dvc on PATH)"

    def stop(self) -> None:
        """Stop it; the facts it has reported remain."""
        self._stopped = True
        process = self._process
        if process is not None:
            process.kill()


def pythons() -> Iterator[str]:
    """Yield the Pythons that may have DVC: the platform's, this one, that of the program dvc."""
    ours = os.environ.get("METALWORKS_PYTHON", "")
    if os.access(ours, os.X_OK):
        yield ours
    if importlib.util.find_spec("dvc"):
        yield sys.executable
    program = shutil.which("dvc")
    if program:
        file = Path(program).resolve()
        first = file.open("rb").readline(500).decode(errors="replace").strip()
        beside = file.with_name("python")
        shebang = first[2:].split(" ")[0] if first.startswith("#!") else ""
        if beside.exists() or "python" in Path(shebang).name:
            yield str(beside) if beside.exists() else shebang

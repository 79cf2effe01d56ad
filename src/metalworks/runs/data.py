"""The data of a run: exactly the versions that were on disk, through DVC's remote and cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metalworks.errors import CommandError
from metalworks.runs.code import git, last_line
from metalworks.runs.record import Data, Recorded

RECORDED_REMOTE = "recorded"
"""Name given to a remote that neither the commit nor this machine configures."""


@dataclass(frozen=True)
class Output:
    """A data path of the run, in the clone."""

    path: str
    """Path as the run recorded it."""
    target: str
    """Path from DVC's root."""
    data: Data


def dvc_program() -> str | None:
    """Return the platform's DVC, beside this Python, else the one on PATH."""
    beside = Path(sys.executable).with_name("dvc")
    return str(beside) if beside.exists() else shutil.which("dvc")


class DataCheckout:
    """The data that a run used, in a clone of its code."""

    def __init__(self, old: Recorded, clone: Path, project: Path) -> None:
        """Find DVC's root in the clone; do not change anything yet."""
        self.wanted = {path: data for path, data in old.data.items() if data.md5}
        self.clone, self.project = clone, project
        above = [folder for folder in (project, *project.parents) if folder.is_relative_to(clone)]
        self.root = next((folder for folder in above if (folder / ".dvc").is_dir()), clone)
        self.outputs: dict[str | None, list[Output]] = {}

    def prepare(self) -> list[str]:
        """Put the recorded hashes into the clone's DVC files, and return what cannot be pulled."""
        if not self.wanted:
            return []
        if dvc_program() is None:
            return ["data: dvc is not installed on this machine"]
        if not (self.root / ".dvc").is_dir():
            return ["data: the run used DVC data, but the commit has no folder .dvc"]
        tracked, missing = _tracked(self.clone), []
        for path, data in self.wanted.items():
            place = next((place for place in (self.project / path, self.clone / path) if place in tracked), None)
            if place is None:
                missing.append(f"data: {path} is in no dvc.lock or .dvc file of the commit")
                continue
            _write(tracked[place], data)
            output = Output(path, os.path.relpath(place, self.root), data)
            self.outputs.setdefault(self._remote(data.remote), []).append(output)
        return [*missing, *self._missing()]

    def pull(self) -> None:
        """Pull the files. Raises CommandError."""
        for remote, outputs in self.outputs.items():
            done = self._dvc("pull", "--quiet", *_option(remote), "--", *(output.target for output in outputs))
            if done.returncode:
                raise CommandError(f"`dvc pull` failed:\n{done.stderr.strip()}")

    def _missing(self) -> list[str]:
        """Return what the remotes do not have. To DVC, all data of a remote that does not respond is missing."""
        missing = []
        for remote, outputs in self.outputs.items():
            targets = [output.target for output in outputs]
            done = self._dvc("status", "--cloud", "--json", *_option(remote), "--", *targets)
            if done.returncode:
                missing.append(f"data: DVC cannot access its remote: {last_line(done.stderr)}")
                continue
            states: dict[str, str] = json.loads(done.stdout or "{}")
            for output in outputs:
                files = [state for name, state in states.items() if Path(name).is_relative_to(output.target)]
                # For missing directories, DVC prints only a warning with their hash.
                if "missing" in files or str(output.data.md5) in done.stderr:
                    where = output.data.remote or "its remote"
                    pushed = ": `dvc push` it where the run was started" if output.data.pushed is False else ""
                    text = f"data: {output.path} ({output.data.md5}) is not in {where}, or that does not respond"
                    missing.append(text + pushed)
        return missing

    def _remote(self, url: str | None) -> str | None:
        """Return DVC's name for the remote with this URL; add it to the clone's configuration if it has none."""
        if url is None:
            return None
        lines = [line.split("\t") for line in self._dvc("remote", "list").stdout.splitlines()]
        names = {parts[1].split(" ")[0].rstrip("/"): parts[0].strip() for parts in lines if len(parts) > 1}
        if url.rstrip("/") not in names:
            self._dvc("remote", "add", "--quiet", "--local", "--force", RECORDED_REMOTE, url)
            return RECORDED_REMOTE
        return names[url.rstrip("/")]

    def _dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        line = [dvc_program() or "dvc", *arguments]
        return subprocess.run(
            line, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )


def _option(remote: str | None) -> list[str]:
    return ["--remote", remote] if remote else []


@dataclass(frozen=True)
class Place:
    """The location of a hash: a stage in a dvc.lock, or a .dvc file."""

    file: Path
    stage: str | None
    path: str

    def outs(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the list of outputs that contains it."""
        return list((content if self.stage is None else content["stages"][self.stage]).get("outs") or [])


def _tracked(clone: Path) -> dict[Path, Place]:
    """Return output → location of its hash in the commit."""
    found = {}
    for name in git("ls-files", "-z", "--", "*.dvc", "*dvc.lock", folder=clone).stdout.split("\0"):
        file = clone / name
        if file.suffix == ".dvc":
            folders: dict[str | None, str] = {None: _read(file).get("wdir", ".")}
        elif file.name == "dvc.lock":
            stages = _read(file.with_name("dvc.yaml")).get("stages") or {}
            locked = _read(file).get("stages") or {}
            folders = {stage: (stages.get(stage) or {}).get("wdir", ".") for stage in locked}
        else:
            continue
        for stage, folder in folders.items():
            for out in Place(file, stage, "").outs(_read(file)):
                place = Path(os.path.normpath(file.parent / folder / out["path"]))
                found[place] = Place(file, stage, out["path"])
    return found


def _read(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text()) if file.exists() else None
    return content if isinstance(content, dict) else {}


def _write(place: Place, data: Data) -> None:
    """Write the recorded hash into the file; the committed one may differ."""
    content = _read(place.file)
    out = next(out for out in place.outs(content) if out["path"] == place.path)
    if out.get("md5") == data.md5:
        return
    for field in ("size", "nfiles"):
        out.pop(field, None)
    out["md5"] = data.md5
    place.file.write_text(yaml.safe_dump(content, sort_keys=False))

"""The tags of a new run: the quick ones at once, the others from a thread."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import sysconfig
import uuid
from contextlib import suppress
from pathlib import Path

import mlflow

from . import data, flow, git, later, masking, tagging
from .deadline import Deadline, Late
from .tagging import CONTEXT

_SERVER = "_MLFLOW_SERVER_FILE_STORE"
"""Set in processes of MLflow's server, which create runs on behalf of clients."""


def tags(deadline: Deadline) -> dict[str, str]:
    """Return the tags that are ready in time; a thread finds the run by one of them and adds the rest."""
    if _SERVER in os.environ:
        return {}
    look = Look(_place(), deadline)
    known = look.at_once(deadline)
    look.failures += tagging.left_out(known)
    found = tagging.fit({CONTEXT: uuid.uuid4().hex, **known})
    with suppress(RuntimeError):  # the interpreter is shutting down and cannot start a thread
        later.add(later.Pending(found[CONTEXT], mlflow.get_tracking_uri(), found, look))
    return found


class Look:
    """Collects the facts about a run's code and data."""

    def __init__(self, place: Path, deadline: Deadline) -> None:
        """Start to collect."""
        self.place = place
        self.repository: git.Repository | None = None
        self.failures: list[str] = []
        self._open = True
        self._begin(deadline)

    @property
    def project(self) -> Path:
        """Return the project's folder; outside a clone, DVC's root, else the run's folder."""
        return self.repository.project if self.repository else git.project(self.place, None)

    def _begin(self, deadline: Deadline) -> None:
        with suppress(Late):
            try:
                self.repository = git.repository(self.place, deadline)
            except git.GitError as error:
                self.failures.append(str(error))
            self._open = False

    def at_once(self, deadline: Deadline) -> dict[str, str]:
        """Return what is ready in time."""
        found = _process()
        found |= flow.tags(self.project)  # while Git works; a thread could not find this out later
        if self._open:
            return found
        found |= self.repository.at_once() if self.repository else git.given(os.environ)
        with suppress(Late, git.GitError):
            found |= self._git(deadline)
            found |= data.recorded(self.project, self.repository is not None, deadline)
        return found

    def rest(self) -> dict[str, str]:
        """Return everything about code and recorded data, however long it takes."""
        deadline = Deadline()
        if self._open:
            self._begin(deadline)
        found = git.given(os.environ) if self.repository is None else {}
        try:
            found |= self._git(deadline)
        except git.GitError as error:
            self.failures.append(str(error))
        return found | data.recorded(self.project, self.repository is not None, deadline)

    def _git(self, deadline: Deadline) -> dict[str, str]:
        return self.repository.tags(deadline) if self.repository else {}


def _process() -> dict[str, str]:
    """Return the tags about this process."""
    found = {
        "metalworks.command": json.dumps(masking.command(sys.orig_argv)),
        "metalworks.host": socket.gethostname(),
        "python.version": platform.python_version(),
    }
    reproduces = os.environ.get("METALWORKS_REPRODUCES")
    return found | ({"metalworks.reproduces": reproduces} if reproduces else {})


def _place() -> Path:
    """Return the current folder, or the program's folder if only that is in a clone."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        here = Path("/")
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None or git.in_clone(here) or os.environ.get("METALWORKS_GIT_COMMIT"):
        return here
    program = Path(file).resolve()
    installed = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "scripts")]
    if any(program.is_relative_to(folder) for folder in installed) or not git.in_clone(program.parent):
        return here
    return program.parent

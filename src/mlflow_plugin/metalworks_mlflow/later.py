"""The thread that adds to runs what was not ready when they were created."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - see _register
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import RunTag

from . import masking, packages, tagging
from .data import Dvc
from .tagging import CONTEXT

if TYPE_CHECKING:
    from .context import Look

FOLDER = "versions"
MISSING = "metalworks.missing"
"""Tag that names what could not be recorded."""
GATHER_SECONDS = 0.5
FIND_SECONDS = 30.0
BATCH = 100
"""So many tags MLflow takes at a time."""
EXIT_SECONDS = 30.0
"""How long a program waits at exit for its runs' tags."""
FORK_SECONDS = 2.0
"""How long a fork waits for the thread's call of MLflow to end."""
_log = logging.getLogger(__name__)
_calling = threading.Lock()
"""Held while the thread is in MLflow: a fork at that time would copy its libraries' locks in the locked state."""


@dataclass
class Pending:
    """A run that MLflow is creating."""

    context: str
    uri: str
    sent: dict[str, str]
    look: Look
    run: str = ""
    failures: list[str] = field(default_factory=list)

    def client(self) -> MlflowClient:
        """Return a client for the run's server, even if the current tracking URI has changed."""
        return MlflowClient(tracking_uri=self.uri)

    def add(self, found: dict[str, str]) -> None:
        """Set the tags that the run does not have yet."""
        self.failures += tagging.left_out(found)
        new = [(name, value) for name, value in tagging.fit(found).items() if self.sent.get(name) != value]
        for at in range(0, len(new), BATCH):
            part = new[at : at + BATCH]
            with _calling:
                self.client().log_batch(self.run, tags=[RunTag(name, value) for name, value in part])
            self.sent |= dict(part)

    def keep(self, name: str, content: bytes) -> None:
        """Add a file to the run."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            with _calling:
                self.client().log_artifact(self.run, str(path), FOLDER)

    def attempt(self, step: Callable[[Pending], None]) -> None:
        """Do a step for this run; a failure is recorded for the tag and does not stop other steps."""
        try:
            step(self)
        except Exception as error:
            _log.debug("A step failed", exc_info=True)
            self.failures.append(masking.text(f"{type(error).__name__}: {error}"[:500]))


class Worker:
    """One thread for all runs of the process; it asks DVC once for all runs that are pending."""

    def __init__(self) -> None:
        """Begin with nothing to do."""
        self._runs: list[Pending] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._dvc: list[Dvc] = []

    def add(self, run: Pending) -> None:
        """Add a run to complete."""
        with self._changed:
            self._runs.append(run)
            self._changed.notify()
            if self._thread is None:
                # A non-daemon thread would be joined without a timeout, and after the pools that uploads need.
                self._thread = threading.Thread(target=self._work, name="metalworks-mlflow", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Wait for the pending runs, within limits."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        if self._thread is not None:
            with suppress(KeyboardInterrupt):  # Ctrl-C ends the wait
                self._thread.join(EXIT_SECONDS)
                for dvc in self._dvc:
                    dvc.stop()
                self._thread.join(EXIT_SECONDS / 10)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._runs or self._closing.is_set())
            # Do not slow down the creation of the run, and wait for more runs.
            self._closing.wait(GATHER_SECONDS)
            with self._changed:
                runs, self._runs = self._runs, []
            if not runs:
                return
            try:
                self._complete(runs)
            except Exception:
                _log.debug("Runs were not completed", exc_info=True)

    def _complete(self, runs: list[Pending]) -> None:
        projects = {run.look.project for run in runs}
        asked = {project: Dvc(project) for project in projects}  # works while the runs are looked up
        self._dvc = list(asked.values())
        runs = [run for run in runs if self._find(run)]
        for run in runs:
            run.attempt(lambda run: run.add(run.look.rest()))
            run.attempt(lambda run: run.keep("requirements.txt", packages.requirements().encode()))
            run.attempt(_keep_diff)
        for project, dvc in asked.items():
            of_project = [run for run in runs if run.look.project == project]
            for facts in dvc.facts():
                for run in of_project:
                    run.attempt(methodcaller("add", facts))
            for run in of_project:
                failures = "; ".join(dict.fromkeys(filter(None, [*run.look.failures, dvc.failure, *run.failures])))
                if failures:
                    run.attempt(methodcaller("add", {MISSING: failures[: tagging.LONGEST]}))

    def _find(self, run: Pending) -> bool:
        """Look for the run by its tag; return False if MLflow did not create it."""
        waited = 0.0
        pause = 0.1
        while True:
            last = self._closing.is_set()  # at exit, the run has been created, or never will be
            try:
                with _calling:
                    run.run = _search(run)
            except Exception:
                _log.debug("MLflow does not respond", exc_info=True)
            if run.run or last or waited > FIND_SECONDS:
                return bool(run.run)
            self._closing.wait(pause)
            waited += pause
            pause = min(2 * pause, 2.0)


def _search(run: Pending) -> str:
    """Return the id of the run with the tag, or an empty string."""
    client = run.client()
    token = None
    while True:
        experiments = client.search_experiments(order_by=["last_update_time DESC"], page_token=token)
        found = client.search_runs(
            [one.experiment_id for one in experiments], f"tags.`{CONTEXT}` = '{run.context}'", max_results=1
        )
        token = experiments.token
        if found or not token:
            return str(found[0].info.run_id) if found else ""


def _keep_diff(run: Pending) -> None:
    """Add the diff to the commit, if there is one."""
    if run.look.repository:
        diff = run.look.repository.diff()
        if diff:
            run.keep("git.diff", diff)


_worker = Worker()


def add(run: Pending) -> None:
    """Let the thread complete a run."""
    _worker.add(run)


_forking = threading.local()


def _before_fork() -> None:
    _forking.waited = _calling.acquire(timeout=FORK_SECONDS)


def _after_fork() -> None:
    if _forking.waited:  # otherwise the call took longer and still holds the lock
        _calling.release()


def _forked() -> None:
    """Start afresh in a forked process, which has no threads."""
    global _worker, _calling
    _worker, _calling = Worker(), threading.Lock()


def _register() -> None:
    """Wait for the thread before Python shuts down the thread pools that uploads need: the last callback runs first."""
    before = getattr(threading, "_register_atexit", atexit.register)
    before(lambda: _worker.finish())
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked)


_register()

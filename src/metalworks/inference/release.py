"""A version of a model on this host: proven, started, kept running, ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalworks.inference.settings import Settings

_logger = logging.getLogger("metalworks.inference")

CARD, FACTS, VERDICT = "model.json", "facts.json", "verdict.json"
RUNNER = "metalworks_model_runner"
STUCK_SECONDS = 30.0
"""A model may work on one thing for so long, however short its callers' patience is."""
PROOFS = "proofs"
PROOFS_KEPT = 8
STOP_SECONDS = 10.0
GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Wanted:
    """A version that is to be served, as whoever fetched it says."""

    version: str
    path: str
    """Folder with model/ and model.json."""
    python: str
    """Interpreter of the version's environment."""
    environment: str
    """Digest of the lock that the environment was made from."""

    @classmethod
    def of(cls, said: dict[str, Any] | None) -> Wanted | None:
        """Return what a file says; None where it says that there is none."""
        return cls(said["version"], said["path"], said["python"], said["environment"]) if said else None

    @property
    def id(self) -> str:
        """Name of the version's processes and files: another one for a model that was registered anew."""
        # A model that is deleted and registered anew counts its versions from 1 again.
        card = Path(self.path, CARD)
        about = card.read_text() if card.exists() else ""
        total = hashlib.sha256(f"{about}\0{self.path}\0{self.python}\0{self.environment}".encode())
        return f"{self.version}-{total.hexdigest()[:8]}"


class RefusedError(Exception):
    """The version must not serve; the message says why, in one line."""


def runner_folder() -> Path:
    """Return the folder that a model's own interpreter finds the package metalworks_model_runner in."""
    found = importlib.util.find_spec(RUNNER)
    assert found is not None and found.origin is not None  # noqa: S101 (it is part of this package)
    beside = Path(found.origin).parent.parent
    if beside.name == "model_runner":  # a checkout
        return beside
    # Not among the server's own modules: those are not for a model's interpreter.
    return Path(sysconfig.get_path("data"), "share", "metalworks", "model_runner")


@functools.cache
def _provers() -> str:
    """Return a name for the programs that prove, and the device: what others found is not to be relied on."""
    total = hashlib.sha256()
    own = [Path(__file__).with_name(name) for name in ("judge.py", "onnx.py")]
    for file in [*sorted((runner_folder() / RUNNER).glob("*.py")), *own]:
        total.update(file.read_bytes())
    total.update(str(GPUS.is_dir()).encode())  # what was proven with one says nothing of serving without
    return total.hexdigest()[:8]


def tidy_proofs(settings: Settings, releases: Iterable[Release]) -> None:
    """Remove proofs that none of these versions is served from, but for the newest."""
    proofs = {path: path.stat().st_mtime for path in (settings.state / PROOFS).glob("*")}
    others = sorted(proofs.keys() - {release.proof for release in releases}, key=lambda path: proofs[path])
    for old in others[:-PROOFS_KEPT]:
        shutil.rmtree(old)


class Release:
    """One version, and its process."""

    def __init__(self, wanted: Wanted, settings: Settings) -> None:
        """Start with nothing done."""
        self.wanted, self.settings = wanted, settings
        self.id = wanted.id
        self.ready = self.preparing = self._ended = False
        self.refused, self.refused_at = "", 0.0
        self.verdict: dict[str, Any] = {}
        self.card: dict[str, Any] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether it is to be prepared."""
        return not (self.ready or self.preparing or self.refused or self._ended)

    @property
    def executor(self) -> str:
        """What answers, once that was decided."""
        return str(self.verdict.get("executor", ""))

    @property
    def proof(self) -> Path:
        """Folder with what is known of the version, and what it is served from."""
        return self.settings.state / PROOFS / f"{self.id}-{_provers()}"

    @property
    def _socket(self) -> Path:
        return self.settings.runtime / f"{self.id}.sock"

    def forget(self) -> None:
        """Let a refused version be tried again."""
        self.refused, self.refused_at = "", 0.0

    def summary(self) -> dict[str, Any]:
        """Return what state.json says of it."""
        why = self.verdict.get("why", "")
        return {
            "version": self.wanted.version,
            "model": self.card.get("name", ""),
            "executor": self.executor,
            "why": why,
        }

    def entry(self) -> dict[str, Any]:
        """Return what HTTP processes need to know."""
        return {
            "id": self.id,
            "card": self.card,
            "environment": self.wanted.environment,
            "proof": str(self.proof),
            "socket": str(self._socket),
        }

    async def prepare(self, *, hurry: bool) -> None:
        """Prove the version, start its process, and ask it for its example; ready or refused in the end.

        In a `hurry`, because nobody serves, with all processors; else it leaves one to those who answer requests.
        """
        if self.preparing:
            return
        self.preparing = True
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.load_timeout):
                self.card = json.loads(Path(self.wanted.path, CARD).read_text())
                if hurry:  # loading a model takes about as long as proving it
                    self._process = await self._spawn()
                await self._prove()
                self._process = self._process or await self._spawn()
                await self._start(self._process)
            self.ready = True
            took = time.monotonic() - began
            why = self.verdict["why"]
            _logger.info("Version %s is ready after %.1f s: %s (%s)", self.wanted.version, took, self.executor, why)
        except TimeoutError:
            self._refuse(f"it was not ready within {self.settings.load_timeout:g} s")
        except RefusedError as refused:
            self._refuse(str(refused))
        except (OSError, ValueError, KeyError) as error:
            self._refuse(f"its files cannot be read: {error}")
        finally:
            self.preparing = False
            if not self.ready:
                await self._stop()

    def _refuse(self, why: str) -> None:
        self.refused, self.refused_at = why, time.time()
        _logger.error("Version %s is refused, and what serves goes on serving: %s", self.wanted.version, why)

    async def _prove(self) -> None:
        """Find out how the version is to be asked, or take that from the last time."""
        proof = self.proof
        if (proof / VERDICT).exists():
            self.verdict = json.loads((proof / VERDICT).read_text())
            if self.verdict.get("allowed") == list(self.settings.executors):
                os.utime(proof)
                return
        if not (proof / FACTS).exists():
            await self._run(
                [self.wanted.python, "-m", RUNNER, "prove", "--model", str(self._model), "--into", str(proof)],
                # Libraries would take a thread per core, from those who answer requests meanwhile.
                {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **self._environment()},
            )
        judge = [sys.executable, "-m", "metalworks.inference.judge", str(proof), json.dumps(self.settings.executors)]
        await self._run(judge, {**os.environ})
        self.verdict = json.loads((proof / VERDICT).read_text())

    @property
    def _model(self) -> Path:
        return Path(self.wanted.path, "model").resolve()  # MLflow follows no links

    def _environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(runner_folder()), "PYTHONDONTWRITEBYTECODE": "1", "DO_NOT_TRACK": "true"}
        return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **own}

    async def _run(self, command: list[str], environment: dict[str, str]) -> None:
        """Run a program to its end; raise RefusedError with its last line when it fails."""
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        lines = said.decode(errors="replace").strip().splitlines()
        if process.returncode:
            for line in lines[-30:]:
                _logger.error("  %s", line)
            end = lines[-1] if lines else "it said nothing"
            if process.returncode < 0:
                end = f"its process was ended by {signal.Signals(-process.returncode).name}; {end}"
            raise RefusedError(end.removeprefix("ProofError: "))

    async def _start(self, process: asyncio.subprocess.Process) -> None:
        """Let the model's process serve, and ask it for the example; then keep it running."""
        if not await self._serves(process):
            raise RefusedError("its process ended while it loaded the model; the journal has what it said")
        facts = json.loads((self.proof / FACTS).read_text())
        if facts["example"] is not None:
            await self._ask_example(facts)
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def _spawn(self) -> asyncio.subprocess.Process:
        """Start a process that loads the model, and then waits to be told how to serve it."""
        self._socket.unlink(missing_ok=True)
        command = [self.wanted.python, "-m", RUNNER, "serve", "--model", str(self._model)]
        command += ["--proof", str(self.proof), "--socket", str(self._socket)]
        command += ["--max-rows", str(self.settings.max_batch_rows)]
        # Nobody waits for it any more then; but short times are no reason to take a busy process for one that hangs.
        command += ["--stuck-after", str(max(STUCK_SECONDS, self.settings.request_timeout))]
        command += ["--first-after", str(self.settings.load_timeout)]
        # Its standard input ends with this process, and it with that.
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*command, env=self._environment(), stdin=pipe)

    async def _serves(self, process: asyncio.subprocess.Process) -> bool:
        """Tell a process by which way to ask the model; whether it then listens, or has ended."""
        assert process.stdin is not None  # noqa: S101 (it was made with one)
        # For whole requests it asks MLflow, whatever the way for arrays is.
        process.stdin.write(f"{self.verdict['way']}\n".encode())
        while process.returncode is None and not self._socket.exists():
            await asyncio.sleep(0.05)
        return process.returncode is None

    async def _ask_example(self, facts: dict[str, Any]) -> None:
        """Raise RefusedError unless the process answers the recorded example as the proof did."""
        from metalworks_model_runner.json_equality import same

        from metalworks.inference.example import ask

        try:
            answer = await ask(self._socket, json.dumps(facts["example"]).encode())
        except (OSError, asyncio.IncompleteReadError) as error:
            raise RefusedError(f"its process does not answer: {error}") from error
        if not same(answer, facts["example_answer"]):
            raise RefusedError("it answers its example otherwise than it did when it was proven: it is not repeatable")

    async def _keep(self) -> None:
        """Start the process again when it ends."""
        wait = 0.1
        while not self._ended:
            if self._process is not None:
                began = time.monotonic()
                code = await self._process.wait()
                wait = 0.1 if time.monotonic() - began > 60 else min(wait * 2, 10.0)
                _logger.error("The process of version %s ended with %s; it is started again", self.wanted.version, code)
            if self._ended:
                return
            await asyncio.sleep(wait)
            try:
                self._process = await self._spawn()
            except OSError as error:  # too many processes, or no memory for one more: for now
                _logger.error("It cannot be: %s", error)
                wait, self._process = min(max(wait * 2, 0.1), 10.0), None
                continue
            await self._serves(self._process)

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._socket.unlink(missing_ok=True)

    async def end(self) -> None:
        """End the version's process for good."""
        self._ended, self.ready = True, False
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._stop()

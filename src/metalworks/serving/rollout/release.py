"""A version of a model on this host: checks it, starts its process, keeps that running, ends it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import os
import shutil
import signal
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from metalworks_model_runner.facts import FORM, VALUES

from metalworks.contracts import (
    CARD,
    FACTS,
    VERDICT,
    Card,
    DesiredVersion,
    EquivalenceVerdict,
    Facts,
    LaunchRequest,
    RouteEntry,
    ServingState,
)
from metalworks.install_errors import missing_library
from metalworks.model_python import difference, installed, recorded
from metalworks.plain_files import read
from metalworks.serving.rollout.adopt import adopt
from metalworks.serving.rollout.launcher import EVIDENCE, RUNNER, SOCKET, runner_folder
from metalworks.serving.rollout.model_process import LauncherLostError, ModelProcess
from metalworks.serving.settings import Settings

_logger = logging.getLogger("metalworks.serving")

CARD_BYTES = 2**20
STUCK_SECONDS = 30.0
"""A model may always work on one task for this long, however short request_timeout is."""
EVIDENCE_KEPT = 8
LOST_MOST = 3
"""A version is refused when the launcher ended this often while it was prepared: it may be the cause."""
GPUS = Path("/proc/driver/nvidia/gpus")


def release_id(desired: DesiredVersion) -> str:
    """Return the name of a version's processes and files; it differs if the model was deleted and registered again."""
    # Versions of a model that is registered again start at 1.
    card = Path(desired.path, CARD)
    about = read(card, CARD_BYTES).decode() if card.exists() else ""
    total = hashlib.sha256(f"{about}\0{desired.path}\0{desired.python}\0{desired.environment}".encode())
    return f"{desired.version}-{total.hexdigest()[:8]}"


class VersionRefusedError(Exception):
    """The version must not serve; the message gives the reason in one line."""


@functools.cache
def _checks_digest() -> str:
    """Return a digest of the programs that check a model, and of the device; results of others are not reused."""
    total = hashlib.sha256()
    package = Path(__file__).parent.parent
    own = [package / "rollout/equivalence.py", package / "predict/onnx.py"]
    for file in [*sorted((runner_folder() / RUNNER).glob("*.py")), *own]:
        total.update(file.read_bytes())
    total.update(str(GPUS.is_dir()).encode())  # results with a GPU are not valid without one
    return total.hexdigest()[:8]


def remove_old_evidence(settings: Settings, releases: Iterable[Release]) -> list[str]:
    """Remove evidence that none of these versions uses, except the newest; return the names of what stays."""
    releases = [*releases]
    folders = {path: path.stat().st_mtime for path in (settings.state / EVIDENCE).glob("*")}
    others = sorted(folders.keys() - {release.evidence for release in releases}, key=lambda path: folders[path])
    for old in others[:-EVIDENCE_KEPT]:
        shutil.rmtree(old)
    return sorted({*(path.name for path in others[-EVIDENCE_KEPT:]), *(release.evidence.name for release in releases)})


class Release:
    """One version and its process."""

    def __init__(self, desired: DesiredVersion, settings: Settings) -> None:
        """Prepare nothing yet."""
        self.desired, self.settings = desired, settings
        self.id = release_id(desired)
        self.ready = self.preparing = self._ended = False
        self.refused, self.refused_at = "", 0.0
        self.verdict: EquivalenceVerdict | None = None
        self.card: Card | None = None
        self._process: ModelProcess | None = None
        self._lost = 0
        self._keeper: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether it has yet to be prepared."""
        return not (self.ready or self.preparing or self.refused or self._ended or self._process)

    @property
    def executor(self) -> str:
        """The executor, once it is chosen."""
        return self.verdict["executor"] if self.verdict else ""

    @property
    def evidence(self) -> Path:
        """Folder with facts, samples, verdict and converted models of the version."""
        return self.settings.state / EVIDENCE / f"{self.id}-{_checks_digest()}"

    @property
    def _socket(self) -> Path:
        return self.settings.models_runtime / f"{self.id}.sock"

    def forget(self) -> None:
        """Let a refused version be tried again."""
        self.refused, self.refused_at, self._lost = "", 0.0, 0

    @property
    def reason(self) -> str:
        """The reason for the executor."""
        return self.verdict["reason"] if self.verdict else ""

    @property
    def warnings(self) -> list[str]:
        """What the platform cannot check about the version."""
        return self.verdict.get("warnings", []) if self.verdict else []

    def summarize(self, since: float) -> ServingState:
        """Return its entry in state.json."""
        return {
            "version": self.desired.version,
            "model": self.card.get("name", "") if self.card else "",
            "executor": self.executor,
            "reason": self.reason,
            "warnings": self.warnings,
            "since": since,
        }

    def describe_route(self) -> RouteEntry:
        """Return its entry in route.json."""
        assert self.card is not None  # noqa: S101 (it is ready)
        return {
            "id": self.id,
            "card": self.card,
            "environment": self.desired.environment,
            "evidence": str(self.evidence),
            "socket": str(self._socket),
        }

    async def prepare(self, *, hurry: bool) -> None:
        """Check the version, start its process and ask it its example; in the end it is ready or refused.

        `hurry`: no version is in service, so take all processors instead of leaving one for requests.
        """
        if self.preparing:
            return
        self.preparing = True
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.load_timeout):
                self.card = json.loads(read(Path(self.desired.path, CARD), CARD_BYTES))
                if hurry:  # loading takes about as long as the checks
                    self._process = await self._spawn()
                await self._choose_executor()
                self._process = self._process or await self._spawn()
                await self._start(self._process)
            self.ready = True
            took = time.monotonic() - began
            message = "Version %s is ready after %.1f s: %s (%s)"
            _logger.info(message, self.desired.version, took, self.executor, self.reason)
            for warning in self.warnings:
                _logger.warning("Version %s: %s", self.desired.version, warning)
        except LauncherLostError as lost:
            self._lost += 1
            _logger.error("Preparing version %s again: %s", self.desired.version, lost)
            if self._lost >= LOST_MOST:
                self._refuse(f"{lost} under it {self._lost} times")
        except TimeoutError:
            self._refuse(f"it was not ready within {self.settings.load_timeout:g} s")
        except VersionRefusedError as refused:
            self._refuse(str(refused))
        except (OSError, ValueError, KeyError, RecursionError) as error:
            self._refuse(f"its files cannot be read: {error}")
        finally:
            self.preparing = False
            if not self.ready:
                await self._stop()

    def refuse(self, reason: str) -> None:
        """Refuse a version that was ready; the caller ends its process with `stop` once nobody uses it."""
        self.ready = False
        self._refuse(reason)

    async def stop(self) -> None:
        """End the process of a refused version, so that it can be tried again."""
        await self._end_keeper()
        await self._stop()

    def _refuse(self, reason: str) -> None:
        made, serves = recorded(Path(self.desired.path, "model")), installed(Path(self.desired.python))
        reason = " ".join(filter(None, [reason, difference(made, serves)]))
        self.refused, self.refused_at = reason, time.time()
        _logger.error("Refused version %s; the version in service stays: %s", self.desired.version, reason)

    async def _choose_executor(self) -> None:
        """Choose the executor, or reuse the last choice."""
        evidence = self.evidence
        if (evidence / VERDICT).exists():
            self.verdict = json.loads((evidence / VERDICT).read_text())
            if self.verdict is not None and self.verdict.get("allowed") == list(self.settings.executors):
                os.utime(evidence)
                return
        if not (evidence / FACTS).exists():
            await self._inspect()
            await asyncio.to_thread(adopt, self.settings.models_state, (EVIDENCE, evidence.name), evidence)
        await self._check_equivalence(evidence)
        self.verdict = json.loads((evidence / VERDICT).read_text())

    async def _inspect(self) -> None:
        """Have the launcher inspect the model; raise VersionRefusedError with the reason if that fails."""
        process = await self._launch({"do": "inspect"})
        try:
            end = await process.wait()
        finally:
            process.hang_up()
        _require_success(end.code, end.last_lines)

    async def _check_equivalence(self, evidence: Path) -> None:
        """Run the equivalence check in a separate process; raise VersionRefusedError if no executor fits."""
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "metalworks.serving.rollout.equivalence",
                str(evidence),
                json.dumps(self.settings.executors),
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None  # noqa: S101 (it has ended)
        _require_success(process.returncode, errors.decode(errors="replace").strip().splitlines()[-30:])

    async def _launch(self, request: LaunchRequest) -> ModelProcess:
        model = str(Path(self.desired.path, "model").resolve())  # MLflow follows no links
        version: LaunchRequest = {
            **request,
            "id": self.id,
            "evidence": self.evidence.name,
            "python": self.desired.python,
            "model": model,
        }
        return await ModelProcess.start(self.settings.models_runtime / SOCKET, version)

    async def _start(self, process: ModelProcess) -> None:
        """Let the model's process serve and ask it the example; then keep it running."""
        if not await self._serves(process):
            raise VersionRefusedError("its process ended while it loaded the model; see the journal")
        facts: Facts = json.loads((self.evidence / FACTS).read_text())
        if facts["example"] is not None:
            await self._ask_example(facts)
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def _spawn(self) -> ModelProcess:
        """Start a process that loads the model and then waits for its executor."""
        options = ["--max-rows", str(self.settings.max_batch_rows)]
        # After request_timeout nobody waits any more, but a short timeout must not end a process that is only busy.
        options += ["--stuck-after", str(max(STUCK_SECONDS, self.settings.request_timeout))]
        options += ["--first-after", str(self.settings.load_timeout)]
        return await self._launch({"do": "serve", "options": options})

    async def _serves(self, process: ModelProcess) -> bool:
        """Tell a process its executor; return whether it then listens, as opposed to having ended."""
        # Raw requests go through MLflow in any case.
        assert self.verdict is not None  # noqa: S101 (the equivalence check came first)
        process.tell(f"{self.verdict['function']}\n")
        while not process.ended and not self._socket.is_socket():
            await asyncio.sleep(0.05)
        if process.ended:
            await process.wait()  # raises if the launcher was lost
        return not process.ended

    async def _ask_example(self, facts: Facts) -> None:
        """Raise VersionRefusedError unless the process answers the example as it did during the inspection.

        Of a model whose answers vary, only their form is compared.
        """
        from metalworks_model_runner.json_equality import alike, same

        from metalworks.serving.rollout.example import ask

        try:
            answer = await ask(self._socket, json.dumps(facts["example"]).encode())
        except (OSError, asyncio.IncompleteReadError, ValueError, RecursionError, struct.error) as error:
            raise VersionRefusedError(f"its process does not respond: {error}") from error
        expected, varies = facts["example_answer"], facts.get("varies")
        if same(answer, expected) or varies == FORM:
            return
        if not alike(answer, expected):
            raise VersionRefusedError("its prediction for its example has another form than the one before")
        if not varies:  # only now did it show
            await self._note_that_it_varies(facts)

    async def _note_that_it_varies(self, facts: Facts) -> None:
        """Repeat the equivalence check for a model whose answers vary: MLflow's own functions are to answer."""
        (self.evidence / FACTS).write_text(json.dumps(facts | {"varies": VALUES}, indent=1))
        (self.evidence / VERDICT).unlink()
        await self._check_equivalence(self.evidence)
        self.verdict = json.loads((self.evidence / VERDICT).read_text())

    async def _keep(self) -> None:
        """Restart the process whenever it ends."""
        wait = 0.1
        while not self._ended:
            if self._process is not None:
                began = time.monotonic()
                how = await _end_of(self._process)
                wait = 0.1 if time.monotonic() - began > 60 else min(wait * 2, 10.0)
                _logger.error("The process of version %s ended with %s; starting it again", self.desired.version, how)
            if self._ended:
                return
            await asyncio.sleep(wait)
            try:
                self._process = await self._spawn()
                await self._serves(self._process)
            except OSError as error:  # too many processes or no memory: this may pass
                _logger.error("Cannot start it; trying again: %s", error)
                wait, self._process = min(max(wait * 2, 0.1), 10.0), None
            except LauncherLostError:  # wait for the next launcher
                self._process = None

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.stop()

    async def end(self) -> None:
        """End the version's process for good."""
        self._ended, self.ready = True, False
        await self._end_keeper()
        await self._stop()

    async def _end_keeper(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)


async def _end_of(process: ModelProcess) -> str:
    try:
        return str((await process.wait()).code)
    except LauncherLostError as lost:
        return f"all others: {lost}"


def _require_success(code: int, lines: list[str]) -> None:
    """Raise VersionRefusedError with the last line of a program that failed."""
    if not code:
        return
    for line in lines:
        _logger.error("  %s", line)
    end = lines[-1] if lines else "it printed no error"
    if code < 0:
        end = f"its process was ended by {_signal(-code)}; {end}"
    reason = end.removeprefix("InspectionError: ")
    cure = missing_library("\n".join(lines))
    raise VersionRefusedError(f"{reason} {cure}" if cure else reason)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

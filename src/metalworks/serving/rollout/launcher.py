"""Starts and ends the processes of a service's models: `metalworks-models`, a unit with a user of its own.

A model is code that people register, so its processes run as another user than the processes that speak HTTP, which
hold the certificate's key, the tokens and the prediction log. The supervisor asks for a process on launcher.sock in
this unit's runtime folder. One connection is one process: the first line (contracts.LaunchRequest) says which, the rest
is the process's standard input, and the launcher answers with lines (contracts.LaunchReply) when the process has
started and when it has ended. Closing the connection ends the process, so no process outlives its service.

The launcher knows no password and imports the standard library alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import pwd
import shutil
import signal
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

from metalworks.contracts import LaunchReply, LaunchRequest
from metalworks.serving.sockets import peer_uid

_logger = logging.getLogger("metalworks.serving")

RUNNER = "metalworks_model_runner"
SOCKET, EVIDENCE = "launcher.sock", "evidence"
OLD_EVIDENCE = "proofs"
"""Where release 0.1.0 kept evidence, which no later release uses."""
STOP_SECONDS = 10.0
LINE_BYTES = 2**20
OUTPUT_LINES, OUTPUT_BYTES = 30, 16 * 2**10
"""How much of a process's last lines on standard error it reports."""
LOOK_SECONDS = 0.2


def runner_folder() -> Path:
    """Return the folder from which a model's own interpreter imports metalworks_model_runner."""
    found = importlib.util.find_spec(RUNNER)
    assert found is not None and found.origin is not None  # noqa: S101 (it is part of this package)
    beside = Path(found.origin).parent.parent
    if beside.name == "model_runner":  # a checkout
        return beside
    # Apart from the server's own modules, which a model's interpreter must not see.
    return Path(sysconfig.get_path("data"), "share", "metalworks", "model_runner")


class Launcher:
    """Serves the supervisor's requests."""

    def __init__(self, runtime: Path, state: Path, uid: int) -> None:
        """Put sockets into `runtime` and evidence into `state`; serve only the user `uid`."""
        self.runtime, self.evidence, self._uid = runtime, state / EVIDENCE, uid
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By name: a process must not start while one of its name, with the same files, is ending."""
        self._inspecting: set[str] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()

    def _command(self, request: LaunchRequest) -> list[str]:
        command = [request["python"], "-m", RUNNER, request["do"], "--model", request["model"]]
        folder = str(self.evidence / request["evidence"])
        if request["do"] == "inspect":
            return [*command, "--into", folder]
        return [*command, "--evidence", folder, "--socket", str(self._socket(request)), *request["options"]]

    def _socket(self, request: LaunchRequest) -> Path:
        return self.runtime / f"{request['id']}.sock"

    def _environment(self, request: LaunchRequest) -> dict[str, str]:
        own = {"PYTHONPATH": str(runner_folder()), "PYTHONDONTWRITEBYTECODE": "1", "DO_NOT_TRACK": "true"}
        if request["do"] == "inspect":
            # Libraries would start a thread per core and slow down requests.
            own |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **own}

    def _keep(self, names: list[str]) -> None:
        """Remove the evidence of versions other than these."""
        for folder in self.evidence.glob("*"):
            if folder.name not in names and folder.name not in self._inspecting:
                shutil.rmtree(folder, ignore_errors=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (it runs)
        self._connections.add(task)
        try:
            if (uid := peer_uid(writer.get_extra_info("socket"))) != self._uid:
                _logger.error("User %s may not start processes here", uid)
                return
            request: LaunchRequest = json.loads(await reader.readline())
            if request["do"] == "keep":
                await asyncio.to_thread(self._keep, request["folders"])
                return
            async with self._turns[f"{request['do']} {request['id']}"]:
                await self._run(request, reader, writer)
        except OSError as error:  # the caller hung up
            _logger.error("The service closed its connection: %s", error)
        except (ValueError, KeyError, TypeError) as error:
            # During an upgrade, the service may still be of the previous release, whose requests have other fields.
            reason = f"malformed request ({error!r}); if the service is of another release, restart it"
            _logger.error("%s", reason)
            _send(writer, {"error": reason})
        finally:
            self._connections.discard(task)
            writer.close()

    async def _run(self, request: LaunchRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inspecting = request["do"] == "inspect"
        if inspecting:
            self._inspecting.add(request["evidence"])
            shutil.rmtree(self.evidence / request["evidence"], ignore_errors=True)
        else:
            self._socket(request).unlink(missing_ok=True)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(request),
                env=self._environment(request),
                stdin=pipe,
                stderr=pipe if inspecting else None,
                start_new_session=True,
            )
        except OSError as error:  # no such interpreter, too many processes or no memory
            self._inspecting.discard(request["evidence"] if inspecting else "")
            _send(writer, {"error": str(error)})
            return
        _send(writer, {"started": process.pid})
        told = asyncio.create_task(self._tell(process, reader))
        output = asyncio.create_task(_last_lines(process.stderr))
        # process.wait() would also wait for child processes that hold its pipes open.
        while process.returncode is None:
            await asyncio.sleep(LOOK_SECONDS / 4)
        told.cancel()
        await asyncio.wait([told])  # until it has ended, only it may read
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if inspecting:
            self._inspecting.discard(request["evidence"])
        else:
            self._socket(request).unlink(missing_ok=True)
        try:
            lines = await asyncio.wait_for(output, 1.0)
        except TimeoutError:
            lines = []
        _send(writer, {"code": process.returncode, "output": lines})
        # If this end closed first, the caller could lose replies that it has not read yet.
        while await reader.read(LINE_BYTES):
            pass

    async def _tell(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader) -> None:
        """Pass input on to the process; when the connection is closed, end the process."""
        assert process.stdin is not None  # noqa: S101 (it was made with one)
        with contextlib.suppress(OSError):
            while data := await reader.read(LINE_BYTES):
                process.stdin.write(data)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            await asyncio.sleep(STOP_SECONDS)
            process.kill()

    async def run(self) -> None:
        """Serve until told to end, and then until the service has no process here."""
        path, new = self.runtime / SOCKET, self.runtime / f"{SOCKET}.new"
        for folder in (self.runtime, self.evidence):
            folder.mkdir(parents=True, exist_ok=True)
        for stale in self.runtime.glob("*.sock*"):
            stale.unlink()
        shutil.rmtree(self.evidence.with_name(OLD_EVIDENCE), ignore_errors=True)
        loop, parent = asyncio.get_running_loop(), os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        server = await asyncio.start_unix_server(self._answer, new, limit=LINE_BYTES)
        new.chmod(0o660)  # the service is of the folder's group
        new.rename(path)  # appears only once it accepts connections
        # A service that is ending still answers open requests, and then closes its connections.
        while not (self._ending.is_set() and not self._connections) and os.getppid() == parent:
            await asyncio.sleep(LOOK_SECONDS)
        server.close()
        path.unlink(missing_ok=True)
        while self._connections and os.getppid() != parent:
            await asyncio.sleep(LOOK_SECONDS)


def _send(writer: asyncio.StreamWriter, what: LaunchReply) -> None:
    with contextlib.suppress(OSError):
        writer.write(json.dumps(what).encode() + b"\n")


async def _last_lines(stream: asyncio.StreamReader | None) -> list[str]:
    """Return the last lines of a stream, once it ends."""
    if stream is None:
        return []
    kept = b""
    while data := await stream.read(OUTPUT_BYTES):
        kept = (kept + data)[-OUTPUT_BYTES:]
    return kept.decode(errors="replace").strip().splitlines()[-OUTPUT_LINES:]


def main() -> int:
    """Run until told to end, in the directories that systemd names."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="metalworks-models", description=__doc__)
    parser.add_argument(
        "--for", required=True, dest="user", help="name or number of the user whose requests are served"
    )
    user = parser.parse_args().user
    uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    runtime, state = (Path(os.environ[name]) for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"))
    asyncio.run(Launcher(runtime, state, uid).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Starts and ends the processes of a service's models: `metalworks-models`, in a unit and as a user of its own.

A model is code that people register. Its processes are another user's than those that speak HTTP, which have the key,
the tokens and the log. They are asked for on the socket launcher.sock in this unit's runtime folder. A connection is a
process: a line of JSON says which, what follows is the process's standard input, and lines of JSON answer that it was
started and how it ended. Who closes the connection ends the process, so none outlives the service that it was for.
Knows no password, and imports the standard library alone.
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
SOCKET, PROOFS = "launcher.sock", "proofs"
STOP_SECONDS = 10.0
LINE_BYTES = 2**20
SAID_LINES, SAID_BYTES = 30, 16 * 2**10
"""What a process said last on standard error, of what is told."""
LOOK_SECONDS = 0.2


def runner_folder() -> Path:
    """Return the folder that a model's own interpreter finds the package metalworks_model_runner in."""
    found = importlib.util.find_spec(RUNNER)
    assert found is not None and found.origin is not None  # noqa: S101 (it is part of this package)
    beside = Path(found.origin).parent.parent
    if beside.name == "model_runner":  # a checkout
        return beside
    # Not among the server's own modules: those are not for a model's interpreter.
    return Path(sysconfig.get_path("data"), "share", "metalworks", "model_runner")


class Launcher:
    """Answers the supervisor."""

    def __init__(self, runtime: Path, state: Path, uid: int) -> None:
        """Have sockets in `runtime` and what models leave in `state`; only the user `uid` may ask."""
        self.runtime, self.proofs, self._uid = runtime, state / PROOFS, uid
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By what a process is named after: it would take the files of one that is about to end."""
        self._proving: set[str] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()

    def _command(self, asked: LaunchRequest) -> list[str]:
        command = [asked["python"], "-m", RUNNER, asked["do"], "--model", asked["model"]]
        proof = str(self.proofs / asked["proof"])
        if asked["do"] == "prove":
            return [*command, "--into", proof]
        return [*command, "--proof", proof, "--socket", str(self._socket(asked)), *asked["options"]]

    def _socket(self, asked: LaunchRequest) -> Path:
        return self.runtime / f"{asked['id']}.sock"

    def _environment(self, asked: LaunchRequest) -> dict[str, str]:
        own = {"PYTHONPATH": str(runner_folder()), "PYTHONDONTWRITEBYTECODE": "1", "DO_NOT_TRACK": "true"}
        if asked["do"] == "prove":
            # Libraries would take a thread per core, from those who answer requests meanwhile.
            own |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **own}

    def _keep(self, names: list[str]) -> None:
        """Remove what was found out about versions that are none of these."""
        for folder in self.proofs.glob("*"):
            if folder.name not in names and folder.name not in self._proving:
                shutil.rmtree(folder, ignore_errors=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (it runs)
        self._connections.add(task)
        try:
            if (uid := peer_uid(writer.get_extra_info("socket"))) != self._uid:
                _logger.error("User %s may not ask here", uid)
                return
            asked: LaunchRequest = json.loads(await reader.readline())
            if asked["do"] == "keep":
                await asyncio.to_thread(self._keep, asked["proofs"])
                return
            async with self._turns[f"{asked['do']} {asked['id']}"]:
                await self._run(asked, reader, writer)
        except (OSError, ValueError, KeyError) as error:  # it has hung up, or it is none of ours
            _logger.error("What was asked for cannot be: %r", error)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _run(self, asked: LaunchRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proving = asked["do"] == "prove"
        if proving:
            self._proving.add(asked["proof"])
            shutil.rmtree(self.proofs / asked["proof"], ignore_errors=True)
        else:
            self._socket(asked).unlink(missing_ok=True)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(asked),
                env=self._environment(asked),
                stdin=pipe,
                stderr=pipe if proving else None,
                start_new_session=True,
            )
        except OSError as error:  # no such interpreter, too many processes, no memory for one more
            self._proving.discard(asked["proof"] if proving else "")
            _say(writer, {"error": str(error)})
            return
        _say(writer, {"started": process.pid})
        told = asyncio.create_task(self._tell(process, reader))
        said = asyncio.create_task(_last_lines(process.stderr))
        # asyncio's own way would also wait for what it started, and what that has open.
        while process.returncode is None:
            await asyncio.sleep(LOOK_SECONDS / 4)
        told.cancel()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if proving:
            self._proving.discard(asked["proof"])
        else:
            self._socket(asked).unlink(missing_ok=True)
        try:
            lines = await asyncio.wait_for(said, 1.0)
        except TimeoutError:
            lines = []
        _say(writer, {"code": process.returncode, "said": lines})
        # Who writes where nobody listens any more loses what is still to be read.
        while await reader.read(LINE_BYTES):
            pass

    async def _tell(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader) -> None:
        """Hand on what comes until nothing more does, then end the process."""
        assert process.stdin is not None  # noqa: S101 (it was made with one)
        with contextlib.suppress(OSError):
            while data := await reader.read(LINE_BYTES):
                process.stdin.write(data)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            await asyncio.sleep(STOP_SECONDS)
            process.kill()

    async def run(self) -> None:
        """Answer until told to end, and then as long as the service has processes here."""
        path, new = self.runtime / SOCKET, self.runtime / f"{SOCKET}.new"
        for folder in (self.runtime, self.proofs):
            folder.mkdir(parents=True, exist_ok=True)
        for stale in self.runtime.glob("*.sock*"):
            stale.unlink()
        loop, parent = asyncio.get_running_loop(), os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        server = await asyncio.start_unix_server(self._answer, new, limit=LINE_BYTES)
        new.chmod(0o660)  # the service is of the folder's group
        new.rename(path)  # there once somebody may connect
        # A service that ends still answers what it has been asked, and then hangs up.
        while not (self._ending.is_set() and not self._connections) and os.getppid() == parent:
            await asyncio.sleep(LOOK_SECONDS)
        server.close()
        path.unlink(missing_ok=True)
        while self._connections and os.getppid() != parent:
            await asyncio.sleep(LOOK_SECONDS)


def _say(writer: asyncio.StreamWriter, what: LaunchReply) -> None:
    with contextlib.suppress(OSError):
        writer.write(json.dumps(what).encode() + b"\n")


async def _last_lines(stream: asyncio.StreamReader | None) -> list[str]:
    """Return the last lines that come, once nothing more does."""
    if stream is None:
        return []
    kept = b""
    while data := await stream.read(SAID_BYTES):
        kept = (kept + data)[-SAID_BYTES:]
    return kept.decode(errors="replace").strip().splitlines()[-SAID_LINES:]


def main() -> int:
    """Run until told to end; systemd says where."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="metalworks-models", description=__doc__)
    parser.add_argument("--for", required=True, dest="user", help="name or number of the user who may ask")
    user = parser.parse_args().user
    uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    runtime, state = (Path(os.environ[name]) for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"))
    asyncio.run(Launcher(runtime, state, uid).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())

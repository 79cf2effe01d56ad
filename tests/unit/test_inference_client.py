"""The client of a model process when callers give up, and the end of a hanging process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from metalworks_model_runner import frames, packing

from metalworks.serving.predict.client import ModelClient, ModelDownError
from metalworks.serving.rollout.release import runner_folder

ROWS = [np.ones(3)]


class Process:
    """A fake model process that holds requests until it is told to respond."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self._buffer = frames.Buffer()
        self._came = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        while data := await reader.read(2**16):
            self.asked += [(number, kind) for number, kind, _ in self._buffer.feed(data)]
            self._came.set()

    async def came(self, count: int) -> None:
        """Wait for this many requests."""
        while len(self.asked) < count:
            self._came.clear()
            await self._came.wait()

    def answer(self) -> None:
        """Respond to the oldest request."""
        assert self._writer is not None
        number, kind = self.asked.pop(0)
        if kind == frames.RAW:
            self._writer.write(frames.frame(number, kind, [200, "text/plain"], [b"yes"]))
        else:
            about, buffers = packing.pack(ROWS)
            self._writer.write(frames.frame(number, kind, about, buffers))

    def die(self) -> None:
        """Close the connection."""
        assert self._writer is not None
        self.asked.clear()
        self._writer.close()


def between(tmp_path: Path, talk: Callable[[ModelClient, Process], Awaitable[None]]) -> None:
    """Run a conversation."""

    async def run() -> None:
        process = Process()
        server = await asyncio.start_unix_server(process.serve, str(tmp_path / "s"))
        client = ModelClient(tmp_path / "s", patience=30)
        try:
            async with asyncio.timeout(20):
                await talk(client, process)
        finally:
            client.close()
            server.close()

    asyncio.run(run())


async def given_up(asking: Awaitable[object], process: Process) -> None:
    """Send a request, and give up once the process has it."""
    task = asyncio.ensure_future(asking)
    await process.came(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_rows_are_not_sent_behind_others_that_nobody_waits_for(tmp_path: Path) -> None:
    async def talk(client: ModelClient, process: Process) -> None:
        await given_up(client.arrays(ROWS), process)
        late = asyncio.ensure_future(client.arrays(ROWS))
        other = asyncio.ensure_future(client.raw(b"{}", "application/json"))  # has its own thread there
        await process.came(2)
        assert [kind for _, kind in process.asked] == [frames.ARRAYS, frames.RAW]
        late.cancel()  # and leaves nothing behind
        process.answer()
        process.answer()
        assert (await other)[0] == 200
        again = asyncio.ensure_future(client.arrays(ROWS))
        await process.came(1)
        process.answer()
        assert (await again)[0].tolist() == ROWS[0].tolist()

    between(tmp_path, talk)


def test_requests_that_were_given_up_count_until_they_are_answered(tmp_path: Path) -> None:
    async def talk(client: ModelClient, process: Process) -> None:
        await given_up(client.raw(b"{}", "application/json"), process)
        assert client.requests_given_up == 1
        process.answer()
        asked = asyncio.ensure_future(client.raw(b"{}", "application/json"))
        await process.came(1)
        assert client.requests_given_up == 0
        process.answer()
        assert await asked == (200, "text/plain", b"yes")

    between(tmp_path, talk)


def test_what_was_given_up_ends_with_its_process(tmp_path: Path) -> None:
    async def talk(client: ModelClient, process: Process) -> None:
        await given_up(client.arrays(ROWS), process)
        late = asyncio.ensure_future(client.arrays(ROWS))
        process.die()
        await process.came(1)
        process.answer()
        assert (await late)[0].tolist() == ROWS[0].tolist()

    between(tmp_path, talk)


def test_a_process_that_does_not_come_back_is_said_to_be_gone(tmp_path: Path) -> None:
    async def ask() -> None:
        client = ModelClient(tmp_path / "nobody", patience=1)
        asked = [client.raw(b"{}", "application/json"), client.arrays(ROWS), client.arrays(ROWS)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in found] == [ModelDownError] * 3
        began = time.monotonic()
        with pytest.raises(ModelDownError):  # a later request does not wait as long again
            await client.arrays(ROWS)
        assert time.monotonic() - began < client.patience
        process = Process()
        server = await asyncio.start_unix_server(process.serve, str(tmp_path / "nobody"))
        asked = asyncio.ensure_future(client.arrays(ROWS))
        await process.came(1)
        process.answer()
        assert (await asked)[0].tolist() == ROWS[0].tolist()
        client.close()
        server.close()

    asyncio.run(ask())


# Code in which a model hangs.
STUCK = {
    "in Python": "server._since[1] = time.monotonic(); time.sleep(30)",
    "with the lock": "ctypes.PyDLL(None).sleep(30)",
}
# With and without an earlier response: the first one has a separate timeout.
HANGS = [(stuck, answered) for stuck in STUCK for answered in (True, False)]
PROGRAM = """
import ctypes, json, os, sys, time
from metalworks_model_runner.server import ModelServer

def hang(stuck, answered):
    server = ModelServer.__new__(ModelServer)
    server._since = {}
    server._answered = answered
    server.end_when_stuck(0.5, 60 if answered else 1.5)
    sys.stderr = None
    time.sleep(2)
    print("idle for longer", flush=True)
    for _ in range(40):  # busy for longer, with one thing after the other
        server._since[1] = time.monotonic()
        time.sleep(0.05)
        del server._since[1]
    if not answered:
        server._since[1] = time.monotonic()
        time.sleep(1.2)
        del server._since[1]
    print("busy", flush=True)
    exec(stuck)

children = []
for number, case in enumerate(json.loads(sys.argv[1])):
    children.append(os.fork())
    if not children[-1]:
        for stream in (1, 2):
            os.dup2(os.open(f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        try:
            hang(*case)
        finally:
            os._exit(2)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


class Ended(NamedTuple):
    code: int
    said: str
    trace: str


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Ended]:
    """Return how four hanging processes ended. They wait side by side, so the test takes as long as one."""
    folder = tmp_path_factory.mktemp("hanging")
    cases = json.dumps([(STUCK[stuck], answered) for stuck, answered in HANGS])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, cases],
        env={"PYTHONPATH": str(runner_folder())},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    files = [[(folder / f"{number}.{stream}").read_text() for stream in (1, 2)] for number in range(len(HANGS))]
    return {case: Ended(code, *texts) for case, code, texts in zip(HANGS, json.loads(done.stdout), files, strict=True)}


@pytest.mark.parametrize(("stuck", "answered"), HANGS)
def test_a_process_whose_model_hangs_ends_and_says_where(
    ended: dict[tuple[str, bool], Ended], stuck: str, answered: bool
) -> None:
    process = ended[stuck, answered]
    assert (process.code, process.said.split("\n")[:2]) == (1, ["idle for longer", "busy"])
    assert "most recent call first" in process.trace

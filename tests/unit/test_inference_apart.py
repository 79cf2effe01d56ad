"""Isolation of models, which are code from users: what they cannot reach, and how their files are read."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from metalworks_model_runner import frames, packing

from metalworks import plain_files
from metalworks.contracts import FACTS, SAMPLES, VERDICT
from metalworks.model_sync.files import read_json
from metalworks.plain_files import NotPlainError
from metalworks.prediction_log.ship import ship
from metalworks.prediction_log.spool import Spool
from metalworks.serving.predict.client import ModelClient, ModelFailedError, ModelLostError
from metalworks.serving.predict.onnx import Feed, OnnxModel
from metalworks.serving.rollout import adopt as adopts
from metalworks.serving.rollout.adopt import adopt
from metalworks.serving.rollout.equivalence import check_equivalence
from metalworks.serving.rollout.launcher import EVIDENCE, SOCKET
from metalworks.serving.rollout.model_process import LauncherLostError, ModelProcess
from metalworks.serving.sockets import connect
from tests.unit.inference_models import FRAME, save_constant, save_odd, save_spy
from tests.unit.inference_service import JSON, LAUNCHER, RUNNER, WORKER, Service, service, wait_for
from tests.unit.repository import ROOT, read_yaml

SERVER, MODELS, TLS = 65101, 65102, 65103
"""Unused UIDs and GIDs."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may be other users")


# -- Files in folders that others can write to


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("SECRET")
    return tmp_path / "secret"


def planted(path: Path, secret: Path, what: str) -> None:
    """Put something at a path that must not be read as a file."""
    path.unlink(missing_ok=True)
    if what == "link":
        path.symlink_to(secret)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        folder = os.open(path.parent, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")  # however long that path is
        os.close(folder)
    elif what == "folder":
        path.mkdir()
    elif what == "endless":
        path.touch()
        os.truncate(path, 2**40)
    elif what == "another's":
        os.link(secret, path)
        os.chown(secret, MODELS, MODELS)


KINDS = ["link", "pipe", "socket", "folder", "endless"]
OTHERS = pytest.param("another's", marks=as_root)


@pytest.mark.parametrize("what", KINDS)
def test_only_regular_files_are_read(tmp_path: Path, secret: Path, what: str) -> None:
    planted(tmp_path / "said.json", secret, what)
    with pytest.raises(OSError):
        plain_files.read(tmp_path / "said.json", 100)
    assert read_json(tmp_path / "said.json") == {}


def test_a_file_that_grows_meanwhile_is_read_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    with plain_files.open_at(tmp_path / "file", 100) as stream:
        with (tmp_path / "file").open("ab") as more:
            more.write(b"x" * 100)
        with pytest.raises(NotPlainError):
            plain_files.content(stream, 100)


def evidence(root: Path, **facts: Any) -> Path:
    """Write the files that the equivalence check leaves."""
    folder = root / EVIDENCE / "1"
    folder.mkdir(parents=True)
    said = {"onnx": {"candidates": [{"file": "model.onnx"}]}, "executors": {"native": {"ok": True}}} | facts
    (folder / FACTS).write_text(json.dumps(said))
    for name in (SAMPLES, "model.onnx"):
        (folder / name).write_text("anything")
    return folder


def test_files_of_an_equivalence_check_are_copied(tmp_path: Path) -> None:
    folder = evidence(tmp_path / "theirs")
    (folder / "more").write_text("nobody asked for")
    adopt(tmp_path / "theirs", (EVIDENCE, "1"), tmp_path / "ours" / "1")
    assert {file.name for file in (tmp_path / "ours" / "1").iterdir()} == {FACTS, SAMPLES, "model.onnx"}
    assert [file.name for file in (tmp_path / "ours").iterdir()] == ["1"]


@pytest.mark.parametrize("what", [*KINDS, OTHERS])
@pytest.mark.parametrize("name", [FACTS, SAMPLES, "model.onnx"])
def test_only_regular_files_of_an_equivalence_check_are_copied(
    tmp_path: Path, secret: Path, name: str, what: str
) -> None:
    planted(evidence(tmp_path / "theirs") / name, secret, what)
    with pytest.raises(OSError):
        adopt(tmp_path / "theirs", (EVIDENCE, "1"), tmp_path / "ours" / "1")
    assert [*(tmp_path / "ours").iterdir()] == []


@pytest.mark.parametrize("step", ["1", EVIDENCE])
def test_links_in_the_path_of_an_equivalence_check_are_refused(tmp_path: Path, step: str) -> None:
    evidence(tmp_path / "elsewhere")
    theirs = tmp_path / "theirs"
    (theirs / EVIDENCE).mkdir(parents=True)
    if step == EVIDENCE:
        (theirs / EVIDENCE).rmdir()
        (theirs / EVIDENCE).symlink_to(tmp_path / "elsewhere" / EVIDENCE)
    else:
        (theirs / EVIDENCE / "1").symlink_to(tmp_path / "elsewhere" / EVIDENCE / "1")
    with pytest.raises(OSError):
        adopt(theirs, (EVIDENCE, "1"), tmp_path / "ours" / "1")


@pytest.mark.parametrize(
    "facts",
    [
        {"onnx": {"candidates": [{"file": "../../../secret"}]}},
        {"onnx": {"candidates": [{"file": ["model.onnx"]}]}},
        {"onnx": {}},
        {"executors": []},
        {"executors": {"native": {}}},
    ],
)
def test_invalid_facts_are_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    evidence(tmp_path / "theirs", **facts)
    with pytest.raises(ValueError, match=FACTS):
        adopt(tmp_path / "theirs", (EVIDENCE, "1"), tmp_path / "ours" / "1")
    assert [*(tmp_path / "ours").iterdir()] == []


def test_facts_that_are_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    (evidence(tmp_path / "theirs") / FACTS).write_text("[" * 10**6)
    with pytest.raises(ValueError, match="nested"):
        adopt(tmp_path / "theirs", (EVIDENCE, "1"), tmp_path / "ours" / "1")


def test_a_file_of_a_proof_that_grows_ends_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = evidence(tmp_path / "theirs")
    monkeypatch.setattr(adopts, "ONNX_BYTES", 2**20)
    opened = plain_files.open_in

    def grows(descriptor: int, name: str, most: int) -> Any:
        stream = opened(descriptor, name, most)
        os.truncate(folder / name, 2**30)
        return stream

    monkeypatch.setattr(plain_files, "open_in", grows)
    with pytest.raises(NotPlainError):
        adopt(tmp_path / "theirs", (EVIDENCE, "1"), tmp_path / "ours" / "1")


@pytest.mark.parametrize(
    "facts",
    [
        {"columns": [{"name": "a", "type": "nonsense"}]},
        {"columns": [{"name": ["a"], "type": "double"}]},
        {"columns": 7},
        {"form": {"kind": "table", "names": []}},
        {"form": None},
    ],
)
def test_unusable_facts_are_refused_before_serving(tmp_path: Path, facts: dict[str, Any]) -> None:
    """Otherwise every worker process would retry a route to them, and use no other."""
    whole = {"columns": [{"name": "a", "type": "double"}], "tensor": None, "form": {"kind": "list", "names": []}}
    whole |= {
        "executors": {"native": {"ok": True, "reason": ""}},
        "onnx": {"candidates": [], "reason": ""},
        "schema": [],
    }
    (tmp_path / FACTS).write_text(json.dumps(whole))
    assert check_equivalence(tmp_path, ("native",))["executor"] == "native"
    (tmp_path / VERDICT).unlink()
    (tmp_path / FACTS).write_text(json.dumps(whole | facts))
    with pytest.raises((KeyError, TypeError, ValueError)):
        check_equivalence(tmp_path, ("native",))
    assert not (tmp_path / VERDICT).exists()


@pytest.mark.parametrize("location", ["../secret", "{}/secret"])
def test_a_converted_model_reads_no_file_beside_its_own(tmp_path: Path, location: str) -> None:
    """ONNX files can refer to another file for their data."""
    import onnx

    np.arange(4, dtype=np.float32).tofile(tmp_path / "secret")
    numbers = onnx.TensorProto(name="w", data_type=1, dims=[1, 4], data_location=onnx.TensorProto.EXTERNAL)
    numbers.external_data.add(key="location", value=location.format(tmp_path))
    said = [onnx.helper.make_tensor_value_info(name, 1, [None, 4]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", said[:1], said[1:], [numbers]
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    (tmp_path / "ours").mkdir()
    file = tmp_path / "ours" / "model.onnx"
    file.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    with pytest.raises(Exception, match="External data path"):
        OnnxModel(file, Feed(double=False, columns=False), ["<f4"], [[4]])


# -- The spool, which the follower reads and writes


def sent(spool: Path) -> dict[str, bytes]:
    objects: dict[str, bytes] = {}
    ship(Spool(spool), "delay", "host", spool.parent, objects.__setitem__)
    return objects


def test_links_in_the_spool_are_not_followed(tmp_path: Path, secret: Path) -> None:
    """As a model could do between the removal of such files and the writing of a new one."""
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "1-1.jsonl").write_text("{}\n")
    found = Spool(spool)
    segments = found._segments()
    (spool / "1-1.new").symlink_to(secret)
    with pytest.raises(FileExistsError):
        found._batch(segments)
    assert secret.read_text() == "SECRET"
    sent(spool)  # for the next shipment
    assert secret.read_text() == "SECRET"
    assert [*spool.iterdir()] == []


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("name", ["1-1.jsonl", "1-1.batch", "1-1.sent"])
def test_only_regular_files_in_the_spool_are_opened(tmp_path: Path, secret: Path, name: str, what: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    planted(spool / name, secret, what)
    assert not Spool(spool).due(0)
    assert sent(spool) == {}
    (spool / "2-1.jsonl").write_text("{}\n")  # and does not hold up others
    assert Spool(spool).due(0)
    sent(spool)
    assert [file.name for file in spool.iterdir()] == [name]
    assert secret.read_text() == "SECRET"


def test_a_list_of_segments_names_nothing_outside_the_spool(tmp_path: Path, secret: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    outside = tmp_path / "outside.jsonl"
    outside.write_text("{}\n")
    (spool / "1-1.sent").write_text(f"../outside.jsonl {outside} .. . {secret.name}\n")
    sent(spool)
    assert outside.exists()
    assert secret.exists()
    assert [*spool.iterdir()] == []


def test_a_spool_that_is_a_link_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1-1.jsonl").write_text("{}\n")
    (tmp_path / "spool").symlink_to(elsewhere)
    with pytest.raises(OSError):
        sent(tmp_path / "spool")
    assert [*elsewhere.iterdir()]


@as_root
def test_a_link_at_the_spools_place_makes_nothing_the_services() -> None:
    """Root creates the folder before the follower starts, in a folder that the service's user can write to."""
    text = read_yaml(ROOT / "roles/inference/vars/main.yml")["__inference_make_spools"]
    environment = jinja2.Environment()
    environment.filters["dirname"] = os.path.dirname
    with tempfile.TemporaryDirectory() as at:
        Path(at).chmod(0o755)
        spool, target = Path(at) / "inference-delay" / "spool", Path(at) / "target"
        target.mkdir(mode=0o700)
        said = environment.from_string(text).render(__inference_spools=[str(spool)], __inference_user=str(SERVER))
        commands = [shlex.split(command.removeprefix("+")) for command in ast.literal_eval(said)]
        assert [subprocess.run(command, check=False).returncode for command in commands] == [0, 0]
        assert (spool.stat().st_uid, spool.stat().st_mode & 0o777) == (SERVER, 0o770)
        spool.rmdir()
        spool.symlink_to(target)
        assert [subprocess.run(command, check=False).returncode for command in commands] == [0, 1]
        assert (target.stat().st_uid, target.stat().st_mode & 0o777) == (0, 0o700)


# -- Arbitrary responses of a model process


@pytest.fixture
def near() -> Iterator[Path]:
    """Return a folder whose path is short enough for sockets, which pytest's may not be."""
    with tempfile.TemporaryDirectory(prefix="metalworks-", dir="/tmp") as folder:
        yield Path(folder)


def asked(near: Path, answer: bytes, *, rows: bool) -> Any:
    """Send a request to a process with this response."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(2**16):
                writer.write(answer)

    async def run() -> Any:
        server = await asyncio.start_unix_server(serve, str(near / "s"))
        client = ModelClient(near / "s", patience=5)
        try:
            async with asyncio.timeout(20):
                return await (client.arrays([np.ones(1)]) if rows else client.raw(b"{}", JSON))
        finally:
            client.close()
            server.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "said",
    [
        [200, "text/html\r\nSet-Cookie: a=b"],
        [200, "text/plain; charset=x"],
        [200, 7],
        ["200", JSON],
        [99, JSON],
        [True],
        {},
        None,
    ],
)
def test_invalid_responses_are_not_passed_on(near: Path, said: Any) -> None:
    with pytest.raises(ModelFailedError):
        asked(near, frames.frame(1, frames.RAW, said, [b"x"]), rows=False)


@pytest.mark.parametrize(
    "about",
    [[["text", [10**12], 2]], [["<f8", [10**12], 8]], [["O", [1], 8]], [[]], 7, None],
)
def test_invalid_rows_are_not_passed_on(near: Path, about: Any) -> None:
    """Memory is not allocated for the claimed size."""
    with pytest.raises(ModelFailedError):
        asked(near, frames.frame(1, frames.ARRAYS, about, [b"[1234 ]"]), rows=True)


def test_an_oversized_response_ends_the_connection(near: Path) -> None:
    with pytest.raises(ModelLostError):
        asked(near, frames.PREFIX.pack(2**30, 1, frames.RAW), rows=False)


def test_what_was_packed_is_unpacked() -> None:
    arrays = [np.array([["a", "b"], ["c", None]], dtype=object), np.array([], dtype=object), np.ones((2, 3))]
    about, buffers = packing.pack(arrays)
    found = packing.unpack(about, memoryview(b"".join(buffers)))
    assert [each.tolist() for each in found] == [each.tolist() for each in arrays]


@as_root
def test_a_link_to_another_users_socket_is_refused(near: Path) -> None:
    """For example, to a socket of a service that trusts the server's user."""
    theirs = near / "theirs"
    theirs.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(near / "ours"))
        listener.listen()
        (theirs / "1.sock").symlink_to(near / "ours")
        asyncio.run(connect(theirs / "1.sock")).close()
        os.chown(theirs, MODELS, MODELS)
        with pytest.raises(ConnectionRefusedError):
            asyncio.run(connect(theirs / "1.sock"))


# -- The launcher


@pytest.fixture
def launcher(near: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a launcher for this process's user."""
    process = _launcher(near, os.geteuid())
    yield process
    process.kill()
    process.wait()


def _launcher(folder: Path, uid: int) -> subprocess.Popen[bytes]:
    variables = {"RUNTIME_DIRECTORY": str(folder / "run"), "STATE_DIRECTORY": str(folder / "state")}
    command = [sys.executable, "-m", LAUNCHER, "--for", str(uid)]
    process = subprocess.Popen(command, env=os.environ | variables)
    wait_for((folder / "run" / SOCKET).exists, "it listens")
    return process


def program(folder: Path, text: str) -> dict[str, Any]:
    """Return a request that runs a shell script in place of a model's interpreter."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return {"do": "inspect", "id": "1", "evidence": "1-x", "python": str(file), "model": "/nowhere"}


def test_the_launcher_reports_how_a_process_ended(near: Path, launcher: subprocess.Popen[bytes]) -> None:
    async def run(text: str) -> Any:
        process = await ModelProcess.start(near / "run" / SOCKET, program(near, text))
        process.tell("go on\n")
        return await process.wait()

    end = asyncio.run(run("read line; echo first >&2; printf 'it \\033[2J said %s' \"$line\" >&2; exit 3"))
    assert (end.code, end.last_lines) == (3, ["first", "it  [2J said go on"])
    assert asyncio.run(run("kill -9 $$")).code == -9
    long = asyncio.run(run("yes a long line of many of them | head -n 100000 >&2"))
    assert (long.code, len(long.last_lines)) == (0, 30)
    with pytest.raises(OSError, match="/nowhere"):
        (near / "python").unlink()
        asyncio.run(ModelProcess.start(near / "run" / SOCKET, program(near, "") | {"python": "/nowhere"}))


@pytest.mark.parametrize("request_", [{"do": "prove", "id": "1", "proof": "1-x"}, {"do": "serve", "id": "1"}, [], "x"])
def test_a_request_of_another_release_gets_an_error(
    near: Path, launcher: subprocess.Popen[bytes], request_: Any
) -> None:
    with pytest.raises(OSError, match="if the service is of another release, restart it"):
        asyncio.run(ModelProcess.start(near / "run" / SOCKET, request_))


def test_the_launcher_does_not_hang_up_first(near: Path, launcher: subprocess.Popen[bytes]) -> None:
    """Otherwise its output would be lost to a client that is just sending something."""
    with socket.socket(socket.AF_UNIX) as asking, asking.makefile("rb") as said:
        asking.settimeout(30)
        asking.connect(str(near / "run" / SOCKET))
        asking.sendall(json.dumps(program(near, "exit 3")).encode() + b"\n")
        assert "started" in json.loads(said.readline())
        assert json.loads(said.readline())["code"] == 3
        asking.settimeout(1)
        with pytest.raises(TimeoutError):
            asking.recv(1)
        asking.sendall(b"go on\n")
        asking.shutdown(socket.SHUT_WR)
        asking.settimeout(30)
        assert asking.recv(1) == b""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_ends_with_the_connection_and_with_all_that_it_started(
    near: Path, launcher: subprocess.Popen[bytes]
) -> None:
    async def run() -> list[int]:
        text = f"sleep 600 & echo $! $$ >{near}/pids.new; mv {near}/pids.new {near}/pids; wait"
        process = await ModelProcess.start(near / "run" / SOCKET, program(near, text))
        while not (near / "pids").exists():
            await asyncio.sleep(0.05)
        process.hang_up()
        await asyncio.sleep(0.1)
        return [int(pid) for pid in (near / "pids").read_text().split()]

    pids = asyncio.run(run())
    wait_for(lambda: not any(map(alive, pids)), "they end", 30)


def test_a_stopping_launcher_waits_for_the_service(near: Path, launcher: subprocess.Popen[bytes]) -> None:
    async def run() -> None:
        process = await ModelProcess.start(near / "run" / SOCKET, program(near, "exec sleep 600"))
        launcher.terminate()
        await asyncio.sleep(1)
        assert launcher.poll() is None
        assert not process.ended
        await process.stop()

    asyncio.run(run())
    assert launcher.wait(30) == 0


def test_waiting_for_a_dead_launcher_fails(near: Path, launcher: subprocess.Popen[bytes]) -> None:
    async def run() -> None:
        process = await ModelProcess.start(near / "run" / SOCKET, program(near, "exec cat"))
        launcher.kill()
        with pytest.raises(LauncherLostError):
            await process.wait()

    asyncio.run(run())


@as_root
def test_the_launcher_answers_only_one_user(near: Path) -> None:
    process = _launcher(near, SERVER)
    try:
        with pytest.raises(LauncherLostError):  # not even root
            asyncio.run(ModelProcess.start(near / "run" / SOCKET, program(near, "exit 0")))
    finally:
        process.kill()
        process.wait()


# -- A whole service


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_constant(folder / "constant", 1.0)
    save_odd(folder / "kills", "kills")
    return folder


BODY = json.dumps({"dataframe_split": FRAME[:1].to_dict("split")})


def test_a_killed_launcher_costs_no_request(models: Path, tmp_path: Path) -> None:
    csv = FRAME[:1].to_csv(index=False)  # the model process answers this
    with service(tmp_path, models / "constant", return_timeout=120) as running:
        running.serves("1")
        (first,), (runner,) = running.processes(LAUNCHER), running.processes(RUNNER)
        os.kill(first, signal.SIGKILL)
        assert running.post("text/csv", csv).json == {"predictions": [1.0]}
        wait_for(lambda: running.processes(LAUNCHER) not in ([], [first]), "it is started again")
        wait_for(lambda: not alive(runner), "its processes have ended with it")
        assert running.post("text/csv", csv).json == {"predictions": [1.0]}
        assert running.processes(RUNNER) not in ([], [runner])


PACKAGES = ":".join(path for path in sys.path if path and not path.endswith(".zip") and "/lib-dynload" not in path)


@functools.cache
def python() -> str:
    """Return an interpreter that other users can access; this one may be in a home folder."""
    theirs: dict[str, Any] = {"user": SERVER, "group": SERVER, "extra_groups": [], "cwd": "/"}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for each in (sys.executable, f"/usr/bin/python{version}"):
        command = [each, "-c", "import metalworks.serving.rollout.supervisor, mlflow.pyfunc"]
        with contextlib.suppress(OSError):
            if not subprocess.run(command, env={"PYTHONPATH": PACKAGES, "HOME": "/"}, check=False, **theirs).returncode:
                return each
    reason = f"no Python {version}, or not this checkout, can be reached by other users"
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


def test_a_model_that_kills_its_parent_is_refused(models: Path, tmp_path: Path) -> None:
    """Another model may be affected, and is retried."""
    with service(tmp_path, models / "constant", return_timeout=120) as running:
        running.serves("1")
        running.want(running.version("2", models / "kills"))
        assert running.refuses("2") == "the launcher ended under it 3 times"
        assert running.post(JSON, BODY).json == {"predictions": [1.0]}
        assert running.post("text/csv", FRAME[:1].to_csv(index=False)).json == {"predictions": [1.0]}


class Apart(Service):
    """A service as on a host, with separate users for the service and its models."""

    def start(self) -> None:
        """Create the folders and start both, as systemd does."""
        for name, owner in (("run", SERVER), ("state", SERVER), ("models-run", MODELS), ("models-state", MODELS)):
            (self.folder / name).mkdir(mode=0o750, exist_ok=True)
            os.chown(self.folder / name, owner, owner)
        os.chown(self.folder / "desired.json", 0, MODELS)
        common: dict[str, Any] = {"stdin": subprocess.DEVNULL, "umask": 0o027, "cwd": "/"}
        base = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": PACKAGES}
        with (self.folder / "log").open("ab") as log:
            self.launcher = subprocess.Popen(
                [python(), "-m", LAUNCHER, "--for", str(SERVER)],
                env=base
                | {
                    "RUNTIME_DIRECTORY": str(self.folder / "models-run"),
                    "STATE_DIRECTORY": str(self.folder / "models-state"),
                    "HOME": str(self.folder / "models-state"),
                },
                user=MODELS, group=MODELS, extra_groups=[], stdout=log, stderr=log, **common,
            )  # fmt: skip
            self.process = subprocess.Popen(
                [python(), "-m", "metalworks.serving.rollout.supervisor"],
                env=base
                | self.variables
                | {
                    "METALWORKS_INFERENCE_LAUNCHER_RUNTIME": str(self.folder / "models-run"),
                    "METALWORKS_INFERENCE_LAUNCHER_STATE": str(self.folder / "models-state"),
                },
                user=SERVER, group=SERVER, extra_groups=[MODELS, TLS], stdout=log, stderr=log, **common,
            )  # fmt: skip


@as_root
def test_a_model_cannot_reach_the_service_that_serves_it(models: Path) -> None:
    root = Path(tempfile.mkdtemp(prefix="apart-", dir="/tmp"))
    root.chmod(0o755)
    running: Apart | None = None
    try:
        save_spy(root / "spy")
        for path in (root / "spy", *(root / "spy").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        folder = root / "service"
        folder.mkdir(mode=0o755)
        key = root / "host.key"
        key.write_text("SECRET")
        key.chmod(0o640)
        os.chown(key, 0, TLS)
        # The launcher sets the import path of a model's interpreter to the runner only.
        model_python = root / "python"
        model_python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{PACKAGES}" exec {python()} "$@"\n')
        model_python.chmod(0o755)
        running = Apart(folder, root / "spy", python=model_python, log_share=1)
        running.serves("1")
        assert running.state["champion"]["executor"] == "pyfunc"
        assert running.post(JSON, BODY).status == 200  # it is in the log
        spool = folder / "state" / "spool"
        wait_for(lambda: [*spool.iterdir()], "a segment is begun")
        (worker,), (runner,) = running.processes(WORKER), _children(running.launcher.pid)
        assert (_user(worker), _user(runner)) == (SERVER, MODELS)
        readings = [key, *(path for path in (folder / "run").iterdir()), *(folder / "state").rglob("*")]
        readings += [
            Path(f"/proc/{pid}/{name}") for pid in (worker, running.process.pid) for name in ("environ", "mem")
        ]
        (evidence,) = (folder / "state" / EVIDENCE).iterdir()
        writings = [spool, folder / "run", folder / "state", evidence, folder, folder / "versions" / "1"]
        (folder / "models-state" / "targets.json").write_text(
            json.dumps(
                {
                    "read": [str(path) for path in readings if not path.is_dir()],
                    "list": [str(path) for path in (folder / "run", folder / "state", spool)],
                    "write": [str(path) for path in writings],
                    "signal": [worker, running.process.pid],
                    "ask": str(folder / "models-run" / SOCKET),
                }
            )
        )
        (folder / "models-state" / "targets.json").chmod(0o644)
        body = BODY.replace(str(FRAME["distance"][0]), "-1.0")  # what it tries then
        assert running.post(JSON, body).status == 200
        report = json.loads((folder / "models-state" / "report.json").read_text())
        assert report.pop("own file") == "done"  # it has tried
        assert len(report) > 20
        assert {what: how for what, how in report.items() if how == "done"} == {}
        assert running.post(JSON, BODY).status == 200
        assert running.end() == 0
        assert not _children(running.launcher.pid)  # none is left
    except AssertionError:
        if running is not None:
            print(running.log[-4000:])
        raise
    finally:
        if running is not None:
            for process in (running.process, running.launcher):
                process.kill()
                process.wait()
        shutil.rmtree(root)


def _user(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

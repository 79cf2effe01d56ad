"""roles/platform_status: the status of healthy, unhealthy and wrong servers."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from plugins.module_utils.unix_http import SocketConnection
from roles.platform_status.files.platform_status import checks as status
from roles.platform_status.files.platform_status import metrics, night, server
from tests.unit.repository import ROOT, role_templar

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate for localhost, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(serialization.Encoding.PEM, *plain)
    )
    return path


def error(state: str) -> bytes:
    fields = f"SFATAL\0C{state}\0Mno\0\0".encode()
    return b"E" + struct.pack("!i", 4 + len(fields)) + fields


def database(certificate: Path, says: bytes, seen: list[bytes] | None = None) -> Talk:
    """Return a server that speaks PostgreSQL's protocol up to the login, then sends this response."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(8) == struct.pack("!ii", 8, 80877103)
        writer.write(b"S")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        await writer.start_tls(context)
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        startup = await reader.readexactly(length - 4)
        writer.write(says)
        rest = await reader.read()
        if seen is not None:
            seen.extend([startup, rest])

    return talk


async def ask_database(talk: Talk, ca: Path, host: str = "localhost", timeout: float = 60) -> tuple[int, str]:
    conversations = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.append(asyncio.current_task())
        try:
            await talk(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(served, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        wishes = {"host": host, "port": port, "database": "mlflow", "user": "mlflow", "ca": str(ca)}
        part = status.Part("postgresql", lambda: status.postgresql(**wishes), timeout, 0)
        told: tuple[int, str] = await part.answer()
        await asyncio.gather(*conversations)  # the server sees the end of the connection
        return told


SASL = b"R" + struct.pack("!ii", 23, 10) + b"SCRAM-SHA-256\0\0"


def test_a_database_that_asks_for_a_password_is_healthy(certificate: Path) -> None:
    seen = list[bytes]()
    told = asyncio.run(ask_database(database(certificate, SASL, seen), certificate))
    assert told == (200, "Accepts connections")
    assert seen == [struct.pack("!i", 196608) + b"user\0mlflow\0database\0mlflow\0\0", b""]


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (error("28000"), (200, "Accepts connections")),
        (error("57P03"), (503, "Starting, stopping or recovering")),
        (error("53300"), (503, "All connections are taken")),
        (error("58000"), (503, "Lets nobody in")),
        (b"E" + struct.pack("!i", 5) + b"\0", (503, "Lets nobody in")),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", (503, "Does not answer as PostgreSQL does")),
        (b"R" + struct.pack("!i", 2_000_000_000), (503, "Does not answer as PostgreSQL does")),
    ],
)
def test_the_databases_response_decides(certificate: Path, says: bytes, told: tuple[int, str]) -> None:
    assert asyncio.run(ask_database(database(certificate, says), certificate)) == told


async def without_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"N")


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


@pytest.mark.parametrize(
    ("talk", "timeout", "line"),
    [
        (without_tls, 60, "Does not answer as PostgreSQL with TLS does"),
        (mute, 0.2, "Does not answer"),
        (leaves, 60, "Does not answer"),
    ],
)
def test_something_other_than_a_database_is_unhealthy(certificate: Path, talk: Talk, timeout: float, line: str) -> None:
    assert asyncio.run(ask_database(talk, certificate, timeout=timeout)) == (503, line)


def test_another_hosts_certificate_is_not_accepted(certificate: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = asyncio.run(ask_database(database(certificate, SASL), certificate, host="127.0.0.1"))
    assert told == (503, "Its certificate is not valid")
    assert "127.0.0.1" in capfd.readouterr().out, "who runs the platform hears more"


def test_a_missing_host_or_ca_file_is_unhealthy(certificate: Path, tmp_path: Path) -> None:
    assert asyncio.run(ask_database(mute, certificate, host="nowhere.invalid")) == (503, "Does not answer")
    assert asyncio.run(ask_database(database(certificate, SASL), tmp_path / "none")) == (503, "Does not answer")


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("200 OK\r\nContent-Length: 2\r\n\r\n[]", (503, "No worker is online")),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[{},\r\n3\r\n{}]\r\n0\r\n\r\n",
            (200, "2 workers are online"),
        ),
        ("200 OK\r\n\r\n[{}]", (200, "1 worker is online")),
        ('200 OK\r\n\r\n{"detail": "secret"}', (503, "Does not answer")),
        ("404 Not Found\r\n\r\n{}", (503, "Not in Prefect")),
        ("500 Internal Server Error\r\n\r\nsecret", (503, "Prefect cannot tell")),
        ("", (503, "Does not answer")),
    ],
)
def test_a_pools_health_comes_from_prefect(tmp_path: Path, says: str, told: tuple[int, str]) -> None:
    asked = list[bytes]()

    async def prefect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"}}}"))
        again = "200 OK\r\n\r\n[]"  # nothing is late
        writer.write(f"HTTP/1.1 {says if len(asked) == 1 else again}".encode() if says else b"")
        writer.close()

    async def ask() -> tuple[int, str]:
        path = str(tmp_path / "socket")
        async with await asyncio.start_unix_server(prefect, path):
            answer: tuple[int, str] = await status.Part("p", lambda: status.work_pool(path, "a b"), 5, 0).answer()
            return answer

    assert asyncio.run(ask()) == told
    head, body = asked[0].decode().split("\r\n\r\n")
    assert head.startswith("POST /api/work_pools/a%20b/workers/filter HTTP/1.0\r\n")
    assert body == '{"workers": {"status": {"any_": ["ONLINE"]}}}'


@pytest.mark.parametrize(
    ("late", "busy", "pool_paused", "queue_paused", "told"),
    [
        (["default"], [], False, False, (503, "1 run is due, and no worker starts it")),
        (["default", "urgent"], [], False, False, (503, "Runs are due, and no worker starts them")),
        (["default", "urgent"], [], False, True, (503, "1 run is due, and no worker starts it")),
        (["default"], [], False, True, (200, "1 worker is online")),
        (["default"], [], True, False, (200, "1 worker is online")),
        (["default"], ["x"], False, False, (200, "1 worker is online")),
    ],
)
def test_a_pool_whose_workers_start_nothing_is_ill(
    late: list[str],
    busy: list[str],
    pool_paused: bool,
    queue_paused: bool,
    told: tuple[int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def prefect(socket: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        if path.endswith("workers/filter"):
            return [{}]
        if path.endswith("queues/filter"):
            return [{"name": "default", "is_paused": queue_paused}, {"name": "urgent", "is_paused": False}]
        if path.endswith("work_pools/filter"):
            return [{"is_paused": pool_paused}]
        assert body["work_pools"] == {"name": {"any_": ["cpu"]}}
        names = late if "name" in body["flow_runs"]["state"] else busy
        return [{"work_queue_name": name} for name in names]

    monkeypatch.setattr(status, "prefect", prefect)
    answer = asyncio.run(status.Part("p", lambda: status.work_pool("/nowhere", "cpu"), 5, 0).answer())
    assert answer == told


def test_many_who_ask_cause_one_look() -> None:
    looks = 0

    async def check() -> str:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.02)
        return "Well"

    async def ask() -> None:
        part = status.Part("part", check, 5, 0.1)
        impatient = asyncio.create_task(part.answer())
        await asyncio.sleep(0)
        impatient.cancel()
        assert set(await asyncio.gather(*[part.answer() for _ in range(50)])) == {(200, "Well")}
        assert await part.answer() == (200, "Well")
        assert looks == 1
        await asyncio.sleep(0.11)
        await part.answer()
        assert looks == 2

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("GET / HTTP/1.0", "200 OK|OK\n"),
        ("GET /postgresql HTTP/1.1", "503 Service Unavailable|Does not answer\n"),
        ("HEAD /pool-cpu HTTP/1.1", "503 Service Unavailable|"),
        ("GET /other HTTP/1.1", "404 Not Found|No such part\n"),
        ("GET /postgresql?x HTTP/1.1", "404 Not Found|No such part\n"),
        ("POST /postgresql HTTP/1.1", "405 Method Not Allowed|Only to be read\n"),
        ("junk", ""),
        ("GET /" + "x" * 20_000, ""),
    ],
)
def test_only_listed_paths_are_answered(tmp_path: Path, request_: str, told: str) -> None:
    path = str(tmp_path / "http.sock")
    wishes: dict[str, Any] = {"socket": path, "ca": "/nowhere", "prefect_socket": "/nowhere", "cache": 1, "timeout": 1}
    wishes["postgresql"] = [{"name": "postgresql", "host": "localhost", "port": 1, "database": "d", "user": "u"}]
    wishes["work_pools"] = [{"name": "pool-cpu", "pool": "cpu"}]
    wishes |= {"verdicts": [], "certificate": ""}

    async def ask() -> str:
        service = asyncio.create_task(server.serve(wishes))
        while not Path(path).exists():
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(f"{request_}\r\nHost: x\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        service.cancel()
        return answer

    head, _, body = asyncio.run(ask()).partition("\r\n\r\n")
    assert (head.splitlines()[0].removeprefix("HTTP/1.1 ") + "|" + body if head else "") == told


@pytest.mark.parametrize(
    ("age", "problems", "answer"),
    [
        (0, {}, (200, "No disk will be full")),
        (0, {"bytes /var": "/var will be full in about 2.0 days"}, (503, "/var will be full in about 2.0 days")),
        (4 * 3600, {}, (503, "Not looked at for hours")),
        (None, {}, (200, "Not looked at yet")),
    ],
)
def test_the_verdict_of_a_program_is_shown(
    tmp_path: Path, age: int | None, problems: dict[str, str], answer: tuple[int, str]
) -> None:
    file = tmp_path / "status.json"
    if age is not None:
        file.write_text(json.dumps({"at": time.time() - age, "problems": problems, "line": "No disk will be full"}))
    wishes: dict[str, Any] = {"postgresql": [], "work_pools": [], "certificate": "", "timeout": 1, "cache": 0}
    wishes["verdicts"] = [{"name": "disks", "file": str(file)}]
    part = server.parts(wishes)["/disks"]
    assert asyncio.run(part.answer()) == answer


@pytest.mark.parametrize(
    ("days", "reboot", "answer", "soon"),
    [
        (300.5, False, (200, "The certificate is valid for 300 days; no reboot is due"), False),
        (20.4, False, (200, "The certificate ends in 20 days"), True),
        (300.5, True, (200, "An update waits for a reboot of this host"), True),
        (5.4, True, (200, "The certificate ends in 5 days; An update waits for a reboot of this host"), True),
        (-1, True, (503, "The certificate has ended"), False),
    ],
)
def test_what_is_about_to_end_is_told_before(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, days: float, reboot: bool,
    answer: tuple[int, str], soon: bool,
) -> None:  # fmt: skip
    flag = tmp_path / "reboot-required"
    if reboot:
        flag.touch()
    ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
    monkeypatch.setattr(time, "time", lambda: ends - days * 86400)
    part = status.Part("upkeep", lambda: status.upkeep(certificate, flag), 5, 0)
    assert asyncio.run(part.answer()) == answer
    assert part.soon == soon


def test_an_unreadable_certificate_is_ill(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    part = status.Part("upkeep", lambda: status.upkeep(tmp_path / "empty", tmp_path / "none"), 5, 0)
    assert asyncio.run(part.answer()) == (503, "Does not answer")


# -- The last 24 hours

NOW = 1_800_000_000.0


def at(hours: float) -> str:
    """Return a time before now as Prefect writes it."""
    return datetime.datetime.fromtimestamp(NOW - hours * 3600, datetime.UTC).isoformat()


def flow_run(number: int, kind: str, deployment: str | None = "d1", **more: Any) -> dict[str, Any]:
    state = {"type": kind, "name": kind.capitalize(), "message": f"message {number}\nmore"}
    return {
        "id": f"run-{number}", "name": f"name-{number}", "flow_id": "f1", "deployment_id": deployment, "state": state,
        "parent_task_run_id": None, "state_type": kind, "state_name": kind.capitalize(), "start_time": at(2),
        "end_time": at(1), "expected_start_time": at(2), "total_run_time": 61.26, "work_pool_name": "cpu",
        "parameters": {"secret": "x"},
    } | more  # fmt: skip


class Prefect:
    """What Prefect answers about these runs."""

    def __init__(self, done: list[dict[str, Any]], late: Sequence[Any] = (), busy: Sequence[Any] = ()) -> None:
        self.done, self.late, self.busy = done, list(late), list(busy)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def prefect(self, socket: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append((path, body))
        if path == "/api/flow_runs/filter":
            wanted = body["flow_runs"]
            if "end_time" in wanted:
                return self.done[body["offset"] : body["offset"] + body["limit"]]
            return self.late if "name" in wanted["state"] else self.busy
        if path.endswith("workers/filter"):
            return [{}, {}]
        what = path.split("/")[2]
        return [{"id": each, "name": f"the {each}"} for each in body[what]["id"]["any_"]]

    async def count(self, socket: str, path: str, body: dict[str, Any]) -> int:
        self.asked.append((path, body))
        if "end_time" in body["flow_runs"]:
            return len(self.done)
        return len(self.late if "name" in body["flow_runs"]["state"] else self.busy)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Prefect], Prefect]:
    def use(prefect: Prefect) -> Prefect:
        monkeypatch.setattr(night, "prefect", prefect.prefect)
        monkeypatch.setattr(night, "count", prefect.count)
        return prefect

    return use


def test_what_failed_comes_first_and_says_why(answers: Callable[[Prefect], Prefect]) -> None:
    good = [flow_run(number, "COMPLETED", "good") for number in range(3)]
    bad = [flow_run(10, "CRASHED", "bad"), flow_run(11, "FAILED", "bad"), flow_run(12, "COMPLETED", "bad")]
    late = [flow_run(20, "SCHEDULED", "slow", state_name="Late", expected_start_time=at(3))]
    answers(Prefect(good + bad, late, [flow_run(30, "RUNNING", "busy", flow_id="f2")]))
    found = asyncio.run(night.runs("/nowhere", NOW))
    assert [each["name"] for each in found["deployments"]] == [
        "the f1/the bad", "the f1/the slow", "the f2/the busy", "the f1/the good"
    ]  # fmt: skip
    first = found["deployments"][0]
    assert first["counts"] == {"failed": 2, "late": 0, "running": 0, "completed": 1, "cancelled": 0}
    assert first["states"] == {"CRASHED": 1, "FAILED": 1, "COMPLETED": 1}
    assert [each["id"] for each in first["runs"]] == ["run-10", "run-11", "run-12"]
    assert first["runs"][0] == {
        "id": "run-10", "name": "name-10", "kind": "failed", "state": "Crashed", "at": NOW - 3600, "seconds": 61.3,
        "pool": "cpu", "says": "message 10",
    }  # fmt: skip
    assert found["deployments"][1]["runs"][0]["at"] == NOW - 3 * 3600, "since when it is late"
    assert [len(each["runs"]) for each in found["deployments"]] == [3, 1, 1, 1]
    assert "secret" not in json.dumps(found)


def test_subflows_are_part_of_their_parent_unless_they_are_deployed(answers: Callable[[Prefect], Prefect]) -> None:
    child = {"parent_task_run_id": "t"}
    answers(Prefect([flow_run(1, "FAILED", None, **child), flow_run(2, "FAILED", "d", **child),
                     flow_run(3, "COMPLETED", None)]))  # fmt: skip
    found = asyncio.run(night.runs("/nowhere", NOW))["deployments"]
    assert [(each["name"], each["runs"][0]["id"]) for each in found] == [("the f1/the d", "run-2"), ("the f1", "run-3")]


def test_the_answer_is_bounded_whatever_ran(answers: Callable[[Prefect], Prefect]) -> None:
    long = "ü" * 10_000
    done = [flow_run(n, "FAILED", f"d{n % 1500}", name=long, state={"message": long}) for n in range(2600)]
    prefect = answers(Prefect(done))
    found = asyncio.run(night.runs("/nowhere", NOW))
    assert (len(found["deployments"]), found["deployments_left_out"], found["runs_left_out"]) == (200, 1300, 600)
    assert len(json.dumps(found, ensure_ascii=False)) < 400_000
    assert len([path for path, body in prefect.asked if "offset" in body]) == 10
    told = metrics.text({}, {"runs": found, "pools": []})
    assert len([line for line in told.splitlines() if line.startswith("metalworks_flow_runs_ended{")]) == 200
    assert "metalworks_metrics_dropped 1900" in told


def test_runs_with_large_parameters_are_read_in_smaller_pieces(
    answers: Callable[[Prefect], Prefect], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect = answers(Prefect([flow_run(number, "COMPLETED") for number in range(60)]))

    async def too_long(socket: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        if body["limit"] > 20:
            raise night.TooLong
        return await prefect.prefect(socket, path, body)

    monkeypatch.setattr(night, "prefect", too_long)
    found, more = asyncio.run(night.ended("/nowhere", at(24)))
    assert ([each["id"] for each in found], more) == ([f"run-{number}" for number in range(60)], 0)


def test_no_answer_fills_the_memory(tmp_path: Path) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n[")
        try:
            while True:
                writer.write(b" " * 2**20)
                await writer.drain()
        except OSError:
            writer.close()

    async def ask() -> None:
        path = str(tmp_path / "socket")
        async with await asyncio.start_unix_server(endless, path):
            with pytest.raises(night.TooLong):
                await night.prefect(path, "/api/flow_runs/filter", {})

    asyncio.run(ask())


def wishes_for(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "socket": str(tmp_path / "http.sock"), "ca": "/nowhere", "prefect_socket": str(tmp_path / "none"), "cache": 1,
        "timeout": 1, "postgresql": [], "work_pools": [{"name": "pool-cpu", "pool": "cpu"}], "verdicts": [],
        "certificate": "",
    } | more  # fmt: skip


def test_the_night_without_prefect_still_has_the_rest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verdict = tmp_path / "backups.json"
    verdict.write_text(json.dumps({"at": time.time(), "problems": {}, "line": "last set a, 3 h old"}))
    wishes = wishes_for(tmp_path, verdicts=[{"name": "backups", "file": str(verdict)}])
    found = asyncio.run(night.night(wishes))
    assert found["runs"]["problem"] == "Does not answer"
    assert found["pools"] == [{"name": "cpu", "problem": "Does not answer"}]
    assert found["verdicts"] == [{"name": "backups", "line": "last set a, 3 h old"}]
    assert "FileNotFoundError" in capfd.readouterr().out, "who runs the platform hears why"
    elsewhere = asyncio.run(night.night(wishes_for(tmp_path, work_pools=[])))
    assert elsewhere["runs"]["problem"] == "Prefect runs on another host than this page"
    told = metrics.text({"pool-cpu": False}, found)
    assert [line for line in told.splitlines() if not line.startswith("#")] == [
        'metalworks_part_healthy{part="pool-cpu"} 0'
    ]


def test_metrics_are_what_prometheus_reads(answers: Callable[[Prefect], Prefect], tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    busy = [flow_run(30, "RUNNING"), flow_run(31, "RUNNING")]
    answers(Prefect([flow_run(1, "COMPLETED"), flow_run(2, "FAILED")], [], busy))
    found = asyncio.run(night.night(wishes_for(tmp_path)))
    odd = 'a "quoted"\\ back\nslash'
    found["runs"]["deployments"][0]["name"] = odd
    text = metrics.text({"pool-cpu": True, "disks": False}, found)
    samples = {(s.name, tuple(s.labels.values())): s.value
               for family in parser.text_string_to_metric_families(text) for s in family.samples}  # fmt: skip
    assert samples == {
        ("metalworks_part_healthy", ("pool-cpu",)): 1, ("metalworks_part_healthy", ("disks",)): 0,
        ("metalworks_pool_workers_online", ("cpu",)): 2, ("metalworks_pool_runs_late", ("cpu",)): 0,
        ("metalworks_pool_runs_running", ("cpu",)): 2,
        ("metalworks_flow_runs_ended", (odd, "completed")): 1, ("metalworks_flow_runs_ended", (odd, "failed")): 1,
        ("metalworks_metrics_dropped", ()): 0,
    }  # fmt: skip


def test_the_installed_program_answers_all_paths(tmp_path: Path, certificate: Path) -> None:
    """The role's files, as they lie on a host, in isolated mode."""
    templar = role_templar(ROOT / "roles/platform_status")
    for module in templar.template(templar.available_variables["__platform_status_modules"]):
        place = tmp_path / "program" / module
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text((ROOT / "roles/platform_status/files" / module).read_text())
    kept = {str(path.relative_to(ROOT / "roles/platform_status/files"))
            for path in (ROOT / "roles/platform_status/files").rglob("*.py")}  # fmt: skip
    assert kept == set(templar.available_variables["__platform_status_modules"]), "each file is installed"
    wishes = wishes_for(tmp_path, certificate=str(certificate))
    program = subprocess.Popen(
        [sys.executable, "-I", tmp_path / "program"], env={"PLATFORM_STATUS": json.dumps(wishes)}, cwd="/"
    )

    def ask(path: str) -> tuple[int, str, str]:
        connection = SocketConnection("localhost", wishes["socket"], 30)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, str(response.headers["Content-Type"]), response.read().decode()

    try:
        deadline = time.monotonic() + 30
        while not Path(wishes["socket"]).exists():
            assert program.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        status_code, kind, body = ask("/upkeep")
        assert (status_code, kind) == (200, "application/json")
        assert json.loads(body)["soon"] is True
        assert "The certificate ends in 1 days" in json.loads(body)["warnings"][0]
        status_code, kind, body = ask("/night")
        assert (status_code, kind) == (200, "application/json")
        assert json.loads(body)["runs"]["problem"] == "Does not answer"
        status_code, kind, body = ask("/metrics")
        assert (status_code, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'metalworks_part_healthy{part="upkeep"} 1' in body
    finally:
        program.terminate()
        program.wait()

"""roles/platform_status: the status of healthy, unhealthy and wrong servers."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.repository import load

status = load("roles/platform_status/files/platform_status.py")
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
    wishes["verdicts"] = []

    async def ask() -> str:
        service = asyncio.create_task(status.serve(wishes))
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
    wishes: dict[str, Any] = {"postgresql": [], "work_pools": [], "timeout": 1, "cache": 0}
    wishes["verdicts"] = [{"name": "disks", "file": str(file)}]
    part = status.parts(wishes)["/disks"]
    assert asyncio.run(part.answer()) == answer

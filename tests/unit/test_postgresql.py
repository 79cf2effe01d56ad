"""roles/postgresql: statements for a server with existing objects, and passwords sent as verifiers."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from scripts.site import make_secrets
from tests.unit.repository import load

state = load("plugins/modules/postgresql_cluster.py")

WANTED = [
    {"name": "mlflow", "owner": "mlflow", "password": "one"},
    {"name": "prefect", "owner": "prefect", "password": "t'wo"},
]
BACKUP = {"name": "backup", "password": "three", "clients": []}


def standing(**changes: Any) -> dict[str, Any]:
    """Return the state of a converged server."""
    roles = {one["owner"]: {"verifier": state.verifier(one["password"], b"salt"), "plain": True} for one in WANTED}
    databases = {one["name"]: {"owner": one["owner"], "open": False} for one in WANTED}
    closed = {"owner": "postgres", "open": False}
    return {
        "roles": {"postgres": {"verifier": "", "plain": False}} | roles,
        "databases": {"postgres": closed, "template1": closed} | databases,
    } | changes


def todo(known: dict[str, Any], wanted: list[dict[str, str]] = WANTED, readers: Any = ()) -> list[str]:
    return [action for action, _ in state.statements(known, wanted, list(readers))]


def test_verifier_is_postgresqls() -> None:
    """Salt, password and result of the exchange in RFC 7677, on which PostgreSQL's format is based."""
    import base64

    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    assert state.verifier("pencil", salt) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ=="
        "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_verifier_is_recognised() -> None:
    assert state.matches("one", state.verifier("one", b"salt", 1000))
    assert not state.matches("two", state.verifier("one", b"salt"))
    assert not state.matches("one", "")
    assert not state.matches("one", "md5" + "0" * 32)


def test_existing_settings_are_left_alone() -> None:
    assert todo(standing()) == []


def test_everything_is_created_on_an_empty_server() -> None:
    empty = {"roles": {}, "databases": {"postgres": {"owner": "postgres", "open": True}}}
    assert todo(empty) == [
        "create role mlflow",
        "create role prefect",
        "create database mlflow",
        "create database prefect",
        "revoke public access to database mlflow",
        "revoke public access to database prefect",
        "revoke public access to database postgres",
    ]


def test_plain_passwords_never_reach_the_server() -> None:
    logins = [[one | {"password": "very-secret"}] for one in (WANTED[1], BACKUP)]
    statements = state.statements({"roles": {}, "databases": {}}, *logins)
    assert "very-secret" not in "".join(sql for _, sql in statements)
    assert "SCRAM-SHA-256$" in statements[0][1]


@pytest.mark.parametrize(
    ("part", "name", "facts", "action"),
    [
        (
            "roles",
            "mlflow",
            {"verifier": "SCRAM-SHA-256$4096:c2FsdA==$x:y", "plain": True},
            "set password of role mlflow",
        ),
        (
            "roles",
            "mlflow",
            {"verifier": state.verifier("one", b"s"), "plain": False},
            "restrict role mlflow",
        ),
        ("databases", "mlflow", {"owner": "postgres", "open": False}, "owner of mlflow: mlflow"),
        ("databases", "mlflow", {"owner": "mlflow", "open": True}, "revoke public access to database mlflow"),
        ("databases", "template1", {"owner": "postgres", "open": True}, "revoke public access to database template1"),
    ],
)
def test_only_the_difference_is_sent(part: str, name: str, facts: dict[str, Any], action: str) -> None:
    known = standing()
    known[part][name] = facts
    assert todo(known) == [action]


def test_other_databases_are_not_changed() -> None:
    known = standing()
    known["databases"]["theirs"] = {"owner": "them", "open": True}
    assert todo(known) == []


def test_names_are_quoted() -> None:
    odd = [{"name": 'a"; DROP TABLE x; --', "owner": "o", "password": "p"}]
    sql = "\n".join(sql for _, sql in state.statements({"roles": {}, "databases": {}}, odd, []))
    assert 'CREATE DATABASE "a""; DROP TABLE x; --" OWNER "o"' in sql


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([WANTED[0], WANTED[0]], "database listed twice: mlflow"),
        ([WANTED[0] | {"owner": "postgres"}], "reserved for the server itself"),
        ([WANTED[0] | {"name": "template1"}], "reserved for the server itself"),
        ([WANTED[0] | {"password": "größe"}], "password of mlflow must be printable ASCII"),
        ([WANTED[0] | {"password": ""}], "password of mlflow must be printable ASCII"),
        ([WANTED[0], WANTED[1] | {"owner": "mlflow"}], "an owner of several databases has different passwords"),
    ],
)
def test_invalid_variables_are_named(wanted: list[dict[str, str]], message: str) -> None:
    assert message in state.wrong(wanted, [])
    assert state.wrong(WANTED, [BACKUP]) == ""


@pytest.mark.parametrize(
    ("readers", "message"),
    [
        ([BACKUP | {"name": "mlflow"}], "reader mlflow: another login has this name"),
        ([BACKUP | {"name": "postgres"}], "reader postgres: another login has this name"),
        ([BACKUP, BACKUP], "reader backup: another login has this name"),
        ([BACKUP | {"password": ""}], "password of backup must be printable ASCII"),
    ],
)
def test_invalid_readers_are_named(readers: list[dict[str, Any]], message: str) -> None:
    assert message in state.wrong(WANTED, readers)


def reads(**changes: Any) -> dict[str, Any]:
    """Return the state of a server that also has the reader."""
    known = standing()
    known["roles"]["backup"] = {"verifier": state.verifier("three", b"s"), "plain": True, "member": [state.READ_ALL]}
    for name, facts in known["databases"].items():
        facts["grants"] = [["backup", "CONNECT"]] if name in ("mlflow", "prefect") else []
    known["roles"]["backup"] |= changes
    return known


def test_a_reader_is_created_with_access_to_these_databases() -> None:
    assert todo(reads(), readers=[BACKUP]) == []
    assert todo(standing(), readers=[BACKUP]) == [
        "create role backup",
        "grant pg_read_all_data to role backup",
        "grant CONNECT on mlflow to role backup",
        "grant CONNECT on prefect to role backup",
    ]
    made = [sql for _, sql in state.statements(standing(), WANTED, [BACKUP])]
    assert 'GRANT pg_read_all_data TO "backup";' in made
    assert 'GRANT CONNECT ON DATABASE "prefect" TO "backup";' in made


def test_on_an_empty_server_a_reader_gets_access_to_the_new_databases() -> None:
    empty = {"roles": {}, "databases": {"postgres": {"owner": "postgres", "open": True, "grants": []}}}
    actions = todo(empty, readers=[BACKUP])
    assert actions.index("create database prefect") < actions.index("grant CONNECT on prefect to role backup")


def test_a_readers_other_privileges_are_revoked() -> None:
    known = reads(member=["pg_write_all_data"], plain=False)
    known["databases"]["mlflow"]["grants"] += [["backup", "CREATE"]]
    grants = [["backup", "CONNECT"], ["other", "CONNECT"]]
    known["databases"]["postgres"] = {"owner": "postgres", "open": False, "grants": grants}
    assert sorted(todo(known, readers=[BACKUP])) == [
        "grant CONNECT on mlflow to role backup",
        "grant pg_read_all_data to role backup",
        "restrict role backup",
        "revoke CONNECT on postgres from role backup",
        "revoke CREATE on mlflow from role backup",
        "revoke pg_write_all_data from role backup",
    ]


def test_a_watcher_reads_statistics_and_no_data() -> None:
    made = state.statements(standing(), WANTED, [], ["exporter"])
    assert [action for action, _ in made] == [
        "create role exporter",
        "grant pg_monitor to role exporter",
        "grant CONNECT on postgres to role exporter",
    ]
    assert "PASSWORD" not in made[0][1]
    known = standing()
    known["roles"]["exporter"] = {"verifier": "", "plain": True, "member": ["pg_monitor", "pg_read_all_data"]}
    known["databases"]["postgres"] = {"owner": "postgres", "open": False, "grants": [["exporter", "CONNECT"]]}
    known["databases"]["mlflow"]["grants"] = [["exporter", "CONNECT"]]
    assert [action for action, _ in state.statements(known, WANTED, [], ["exporter"])] == [
        "revoke pg_read_all_data from role exporter",
        "revoke CONNECT on mlflow from role exporter",
    ]
    assert state.wrong(WANTED, [], ["mlflow"]) == "watcher mlflow: another login has this name"


# -- TLS


@pytest.mark.parametrize(
    ("listens", "address"),
    [
        ("*", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
        ("localhost", "localhost"),
        ("10.1.2.3, 127.0.0.1", "10.1.2.3"),
        ("", ""),
    ],
)
def test_the_server_is_asked_where_it_listens(listens: str, address: str) -> None:
    assert state.address(listens) == address


def answer(reply: bytes, context: ssl.SSLContext | None = None) -> tuple[int, threading.Thread]:
    """Start a server that answers the first client's TLS request; return its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            assert client.recv(8) == b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
            client.sendall(reply)
            if context:
                with context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    return listener.getsockname()[1], thread


def test_the_certificate_that_a_server_shows_is_read(tmp_path: Path) -> None:
    made = make_secrets.ca({})
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / make_secrets.CA_CERTIFICATE, tmp_path / make_secrets.CA_KEY)
    port, thread = answer(b"S", context)
    assert state.shown("127.0.0.1", port) == ssl.PEM_cert_to_DER_cert(made[make_secrets.CA_CERTIFICATE])
    thread.join()


def test_a_server_without_tls_shows_none() -> None:
    port, thread = answer(b"N")
    assert state.shown("127.0.0.1", port) == b""
    thread.join()

"""`metalworks status` and `make status`: the start page in a terminal."""

from __future__ import annotations

import base64
import json
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from metalworks.status import command, show
from scripts.site import status as site_status
from tests.unit.test_gateway import DATABASE, MLFLOW, render

NOBODY = "http://127.0.0.1:9"


def deployment(name: str, runs: list[dict[str, Any]], **counts: int) -> dict[str, Any]:
    zero = dict.fromkeys(("late", "failed", "running", "completed", "cancelled"), 0)
    return {"id": name, "name": name, "counts": zero | counts, "states": {}, "runs": runs}


def night(*deployments: dict[str, Any], **more: Any) -> dict[str, Any]:
    runs = {"deployments": list(deployments), "deployments_left_out": 0, "runs_left_out": 0}
    backups = {"name": "backups", "line": "last set a, 3 h old"}
    return {"at": 0, "hours": 24, "runs": runs | more, "pools": [], "verdicts": [backups]}


FAILED = {"id": "r1", "name": "amber-fox", "kind": "failed", "state": "Crashed", "at": 0.0, "seconds": 1, "pool": "cpu",
          "says": "killed\x1b[31m"}  # fmt: skip
LATE = FAILED | {"id": "r2", "name": "calm-bee", "kind": "late", "says": ""}


def test_what_failed_is_told_with_its_page_and_cannot_steer_the_terminal() -> None:
    found = night(deployment("a/b", [FAILED, LATE], failed=1, late=1), deployment("c/d", [], completed=2))
    text = show.text([show.Health("Disks", "well", "fine")], found, "https://prefect.x")
    lines = text.splitlines()
    assert lines[:2] == ["Everything is healthy", "  ok    Disks: fine"]
    assert "  a/b: 1 failed, 1 late" in lines
    assert "      https://prefect.x/runs/flow-run/r1" in lines
    assert any(line.startswith("    amber-fox crashed ") and line.endswith(": killed [31m") for line in lines)
    assert any(line.startswith("    calm-bee due since ") for line in lines)
    assert lines.index("  a/b: 1 failed, 1 late") < lines.index("  c/d: 2 completed")
    assert lines[-2:] == ["Backups", "  last set a, 3 h old"]
    assert "\x1b" not in text


def test_a_promotion_is_told() -> None:
    promoted = FAILED | {"kind": "completed", "state": "Promoted", "says": ""}
    plain = promoted | {"state": "Completed"}
    lines = show.night_lines(night(deployment("re/train", [promoted, plain], completed=2)), "")
    place = lines.index("Results that flows named")
    assert lines[place + 1].startswith("  Promoted ")
    assert lines[place + 1].endswith(": re/train, amber-fox")
    assert lines[place + 2] == ""


def test_a_long_night_is_short() -> None:
    found = night(*[deployment(f"f/{n}", [], completed=1) for n in range(40)], deployments_left_out=5)
    assert "  and 35 more deployments" in show.night_lines(found, "")
    assert len(show.night_lines(found, "")) < 20


@pytest.mark.parametrize(
    ("status", "kind", "content", "state", "says"),
    [
        (200, "text/plain; charset=utf-8", "2 workers are online\n", "well", "2 workers are online"),
        (200, "text/plain", "OK\n", "well", ""),
        (200, "application/json", '{"warnings": ["not checked"]}', "well", "not checked"),
        (200, "application/json", '{"soon": true, "warnings": ["ends"]}', "soon", "ends"),
        (503, "text/plain; charset=utf-8", "No worker is online\n", "ill", "No worker is online"),
        (502, "text/html", "<html>", "ill", "does not answer"),
        (-1, "", "", "ill", "does not answer"),
        (500, "text/html", "<html>", "ill", "error 500"),
    ],
)
def test_a_part_is_judged_as_by_the_page(status: int, kind: str, content: str, state: str, says: str) -> None:
    assert show.judged("Part", status, kind, content) == show.Health("Part", state, says)


@pytest.fixture
def platform() -> Iterator[Callable[..., str]]:
    """Return a function that starts a gateway's stand-in with the role's own page, and returns its address."""
    servers = []

    def start(answers: dict[str, tuple[int, str, str]]) -> str:
        class Gateway(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                login = base64.b64encode(b"ada:secret").decode()
                status, kind, content = answers.get(self.path, (200, "text/plain", "OK\n"))
                if self.path.startswith("/status/") and self.headers.get("Authorization") != f"Basic {login}":
                    status, content = 401, "log in"
                elif not self.path.startswith("/status/"):
                    assert "Authorization" not in self.headers, "the login goes only where it is needed"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(content.encode())

        server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(monkeypatch: pytest.MonkeyPatch, url: str, login: str = "ada:secret") -> int:
    monkeypatch.setattr(command, "settings", lambda: (url, login, None))
    return command.run(Namespace())


PAGE = (200, "text/html", render("index.html", gateway_sites=[MLFLOW, DATABASE], gateway_status_socket="/run/x/y"))
NIGHT = (200, "application/json", json.dumps(night(deployment("a/b", [FAILED], failed=1))))


def test_the_parts_of_the_page_are_asked(
    platform: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = (503, "text/plain", "All connections are taken\n")
    url = platform({"/": PAGE, "/status/night": NIGHT, "/health/postgresql": ill})
    assert run(monkeypatch, url) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "1 of 2 not healthy", "  ILL   Database: All connections are taken", "  ok    Models & <experiments>"
    ]  # fmt: skip
    assert "  a/b: 1 failed" in lines
    assert run(monkeypatch, platform({"/": PAGE, "/status/night": NIGHT})) == 0


def test_without_a_login_only_health_is_told(
    platform: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, platform({"/": PAGE, "/status/night": NIGHT}), login="ada:wrong") == 0
    said = capsys.readouterr().out
    assert "Everything is healthy" in said
    assert "log in: PREFECT_API_AUTH_STRING has no login that is valid" in said
    assert "a/b" not in said


def test_what_cannot_be_asked_is_neither_well_nor_ill(
    platform: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, NOBODY) == 2
    assert "does not answer" in capsys.readouterr().err
    assert run(monkeypatch, platform({})) == 2
    assert "is not a platform's start page" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://prefect.ml.example/api", ("https://ml.example", "ada:secret")),
        ("http://localhost:4200/api", None),
        (None, None),
    ],
)
def test_the_login_is_that_of_prefect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str | None, found: tuple[str, str] | None
) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: "ada:secret"}):
        if found:
            assert command.settings()[:2] == found
        else:
            assert command.run(Namespace()) == 2
            assert "PREFECT_API_URL does not lead to a platform" in capsys.readouterr().err


def test_the_operators_text_comes_from_what_the_play_noted() -> None:
    parts = [
        {"title": "Disks", "status": 503, "type": "text/plain", "content": "full"},
        {"title": "delay", "status": "200", "type": "application/json", "content": {"warnings": ["w"]}},
    ]
    noted = {"prefect": "https://prefect.x", "parts": parts, "night": {"status": 200, "content": json.loads(NIGHT[2])}}
    text, code = site_status.told(noted)
    assert code == 1
    assert text.splitlines()[:3] == ["1 of 2 not healthy", "  ILL   Disks: full", "  ok    delay: w"]
    assert "a/b: 1 failed" in text
    text, code = site_status.told(noted | {"parts": parts[1:], "night": {"status": -1, "content": ""}})
    assert code == 0
    assert "platform-status does not answer" in text


def test_an_inventory_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["status", "-i", "inventory/none"])
    assert site_status.main() == 2

"""roles/monitoring_agent/files/host_metrics.py: what it counts, and what it leaves out."""

from __future__ import annotations

import http.server
import json
import socketserver
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import load

metrics = load("roles/monitoring_agent/files/host_metrics.py")
MESSAGES = """\
Invalid user oracle from 192.0.2.9 port 40022
Connection closed by invalid user oracle 192.0.2.9 port 40022 [preauth]
Connection closed by authenticating user root 192.0.2.9 port 40024 [preauth]
Disconnected from invalid user test 192.0.2.9 port 40026 [preauth]
Accepted publickey for ada from 192.0.2.7 port 40030 ssh2: ED25519 SHA256:x
Disconnected from user ada 192.0.2.7 port 40030
Connection closed by 192.0.2.8 port 40032
""".splitlines()


def test_each_connection_that_ends_without_a_login_counts_once() -> None:
    assert metrics.failed_logins(MESSAGES) == 3


def journal(monkeypatch: pytest.MonkeyPatch, output: str, code: int = 0) -> list[list[str]]:
    """Pretend that journalctl says this; return its command lines."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, code, output, "")

    monkeypatch.setattr(metrics.subprocess, "run", run)
    return asked


def test_the_count_goes_on_where_the_journal_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = journal(monkeypatch, "\n".join([*MESSAGES, "-- cursor: s=1;i=2"]))
    first = metrics.counted({})
    assert first == {"cursor": "s=1;i=2", "failures": 0}, "what was there before is not counted"
    assert metrics.counted(first) == {"cursor": "s=1;i=2", "failures": 3}
    assert asked[1][-2:] == ["--after-cursor", "s=1;i=2"]


@pytest.mark.parametrize(("code", "kept"), [(0, {"cursor": "a", "failures": 5}), (1, {"failures": 5})])
def test_a_count_never_falls(monkeypatch: pytest.MonkeyPatch, code: int, kept: dict[str, Any]) -> None:
    """Nothing new, or a journal that no longer has the place."""
    journal(monkeypatch, "", code)
    assert metrics.counted({"cursor": "a", "failures": 5}) == kept


def test_a_verdict_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    good, damaged = tmp_path / "disks.json", tmp_path / "backups.json"
    good.write_text(json.dumps({"at": 12.5, "problems": {"bytes /": "full"}}))
    damaged.write_text("{")
    files = {"disks": str(good), "backups": str(damaged), "none": str(tmp_path / "none.json")}
    assert list(metrics.verdicts(files)) == [
        'metalworks_verdict_problems{verdict="disks"} 1',
        'metalworks_verdict_time_seconds{verdict="disks"} 12.5',
    ]


def test_the_end_of_a_certificate_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    journal(monkeypatch, "notAfter=Nov 30 12:00:00 2026 GMT\n")
    assert list(metrics.certificates({"host": "/x"})) == [
        'metalworks_certificate_not_after_seconds{name="host"} 1796040000'
    ]
    journal(monkeypatch, "", 1)
    assert list(metrics.certificates({"host": "/x"})) == []


def test_the_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal(monkeypatch, "")
    monkeypatch.setattr(metrics, "STATE", tmp_path)
    monkeypatch.setattr(metrics, "REBOOT", tmp_path / "reboot-required")
    monkeypatch.setenv("HOST_METRICS", json.dumps({"verdicts": {}, "certificates": {}, "status": ""}))
    assert metrics.main() == 0
    (tmp_path / "reboot-required").touch()
    assert metrics.main() == 0
    assert (tmp_path / "metalworks.prom").read_text() == (
        "metalworks_reboot_required 1\nmetalworks_login_failures_total 0\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.json", "metalworks.prom", "reboot-required"]


@pytest.mark.parametrize(("status", "told"), [(200, "metalworks_part_healthy 1\n"), (503, "")])
def test_what_platform_status_says_is_sent(tmp_path: Path, status: int, told: str) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"metalworks_part_healthy 1\n")

        def address_string(self) -> str:
            return "a socket"

    path = str(tmp_path / "s")
    with socketserver.UnixStreamServer(path, Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert metrics.told_at(path) == told
        thread.join()
    assert metrics.told_at(str(tmp_path / "none")) == ""

"""A service listens on the addresses by which other hosts reach its host."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from metalworks.serving.rollout.supervisor import _bind
from metalworks.serving.settings import Settings
from scripts.processes import free_port
from tests.unit.repository import load

has_address = load("plugins/modules/validate_host.py").has_address


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::", "127.0.0.1")],
)
def test_a_service_listens_on_both_ip_versions(tmp_path: Path, host: str, address: str) -> None:
    if ":" in host and not has_address("::1"):
        pytest.skip("this machine has no IPv6")
    port = free_port()
    settings = Settings(service="m", desired=tmp_path, runtime=tmp_path, state=tmp_path, host=host, port=port)
    with _bind(settings), socket.create_connection((address, port), timeout=5):
        pass

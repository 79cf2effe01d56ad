"""playbooks/remove_host.yml and playbooks/uninstall.yml refuse what would break the platform, before any change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.tests.warm_ansible import ansible_playbook
from tests.unit import unreachable_site
from tests.unit.repository import load

HOSTS = """\
---
services:
  hosts:
    services-1: {ansible_host: 127.0.0.2}
    services-2: {ansible_host: 127.0.0.3}
gpu:
  hosts:
    gpu-1: {ansible_host: 127.0.0.4}
cpu:
  hosts:
    cpu-1: {ansible_host: 127.0.0.5}
dev:
  hosts: {dev-1: {ansible_host: 127.0.0.6}}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = unreachable_site.make(tmp_path, HOSTS)
    services = "inference_services:\n  - {name: delay, model: flight-delay, alias: champion, port: 8000}\n"
    (place / "group_vars/all/site.yml").write_text(services)
    return place


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("", "Name the host with `-e host=NAME`"),
        ("cpu-9", "cpu-9 is not a host of the platform"),
        ("services-1", "services-1 is the only host of postgresql, object_store, mlflow, prefect_server"),
        ("gpu-1", "gpu-1 is the only host that serves delay"),
        ("dev-1", "remove dev-1 there by hand"),
    ],
)
def test_a_host_that_cannot_go_is_refused(site: Path, host: str, said: str) -> None:
    groups = site / "groups.yml"
    text = groups.read_text()
    for group in ("postgresql", "object_store", "mlflow", "prefect_server"):
        start = text.index(f"\n{group}:")
        end = text.index("children:\n    services:", start)
        text = text[:end] + "hosts:\n    services-1:" + text[end + len("children:\n    services:") :]
    groups.write_text(text)
    before = unreachable_site.files(site)
    done = ansible_playbook("-i", site, "playbooks/remove_host.yml", "-e", json.dumps({"host": host} if host else {}))
    assert done.returncode != 0
    assert said in " ".join((done.stdout + done.stderr).split())
    assert unreachable_site.files(site) == before
    assert "unreachable=1" not in done.stdout, "a host was asked first"


@pytest.mark.parametrize("named", [{}, {"uninstall": "theirs"}, {"uninstall": "ours", "delete_data": "yes"}])
def test_a_platform_is_uninstalled_only_by_its_name(site: Path, named: dict[str, str]) -> None:
    done = ansible_playbook("-i", site, "playbooks/uninstall.yml", "-e", json.dumps(named))
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "No host was changed. This removes the platform from 5 hosts" in said
    assert "run it with `-e uninstall=ours`" in said
    assert "add `-e delete_data=ours`" in said
    assert "unreachable=1" not in done.stdout


wiring = load("plugins/filter/wiring.py")


def test_a_leaving_host_gets_no_requests_and_a_site_keeps_its_last() -> None:
    both = {"name": "delay", "upstreams": ["gpu-1:8000", "gpu-11:8000"]}
    one, none = {"name": "other", "upstreams": ["gpu-1:8001"]}, {"name": "docs", "root": "/x"}
    found = wiring.without_upstreams([both, one, none], "gpu-1")
    assert found == [{"name": "delay", "upstreams": ["gpu-11:8000"]}, one, none]
    assert wiring.without_upstreams([both], "") == [both]


drain = load("plugins/modules/drain_workers.py")


def test_runs_are_the_processes_of_a_worker_that_have_not_ended(tmp_path: Path) -> None:
    for number, state, parent in ((10, "S", 1), (11, "S", 10), (12, "Z", 10), (13, "R", 11)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} (a ) b) {state} {parent} 0 0")
    assert drain.children({"10"}, tmp_path) == 1
    assert drain.children(set(), tmp_path) == 0

"""playbooks/move_role.yml refuses what it can know without asking a host, before any change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.tests.warm_ansible import ansible_playbook
from tests.unit import unreachable_site
from tests.unit.repository import ROOT

HOSTS = """\
---
services:
  hosts:
    services-1: {ansible_host: 127.0.0.2}
store:
  hosts:
    store-1: {ansible_host: 127.0.0.3}
cpu:
  hosts:
    cpu-1: {ansible_host: 127.0.0.5}
"""
STORE = {"role": "object_store", "to": "store-1"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = unreachable_site.make(tmp_path, HOSTS)
    groups = place / "groups.yml"
    for group in ("platform", "gateway"):  # as docs/move-a-role.md says
        head, tail = groups.read_text().split(f"{group}: #", 1)
        before, after = tail.split("    services:", 1)
        line, rest = after.split("\n", 1)
        groups.write_text(f"{head}{group}: #{before}    services:{line}\n    store:\n{rest}")
    return place


def refusal(site: Path, variables: dict[str, Any], *options: str) -> str:
    before = unreachable_site.files(site)
    playbook = ROOT / "playbooks/move_role.yml"
    done = ansible_playbook("--inventory", str(site), playbook, "--extra-vars", json.dumps(variables), *options)
    assert done.returncode != 0
    assert "unreachable=0" in done.stdout
    assert unreachable_site.files(site) == before
    return " ".join(done.stdout.split())  # Ansible folds long lines


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"to": "store-1"}, "Name what moves with `-e role=object_store`"),
        ({"role": "gateway", "to": "store-1"}, "Name what moves with `-e role=object_store`"),
        ({"role": "object_store"}, "Name a host of the platform with `-e to=NAME`. docs/move-a-role.md"),
        ({"role": "object_store", "to": "nowhere"}, "nowhere is none. docs/move-a-role.md says how to add one"),
        ({"role": "object_store", "to": "cpu-1"}, "cpu-1 is not in the group gateway"),
        (STORE | {"object_store_external_endpoint": "https://s3.example.org"}, "an object store of its own"),
        ({"role": "postgresql", "to": "store-1"}, "PostgreSQL moves by a backup set: set backup_target"),
    ],
)
def test_what_cannot_work_is_refused(site: Path, variables: dict[str, Any], said: str) -> None:
    told = refusal(site, variables)
    assert "Nothing was changed. " in told
    assert said in told


def test_a_role_with_several_hosts_is_refused(site: Path) -> None:
    hosts = site / "hosts.yml"
    hosts.write_text(hosts.read_text().replace("store:", "    services-2: {ansible_host: 127.0.0.4}\nstore:"))
    assert "Group object_store has to have one host, and has services-1, services-2." in refusal(site, STORE)


def test_a_limit_is_refused(site: Path) -> None:
    assert "run it without --limit" in refusal(site, STORE, "--limit", "store-1,localhost")


def test_an_inventory_in_another_form_is_refused(site: Path) -> None:
    groups = site / "groups.yml"
    old = "object_store: # training data, model files, flow code\n  children:\n    services:"
    assert old in groups.read_text()
    groups.write_text(groups.read_text().replace(old, "object_store:\n  hosts:\n    services-1: {a: 1}"))
    assert "in a form that this command cannot change" in refusal(site, STORE)

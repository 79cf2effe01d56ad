"""playbooks/upgrade.yml and take_set.yml: what they decide about backups that have not been set up yet."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig

from scripts.tests.warm_ansible import ansible_playbook
from tests.unit.repository import ROOT

RELEASE = {"before": "a", "release": "a", "migrations": [], "versions": {"before": [], "release": []}}
MIGRATION = {"name": "mlflow", "pending": ["1"], "unknown": [], "at": []}


def problems(*, due: bool, backups: bool, target: bool = True, phase: str = "open") -> list[str]:
    """Return what the doctor refuses in a site that is well otherwise."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([])
    loader = DataLoader()
    known: dict[str, Any] = loader.load_from_file(str(ROOT / "playbooks/vars/upgrade.yml"), trusted_as_template=True)
    host = {
        "__upgrade_report": {"record": {"id": "1", "phase": phase}, "free": 1 << 40, "sizes": {}},
        "__upgrade_minor": {"changed": False},
        "__upgrade_mlflow": RELEASE | ({"migrations": [MIGRATION]} if due else {}),
        "__upgrade_prefect": RELEASE,
        "__backups_unit": {"stat": {"exists": backups}},
    }
    known |= {
        "groups": {group: ["services-1"] for group in ("postgresql", "mlflow", "prefect_server")},
        "hostvars": {"services-1": host},
        "__upgrade_databases": [],
        "upgrade_reserve_mb": 1024,
        "backup_target": {"path": "/mnt/backup"} if target else {},
    }
    found: list[str] = Templar(loader=loader, variables=known).template(trust_as_template("{{ __upgrade_problems }}"))
    return found


def test_an_upgrade_without_the_backups_that_it_begins_with_is_refused() -> None:
    (problem,) = problems(due=True, backups=False)
    assert "no backups have been set up on services-1 yet" in problem
    assert """add `-e '{"backup_target": {}}'`""" in problem


@pytest.mark.parametrize(
    "state",
    [
        {"due": True, "backups": True},
        {"due": True, "backups": False, "target": False},
        {"due": False, "backups": False},  # site.yml sets them up
        {"due": True, "backups": False, "phase": "under way"},  # an interrupted run had its set, or none
    ],
)
def test_backups_that_are_there_or_not_needed_are_no_problem(state: dict[str, Any]) -> None:
    assert problems(**state) == []


def test_a_set_is_not_asked_of_a_unit_that_is_not_there(tmp_path: Path) -> None:
    """On this machine, which has no backups."""
    tasks = [{"ansible.builtin.include_tasks": {"file": str(ROOT / "playbooks/tasks/take_set.yml")}}]
    play = tmp_path / "play.yml"
    play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    python = json.dumps({"ansible_python_interpreter": sys.executable})  # whose path may have blanks
    done = ansible_playbook("--inventory", "localhost,", "--connection", "local", "--extra-vars", python, play)
    assert done.returncode != 0
    assert "run site.yml first" in " ".join(done.stdout.split())
    assert "Start it and wait for its end" not in done.stdout

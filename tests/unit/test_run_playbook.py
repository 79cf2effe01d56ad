"""scripts/run_playbook.py: real playbooks on this machine, on the console and in the log."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from scripts import run_playbook
from scripts.common import ROOT, ProblemError

PLAYBOOK = """\
- name: A play
  hosts: all
  gather_facts: false
  tasks:
    - name: Say it
      ansible.builtin.command: echo said-by-the-task
      changed_when: true
    - name: Check it
      ansible.builtin.assert:
        that: [right | bool]
        fail_msg: it is not right
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"hosts": {"here": here}, "vars": {"right": True}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    monkeypatch.setattr(run_playbook, "ROOT", tmp_path)
    monkeypatch.setattr(run_playbook, "SHIPPED", tmp_path / "expected.json")
    monkeypatch.setattr(run_playbook, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(run_playbook, "LOG", tmp_path / "build" / "lab.log")
    return tmp_path


def play(place: Path, *extra: str) -> tuple[run_playbook.Result, str]:
    sink = io.StringIO()
    console = Console(file=sink, width=200)
    result = run_playbook.play(place / "play.yml", [place / "hosts.yml"], console=console, extra=extra)
    return result, sink.getvalue()


def test_a_run_is_shown_logged_and_remembered(place: Path) -> None:
    result, shown = play(place)
    assert (result.code, result.changed, result.state.tasks) == (0, 1, 2)
    assert "changed on here" in shown
    assert "first run" in shown
    assert "TASK [Say it]" in (place / "build" / "lab.log").read_text()
    _, shown = play(place)
    assert "1/2 Say it" in shown
    assert not list((place / "runs").glob("runner-*"))


def test_a_failure_ends_with_task_host_reason_and_log(place: Path) -> None:
    result, shown = play(place, "-e", "right=false")
    assert result.code == 2
    last = shown.splitlines()[-4:]
    assert last[0] == "FAILED on here: Check it"
    assert "play.yml:" in last[1]
    assert "it is not right" in last[2]
    assert "build/lab.log" in last[3]
    assert not list((place / "runs").glob("*.json"))


def test_a_playbook_that_cannot_start_shows_why(place: Path) -> None:
    (place / "play.yml").write_text("- name: Broken\n  hosts: all\n  no_such_keyword: 1\n")
    result, shown = play(place)
    assert result.code != 0
    assert "no_such_keyword" in shown


def test_missing_files_are_named(place: Path) -> None:
    with pytest.raises(ProblemError, match=r"nowhere\.yml does not exist"):
        run_playbook.play(place / "nowhere.yml", [place / "hosts.yml"], console=Console())


def test_a_first_run_is_compared_with_the_shipped_times(place: Path) -> None:
    run_playbook.SHIPPED.write_text('{"play": {"tasks": 4, "seconds": 90}}')
    _, shown = play(place)
    assert "1/4 Say it" in shown
    assert "of about 1:30" in shown


def test_shipped_times_are_for_existing_playbooks() -> None:
    shipped = json.loads((ROOT / "scripts" / "expected.json").read_text())
    playbooks = [ROOT / "site.yml", *(ROOT / "examples" / "flights").glob("*.yml")]
    stages = {f"stage-{path.stem}" for path in (ROOT / "scripts/lab").glob("*.py")}
    scenarios = {f"molecule-{path.parent.name}" for path in ROOT.glob("molecule/*/molecule.yml")}
    known = {run_playbook.name_of(path, None) for path in playbooks} | stages | scenarios
    assert set(shipped) <= known
    assert "site" in shipped

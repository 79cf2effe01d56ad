"""Killing plays: how their output is parsed, and that each wanted task is killed once."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from scripts.tests.kills import Play, Run, end_orphans, sweep

PRINTED = """
PLAY [Databases] ***************
TASK [postgresql : Packages] ***********
changed: [services-1]
TASK [Wait] ***************
ok: [services-1]
TASK [Wait] ***************
changed: [services-1] => (item=1)
changed: [gpu-1]
PLAY RECAP ***************
gpu-1                      : ok=2    changed=1    unreachable=0    failed=0
services-1                 : ok=39   changed=12    unreachable=0    failed=0
"""


def test_changing_tasks_are_found_in_the_output() -> None:
    run = Run()
    begins = [line for second, line in enumerate(PRINTED.splitlines()) if run.take(line, float(second))]
    assert len(begins) == 3
    assert run.changing == ["Databases > postgresql : Packages", "Databases > Wait (2)"]
    assert run.seconds["Databases > postgresql : Packages"] == 2
    assert run.changes == 13


PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Write first
      ansible.builtin.shell: {cmd: "echo first >> FOLDER/written"}
    - name: Write second
      ansible.builtin.shell: {cmd: "echo second >> FOLDER/written"}
"""


def test_a_play_is_killed_once_in_each_wanted_task_and_then_comes_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK.replace("FOLDER", str(tmp_path)))
    inventory = tmp_path / "hosts.yml"
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory.write_text(json.dumps({"all": {"hosts": {"here": host}}}))
    play = Play(tmp_path / "play.yml", inventory, tmp_path / "log")
    killed = [*sweep(play, lambda task: task.startswith("all > Write"), random.Random(1), {})]
    end_orphans()
    assert killed == ["all > Write first", "all > Write second"]
    assert (tmp_path / "log").read_text().count("PLAY RECAP") == 1
    assert (tmp_path / "written").read_text().endswith("second\n")

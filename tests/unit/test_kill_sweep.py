"""The kill sweep: how it parses a play's output."""

from __future__ import annotations

from scripts.tests.kill_sweep import Run

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

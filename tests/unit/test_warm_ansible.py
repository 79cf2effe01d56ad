"""scripts/tests/warm_ansible.py: exit codes and output are those of ansible-playbook."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.common import ROOT
from scripts.tests.warm_ansible import ansible_playbook

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: "with {{ ansible_config_file }}, told {{ told }}"}
    - ansible.builtin.fail: {msg: refused}
      when: told == 'fail'
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a play.yml"
    path.write_text(PLAY)
    return path


@pytest.mark.parametrize(
    ("told", "code", "said"), [("this", 0, "failed=0"), ("fail", 2, "refused"), ("that", 0, "that")]
)
def test_a_play_returns_its_exit_code_and_output(play: Path, told: str, code: int, said: str) -> None:
    done = ansible_playbook("--inventory", "localhost,", "--connection", "local", play, "--extra-vars", f"told={told}")
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
    assert f"with {ROOT}/ansible.cfg, told {told}" in done.stdout


def test_errors_before_the_first_task_are_on_standard_error(tmp_path: Path) -> None:
    done = ansible_playbook(tmp_path / "none.yml")
    assert (done.returncode, "could not be found" in done.stderr) == (1, True), done.stderr

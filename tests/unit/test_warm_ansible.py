"""scripts/tests/warm_ansible.py: exit codes and output are those of ansible-playbook."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.common import ROOT, environment
from scripts.tests import ansible_lint
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


def test_plays_of_several_threads_return_their_own_exit_codes(play: Path) -> None:
    """ansible-lint checks playbooks in threads."""
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda _: ansible_playbook("--syntax-check", play), range(48)))
    assert {done.returncode for done in ended} == {0}


def test_programs_that_run_afterwards_have_the_settings_of_before(play: Path) -> None:
    before = dict(os.environ)
    assert ansible_playbook("--syntax-check", play).returncode == 0
    assert dict(os.environ) == before


def test_errors_before_the_first_task_are_on_standard_error(tmp_path: Path) -> None:
    done = ansible_playbook(tmp_path / "none.yml")
    assert (done.returncode, "could not be found" in done.stderr) == (1, True), done.stderr


def test_ansible_lint_is_told_what_ansible_playbook_says_of_a_playbook(tmp_path: Path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(PLAY.replace("debug", "no_such_module"))
    command = ["ansible-playbook", "--syntax-check", "-vv", str(play)]
    options = {"env": environment(), "stdin": subprocess.PIPE, "capture_output": True, "text": True, "check": False}
    alone = subprocess.run(command, cwd=ROOT, **options)  # type: ignore[call-overload]
    done = ansible_lint.Subprocess.run(command, **options)  # type: ignore[arg-type]
    assert "no_such_module" in done.stderr
    assert (done.returncode, done.stderr) == (alone.returncode, alone.stderr)

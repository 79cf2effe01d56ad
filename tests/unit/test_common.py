"""scripts/common.py: errors say what failed and how, and name the log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts import common


def test_a_failing_command_is_an_error_with_its_last_output() -> None:
    with pytest.raises(common.ProblemError) as caught:
        common.capture([sys.executable, "-c", "import sys; sys.exit('no such thing')"])
    assert "exit code 1" in str(caught.value)
    assert "no such thing" in str(caught.value)


def test_a_logged_command_leaves_its_output_and_command_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "x.log"
    common.logged(["echo", "first"], log=log)
    common.logged(["echo", "second"], log=log)
    assert log.read_text() == "$ echo first\nfirst\n$ echo second\nsecond\n"


def test_a_logged_failure_quotes_its_own_output_only_and_names_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    common.logged(["echo", "earlier"], log=log)
    with pytest.raises(common.ProblemError) as caught:
        common.logged(["sh", "-c", "echo broken; exit 3"], log=log)
    assert "exit code 3" in str(caught.value)
    assert "broken" in str(caught.value)
    assert "earlier" not in str(caught.value)
    assert str(log) in str(caught.value)


def test_waiting_ends_with_the_condition_and_with_the_time_limit() -> None:
    answers = iter([False, False, True])
    common.wait_until(lambda: next(answers), "it", timeout=5, every=0)
    with pytest.raises(common.ProblemError, match=r"the moon \(gave up after 0 s\)"):
        common.wait_until(lambda: False, "the moon", timeout=0, every=0)


def test_children_find_this_environments_programs_first() -> None:
    assert common.environment({"A": "b"})["PATH"].startswith(str(Path(sys.executable).parent))
    assert common.environment({"A": "b"})["A"] == "b"


def test_apt_as_an_ordinary_user_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.os, "geteuid", lambda: 1000)
    with pytest.raises(
        common.ProblemError, match=r"the lab needs the packages mmdebstrap.*sudo apt-get install mmdebstrap"
    ):
        common.apt_install("mmdebstrap", why="the lab")

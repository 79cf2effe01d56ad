"""scripts/tests/lint.py: linters of one clone run one after the other, and all are reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts import common
from scripts.tests import lint

STEP = "import pathlib, sys; sys.exit(0 if pathlib.Path(sys.argv[1]).read_text() else 'empty: no lock is held')"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the linters another cache and another place for their times."""
    monkeypatch.setattr(common, "CACHE", tmp_path)
    monkeypatch.setattr(lint, "TIMES", tmp_path / "lint.json")
    return tmp_path


def test_linters_run_while_no_other_does(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A held lock says who holds it."""
    monkeypatch.setattr(lint, "STEPS", {"one": [sys.executable, "-c", STEP, str(build / "lint.lock")]})
    assert lint.main() == 0
    assert (build / "lint.lock").read_text() == ""
    assert json.loads((build / "lint.json").read_text()).keys() == {"one"}


def test_all_failures_are_shown(
    build: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = {name: [sys.executable, "-c", f"import sys; sys.exit('{name} is wrong')"] for name in ("one", "two")}
    monkeypatch.setattr(lint, "STEPS", fails | {"three": [sys.executable, "-c", ""]})
    assert lint.main() == 1
    output = capsys.readouterr().out
    assert [line.partition(" (")[0] for line in output.splitlines() if ": " in line] == [
        "one: FAILED",
        "two: FAILED",
        "three: ok",
    ]
    assert "one is wrong" in output
    assert "two is wrong" in output

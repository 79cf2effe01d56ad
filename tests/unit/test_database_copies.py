"""Copies of databases before an upgrade: which statements, in every state that a killed run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import load

copies = load("plugins/modules/database_copies.py")

FACTS: dict[str, Any] = {"size": 1, "owner": "o'ner", "closed": True, "grants": [["reader", "CONNECT"]]}
BOTH = ["mlflow", "prefect"]


def standing(*names: str) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names, FACTS)


def actions(todo: list[tuple[str, list[str]]]) -> list[str]:
    return [action for action, _ in todo]


def renames(todo: list[tuple[str, list[str]]]) -> list[str]:
    return [step for _, steps in todo for step in steps if step.startswith("ALTER")]


def test_a_copy_has_its_name_only_when_it_has_the_owner_and_grants() -> None:
    ((_, steps),) = copies.making(standing("mlflow"), ["mlflow"], "1")
    draft = '"mlflow_before_1_draft"'
    assert [step for step in steps if not step.startswith("SELECT")] == [
        f"DROP DATABASE IF EXISTS {draft};",
        f'CREATE DATABASE {draft} TEMPLATE "mlflow" OWNER "o\'ner" STRATEGY file_copy;',
        f"REVOKE ALL ON DATABASE {draft} FROM PUBLIC;",
        f'GRANT CONNECT ON DATABASE {draft} TO "reader";',
        f'ALTER DATABASE {draft} RENAME TO "mlflow_before_1";',
    ]


def test_a_run_after_a_killed_one_makes_only_what_is_missing() -> None:
    assert actions(copies.making(standing(*BOTH, "mlflow_before_1"), BOTH, "1")) == ["copy prefect"]
    assert copies.making(standing(*BOTH, "mlflow_before_1", "prefect_before_1"), BOTH, "1") == []


def test_putting_back_goes_on_from_every_state() -> None:
    whole = standing(*BOTH, "mlflow_before_1", "prefect_before_1")
    away, back = 'ALTER DATABASE "mlflow" RENAME TO "mlflow_after_1";', 'ALTER DATABASE "mlflow_before_1" RENAME TO'
    assert renames(copies.putting_back(whole, ["mlflow"], "1")) == [away, f'{back} "mlflow";']
    # Killed between the two renames, and after both.
    between = standing("mlflow_after_1", "mlflow_before_1")
    assert renames(copies.putting_back(between, ["mlflow"], "1")) == [f'{back} "mlflow";']
    assert copies.putting_back(standing("mlflow", "mlflow_after_1"), ["mlflow"], "1") == []


def test_databases_without_a_way_back_are_named() -> None:
    assert copies.lost(standing(*BOTH, "mlflow_before_1", "prefect_before_2"), BOTH, "1") == ["prefect"]
    assert copies.lost(standing(*BOTH, "mlflow_before_1", "prefect_after_1"), BOTH, "1") == []


def test_only_what_was_kept_for_other_upgrades_is_removed() -> None:
    theirs = ("wiki", "wiki_before_1", "mlflow_before_now", "mlflow_notes")
    kept = standing(*BOTH, "mlflow_before_2", "mlflow_after_2", "mlflow_before_1", "prefect_after_1", *theirs)
    assert actions(copies.removing(kept, BOTH, "2")) == ["remove mlflow_before_1", "remove prefect_after_1"]


class KilledError(Exception):
    """Stands for the end of the process."""


class Module:
    """A module whose statements on databases kill it."""

    check_mode = False

    def __init__(self, state: str) -> None:
        """Take the options of a call about upgrade 1."""
        record = {"id": "1", "phase": "noted"}
        self.params = {"version": "15", "cluster": "main", "databases": ["mlflow"], "id": "1", "counts": {}}
        self.params |= {"state": state, "record": record}


@pytest.mark.parametrize(("state", "first"), [("made", False), ("put_back", True), ("removed", True)])
def test_the_note_tells_what_a_killed_call_has_begun(
    state: str, first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ["mlflow", "mlflow_before_0"] + (["mlflow_before_1"] if state == "put_back" else [])

    def psql(_module: Module, _data: Path, text: str) -> tuple[int, str, str]:
        if text != copies.STATE:
            raise KilledError
        return 0, json.dumps(standing(*there)), ""

    monkeypatch.setattr(copies, "psql", psql)
    monkeypatch.setattr(copies, "NOTE", tmp_path / "note.json")
    monkeypatch.setattr(copies, "replace", lambda path, text, *_: path.write_text(text))
    with pytest.raises(KilledError):
        copies.Copies(Module(state)).converge()
    assert (tmp_path / "note.json").exists() == first


def test_nothing_is_noted_if_there_is_no_copy_to_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Module):
        def fail_json(self, **_said: Any) -> None:
            raise KilledError

    monkeypatch.setattr(copies, "psql", lambda *_: (0, json.dumps(standing("mlflow")), ""))
    monkeypatch.setattr(copies, "NOTE", tmp_path / "note.json")
    with pytest.raises(KilledError):
        copies.Copies(Refusing("put_back")).converge()
    assert not (tmp_path / "note.json").exists()

"""`make test-faults`: it finds a write that was lost, and knows when the platform has recovered."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from scripts.common import ProblemError, wait_until
from scripts.site.make_secrets import new_ca_certificate, new_ca_key
from scripts.tests.faults import __main__ as suite
from scripts.tests.faults import faults, load, site
from scripts.tests.faults.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_the_ledger_is_on_the_disk_before_a_write_counts(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add({"kind": "flow", "id": "a"})
    ledger.add({"kind": "run", "id": "b"})
    assert [json.loads(line)["id"] for line in (tmp_path / "ledger").read_text().splitlines()] == ["a", "b"]
    assert [one["id"] for one in ledger.writes()] == ["a", "b"]


PRINTS = """
import os
print(json.dumps({"write": {"kind": "run", "id": str(os.getpid())}}), flush=True)
print(json.dumps({"attempt": "runs", "began": 0, "seconds": 0.5, "error": ""}), flush=True)
"""


def test_the_load_goes_on_after_its_host_was_away(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "command", lambda: [sys.executable, "-c", load.READ_AND_RUN])
    monkeypatch.setattr(load, "program", lambda _: json.dumps(f"import json\n{PRINTS}\nsys.stdin.read()") + "\n")
    with load.Load(ledger, "some") as running:
        wait_until(lambda: len(running.attempts(0)) == 1, "prints nothing", 30)
        os.kill(int(ledger.writes()[0]["id"]), 9)
        wait_until(lambda: len(running.attempts(0)) == 2, "is not started again", 30)
    assert len(ledger.writes()) == running.starts == 2


def steady(ledger: Ledger, *attempts: tuple[str, float, float, str]) -> load.Load:
    one = load.Load(ledger, "some")
    for kind, began, ended, error in attempts:
        one.take({"attempt": kind, "seconds": ended - began, "error": error}, ended)
    return one


def test_the_load_is_steady_when_each_kind_has_succeeded_since(ledger: Ledger) -> None:
    good = [(kind, 101.0, 102.0, "") for kind in load.KINDS]
    assert steady(ledger, *good).steady_since(0, 100)
    assert not steady(ledger, *good).steady_since(0, 101.5)  # they began before
    assert not steady(ledger, *good[1:]).steady_since(0, 100)
    assert not steady(ledger, *good, ("runs", 102.0, 103.0, "503")).steady_since(0, 100)


def test_the_load_is_well_when_the_latest_of_each_kind_succeeded(ledger: Ledger) -> None:
    good = [(kind, 101.0, 102.0, "") for kind in load.KINDS]
    assert steady(ledger, ("runs", 100.0, 101.0, "503"), *good).well(0)
    assert not steady(ledger, *good, ("runs", 102.0, 103.0, "503")).well(0)
    assert not steady(ledger, *good).well(103.0)
    assert not steady(ledger, *good[1:]).well(0)


def result(**changes: Any) -> suite.Result:
    return suite.Result(
        "kill-x", "kill -9 of x", **{"seconds": 3.0, "requests": 10, "failed": 2, "writes": 9, **changes}
    )


def test_a_fault_without_a_loss_passes() -> None:
    found = suite.verdict([result()], [])
    assert found["ok"]
    assert found["figures"]["writes_lost"] == 0
    assert found["figures"]["kill_x_recovered_seconds"] == 3.0
    assert all(isinstance(figure, int | float) for figure in found["figures"].values())
    assert "3 s" in suite.table([result()])


@pytest.mark.parametrize(
    "changes", [{"lost": ["run a"]}, {"seconds": None}, {"endless": ["b"]}, {"left": ["/tmp/x"]}, {"wrong": ["z"]}]
)
def test_each_kind_of_damage_fails(changes: dict[str, Any]) -> None:
    found = suite.verdict([result(), result(**changes)], [])
    assert not found["ok"]
    assert found["figures"]["writes_lost"] == len(changes.get("lost", ()))
    assert "FAILED" in suite.table([result(**changes)])


def test_a_write_that_is_missing_only_at_the_end_fails() -> None:
    found = suite.verdict([result(lost=["run a"])], ["run a", "run b"])
    assert not found["ok"]
    assert found["figures"]["writes_lost"] == 2
    assert not suite.verdict([result()], ["run b"])["ok"]
    assert not suite.verdict([], [])["ok"]


def test_a_flow_run_that_goes_on_has_not_ended() -> None:
    assert suite.unended({"a": "RUNNING", "b": "COMPLETED", "c": "SCHEDULED", "d": "CRASHED"}) == ["a", "c"]


def test_the_newest_flow_run_is_the_last_that_was_acknowledged() -> None:
    writes = [{"kind": "flow", "id": "a"}, {"kind": "run", "id": "x"}, *({"kind": "flow", "id": each} for each in "bc")]
    assert suite.newest(writes, {"b": "CRASHED", "a": "COMPLETED", "z": "COMPLETED"}) == "CRASHED"
    assert suite.newest(writes, {}) == "none"


def test_every_unit_is_killed_and_every_fault_has_a_name() -> None:
    made = faults.all_faults()
    names = [one.name for one in made]
    assert len({*names}) == len(names)
    assert {f"kill-{unit.partition('@')[0]}" for units in site.UNITS.values() for unit in units} <= {*names}
    assert [one.name for one in suite.chosen(["dns", "kill-minio"], made)] == ["dns", "kill-minio"]
    assert suite.chosen([], made) == made
    with pytest.raises(ProblemError, match="no such fault: kill-nobody"):
        suite.chosen(["kill-nobody"], made)


def test_secrets_are_searched_by_their_values() -> None:
    key = new_ca_key()
    vault = {"a": "one", "b": {"x": "two"}, "key": key, "certificate": new_ca_certificate(key)}
    assert [*suite.secret_values(vault)] == ["one", "two", key.splitlines()[1]]


def test_an_expired_certificate_is_the_old_one_but_for_its_time() -> None:
    key = new_ca_key()
    text = new_ca_certificate(key)
    old, new = (x509.load_pem_x509_certificate(each.encode()) for each in (text, faults.expired(text, key)))
    assert (new.subject, [*new.extensions]) == (old.subject, [*old.extensions])
    assert new.not_valid_after_utc < datetime.datetime.now(datetime.UTC)
    new.verify_directly_issued_by(old)


def test_what_lies_around_and_holds_a_secret_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("the word is iron")
    (tmp_path / "b").write_text("nothing")
    asked = json.dumps({"files": [str(tmp_path / name) for name in "abc"], "secrets": ["iron"]}) + "\n"
    argv = [sys.executable, "-c", site.FIND_SECRETS]
    done = subprocess.run(argv, input=asked, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [str(tmp_path / "a")]


def test_the_time_to_recover_ends_with_the_last_failure(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    good = [(kind, now + 6, now + 7, "") for kind in load.KINDS]
    trial = suite.Trial.__new__(suite.Trial)
    trial.accepted, trial.load = set(), steady(ledger, ("runs", now + 1, now + 5, "503"), *good)
    monkeypatch.setattr(site, "complaints", lambda _: set())
    assert trial.recovered(now, now + 1, limit=60) == 4.0
    assert trial.recovered(now, now + 1, limit=3) is None

"""The converge benchmark: how it interprets a run's events, and how it changes and restores the lab."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from rich.console import Console

from scripts import run_playbook
from scripts.benchmarks import converge as bench
from scripts.benchmarks import converge_report
from scripts.benchmarks.converge_report import Seen, Size, Spent, Times
from scripts.common import ProblemError
from scripts.lab import hosts as lab_hosts
from scripts.lab.hosts import Host
from scripts.progress import State

START = datetime.fromisoformat("2026-11-28T08:00:00+00:00")


def event(kind: str, second: float = 0.0, **data: Any) -> dict[str, Any]:
    return {"event": kind, "created": (START + timedelta(seconds=second)).isoformat(), "event_data": data}


def test_time_belongs_to_the_role_whose_task_began_last() -> None:
    times = Times()
    for each in (
        event("playbook_on_play_start", 0.0),
        event("playbook_on_task_start", 1.0, task="Gathering Facts"),
        event("playbook_on_task_start", 3.0, role="base"),
        event("runner_on_ok", 4.0, host="cpu-1", role="base", duration=0.75),
        event("runner_on_skipped", 4.5, host="cpu-2", role="base", duration=0.25),
        event("playbook_on_task_start", 5.0, role="python_app"),
        event("playbook_on_handler_task_start", 9.0, role="base"),
        event("playbook_on_play_start", 10.0),
        event("playbook_on_stats", 12.0),
    ):
        times.take(each)
    times.end(14.0)
    assert times.roles == {
        converge_report.ELSEWHERE: Spent(1 + 2 + 2 + 2, 1),
        "base": Spent(2 + 1, 2),
        "python_app": Spent(4, 1),
    }
    assert sum(spent.seconds for spent in times.roles.values()) == 14
    assert times.hosts == {"cpu-1": Spent(0.75, 1), "cpu-2": Spent(0.25, 1)}


def test_events_of_a_real_run_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tmp_path / "roles" / "waits" / "tasks" / "main.yml"
    tasks.parent.mkdir(parents=True)
    tasks.write_text("- name: Wait\n  ansible.builtin.command: sleep 0.5\n  changed_when: false\n")
    (tmp_path / "play.yml").write_text("- name: A play\n  hosts: all\n  gather_facts: false\n  roles: [waits]\n")
    here = f"ansible_connection: local, ansible_python_interpreter: {json.dumps(sys.executable, ensure_ascii=False)}"
    (tmp_path / "hosts.yml").write_text(f"all: {{hosts: {{a: {{{here}}}, b: {{{here}}}}}}}\n")
    monkeypatch.setattr(run_playbook, "ROOT", tmp_path)
    monkeypatch.setattr(run_playbook, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(run_playbook, "LOG", tmp_path / "build" / "lab.log")
    times, console = Times(), Console(file=io.StringIO())
    result = run_playbook.play(tmp_path / "play.yml", [tmp_path / "hosts.yml"], console=console, watch=times.take)
    times.end(result.seconds)
    assert result.code == 0
    assert times.roles["waits"].tasks == 1
    assert 0.5 <= times.roles["waits"].seconds < result.seconds
    assert {name: spent.tasks for name, spent in times.hosts.items()} == {"a": 1, "b": 1}
    assert min(spent.seconds for spent in times.hosts.values()) >= 0.5


def size(hosts: int, *runs: float, base: float = 3.0) -> Size:
    made = Size(hosts)
    for seconds in runs:
        times = Times()
        times.roles["base"] = Spent(base, 7)
        for host in ("services-1", "cpu-1", *(f"cpu-{number}" for number in range(2, hosts - 3))):
            times.hosts[host] = Spent(2.0, 9)
        made.add(seconds, times)
    return made


def good() -> Seen:
    """Figures that meet every target."""
    return Seen([size(5, 33.0, 31.0), size(10, 41.0, 44.0), size(25, 71.0, 72.0)], {5: 80.0, 8: 99.0, 7: 90.0})


def test_the_fastest_run_counts() -> None:
    made = Size(5)
    for seconds, name in ((33.0, "first"), (31.0, "fastest"), (32.0, "last")):
        times = Times()
        times.roles[name] = Spent(seconds, 1)
        made.add(seconds, times)
    assert (made.seconds, made.runs) == (31.0, [33.0, 31.0, 32.0])
    assert "fastest" in made.fastest.roles


def test_figures_are_flat_and_the_line_goes_through_the_sizes() -> None:
    figures = good().figures()
    assert figures["converged_25_hosts_seconds"] == 71
    assert (figures["seconds_per_further_host"], figures["seconds_without_hosts"]) == (2, 21)
    assert figures["join_8_hosts_seconds"] == 99
    assert (figures["role_base_seconds"], figures["role_base_tasks"]) == (3, 7)
    assert figures["role_none_seconds"] == 28
    assert figures["host_services_1_seconds"] == 2
    assert all(isinstance(value, int | float) for value in figures.values())


def test_good_figures_pass() -> None:
    assert converge_report.verdict(good(), {})["ok"]


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (lambda seen: seen.sizes[0].runs.__setitem__(slice(None), [35.1]), "converged_5_hosts_seconds"),
        (lambda seen: seen.sizes[2].runs.__setitem__(slice(None), [95.0]), "seconds_per_further_host"),
        (lambda seen: seen.joins.update({8: 120.1}), "join_8_hosts_seconds"),
        (lambda seen: seen.joins.pop(8), "join_8_hosts_seconds"),
        (lambda seen: seen.sizes.__delitem__(slice(1, None)), "seconds_per_further_host"),
    ],
    ids=["slow", "slow with more hosts", "slow to join", "joining not measured", "one size alone"],
)
def test_slow_or_missing_figures_fail(change: Callable[[Seen], object], missed: str) -> None:
    seen = good()
    change(seen)
    found = converge_report.verdict(seen, {})
    assert not found["ok"]
    assert [target["figure"] for target in found["targets"] if not target["ok"]] == [missed]


def test_tables_show_roles_hosts_and_joins() -> None:
    sink = io.StringIO()
    for table in converge_report.tables(good()):
        Console(file=sink, width=120).print(table)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in sink.getvalue().splitlines() if "│" in line]
    assert ["base", "7", "3.0", "3.0", "3.0"] in rows
    assert ["all", "", "31.0", "41.0", "71.0"] in rows
    assert ["each further host (mean)", "9", "", "2.0", "2.0"] in rows
    assert ["8", "99.0"] in rows


def test_the_picture_shows_figures_and_targets(tmp_path: Path) -> None:
    converge_report.plot(good(), tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    for text in (
        "31 s",
        "41 s",
        "71 s",
        "measured: 2.0 s for each additional host",
        "at most 35 s with 5 hosts",
        "in 99 s",
    ):
        assert text in drawn
    converge_report.plot(good(), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_at_most_eight_join_at_once() -> None:
    assert [list(bench.batches(count)) for count in (0, 1, 5, 8, 15, 16)] == [[], [1], [5], [8], [8, 7], [8, 8]]


def test_new_hosts_get_unused_names_and_addresses() -> None:
    taken = [*lab_hosts.declared(), Host("cpu-3", "198.51.100.33")]
    new = bench.spare(taken, 20)
    assert new[:2] == [Host("cpu-2", "198.51.100.32"), Host("cpu-4", "198.51.100.34")]
    assert not {host.address for host in new} & {host.address for host in taken}
    assert len({host.name for host in new}) == len({host.address for host in new}) == 20


class Lab:
    """A fake lab of five hosts, with a site.yml that can change something, fail, or be stopped."""

    def __init__(self) -> None:
        self.hosts = {host.name: host for host in lab_hosts.declared()}
        self.done: list[str] = []
        self.codes: dict[int, int] = {}
        """Run of site.yml → its exit code."""
        self.changes: set[int] = set()
        """Runs that change something."""
        self.runs = 0

    def play(self, playbook: Path, inventories: list[Path], **options: Any) -> run_playbook.Result:
        self.runs += 1
        further = sorted(yaml.safe_load(inventories[1].read_text())["cpu"]["hosts"]) if inventories[1:] else []
        assert set(further) <= set(self.hosts)
        self.done.append(f"{playbook.name} {options['limit'] or len(further) + 5}")
        if options["watch"]:
            options["watch"](event("runner_on_ok", host="cpu-1", duration=1.0))
        state = State()
        if self.runs in self.changes:
            state.recap = {"cpu-1": Counter(changed=1)}
            state.changed = [("cpu-1", "Never the same")]
        return run_playbook.Result(self.codes.get(self.runs, 0), state, 30.0)

    def add(self, *these: Host) -> None:
        self.hosts |= {host.name: host for host in these}
        self.done.append(f"add {len(these)}")

    def discard(self, *these: Host) -> None:
        for host in these:
            self.hosts.pop(host.name, None)
        self.done.append(f"discard {len(these)}")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    made = Lab()
    monkeypatch.setattr(bench, "play", made.play)
    monkeypatch.setattr(bench, "platform_hosts", lambda: 5)
    monkeypatch.setattr(bench, "forget_workers", lambda gone: made.done.append(f"forget {len(gone)}"))
    monkeypatch.setattr(lab_hosts, "add", made.add)
    monkeypatch.setattr(lab_hosts, "discard", made.discard)
    monkeypatch.setattr(lab_hosts, "containers", lambda: made.hosts)
    monkeypatch.setattr(lab_hosts, "hosts", lambda there: list(there.values()))
    for name in ("ADDED", "VERDICT", "PICTURE", "DOCS_PICTURE"):
        monkeypatch.setattr(bench, name, tmp_path / getattr(bench, name).name)
    return made


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_converge", *options])
    return bench.main()


END = ["discard 5", "site.yml 5", "forget 5"]


def test_each_size_converges_is_measured_and_its_hosts_are_removed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--sizes", "10", "5", "--runs", "1") == bench.MISSED  # no eight hosts joined
    assert lab.done == [
        *["site.yml 5"] * 2,
        "add 5",
        "site.yml cpu-2,cpu-3,cpu-4,cpu-5,cpu-6",
        *["site.yml 10"] * 2,
        *END,
    ]
    assert len(lab.hosts) == len(lab_hosts.declared())
    assert not bench.ADDED.exists()
    written = json.loads(bench.VERDICT.read_text())
    assert written["figures"]["join_5_hosts_seconds"] == 30
    assert written["measured_on"]["runs"] == 1
    assert bench.PICTURE.exists()
    assert not bench.DOCS_PICTURE.exists()


def test_the_verdict_is_good_when_all_is_fast(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--docs") == bench.OK
    assert "join_8_hosts_seconds" in capsys.readouterr().out
    assert json.loads(bench.VERDICT.read_text())["ok"]
    assert bench.DOCS_PICTURE.exists()


def test_a_site_that_keeps_changing_is_not_measured(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.changes = {1, 2}
    assert run(monkeypatch) == bench.UNKNOWN
    assert "`Never the same` on cpu-1" in capsys.readouterr().err
    assert not bench.VERDICT.exists()


@pytest.mark.parametrize(("code", "ends"), [(2, bench.UNKNOWN), (run_playbook.INTERRUPTED, run_playbook.INTERRUPTED)])
def test_hosts_are_removed_after_a_failure_or_ctrl_c(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, code: int, ends: int
) -> None:
    bench.VERDICT.write_text("of yesterday")
    lab.codes = {3: code}  # while the new hosts join
    assert run(monkeypatch, "--sizes", "5", "10", "--runs", "1") == ends
    assert lab.done[-3:] == END
    assert not bench.ADDED.exists()
    assert not bench.VERDICT.exists()


def test_hosts_are_removed_if_only_some_could_be_created(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(first: Host, *_: Host) -> None:
        lab.add(first)
        raise ProblemError("no space left on device")

    monkeypatch.setattr(lab_hosts, "add", fails)
    assert run(monkeypatch, "--sizes", "10") == bench.UNKNOWN
    assert lab.done[-3:] == END
    assert "cpu-2" not in lab.hosts


def test_hosts_that_a_run_could_not_remove_are_removed_by_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.codes = {3: 2, 4: 2}  # joining, and the run that should remove the hosts
    assert run(monkeypatch, "--sizes", "5", "10", "--runs", "1") == bench.UNKNOWN
    assert "the next run removes them" in capsys.readouterr().out
    assert "forget 5" not in lab.done
    lab.done.clear()
    assert run(monkeypatch, "--sizes", "5", "--runs", "1") == bench.MISSED
    assert lab.done[:3] == END
    assert not bench.ADDED.exists()


def test_kept_hosts_are_removed_by_the_next_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "--sizes", "6", "--runs", "1", "--keep")
    assert "cpu-2" in lab.hosts
    assert bench.noted() == [Host("cpu-2", "198.51.100.32")]
    lab.done.clear()
    run(monkeypatch, "--sizes", "5", "--runs", "1")
    assert lab.done[0] == "discard 1"
    assert "cpu-2" not in lab.hosts


def test_fewer_hosts_than_the_lab_has_cannot_be_measured(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--sizes", "4") == bench.UNKNOWN
    assert "cannot measure with 4 hosts: the lab has 5 already" in capsys.readouterr().err
    assert lab.done == []


def test_without_a_running_lab_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def container(running: bool) -> dict[str, Any]:
        return {"State": {"Running": running}, "HostConfig": {"Binds": []}}

    there = {host.name: container(host.name != "gpu-1") for host in lab_hosts.declared()}
    monkeypatch.setattr(lab_hosts, "containers", lambda: there)
    with pytest.raises(ProblemError, match="are not running: gpu-1: `make lab` first"):
        bench.platform_hosts()


def prefect(monkeypatch: pytest.MonkeyPatch, *statuses: int) -> list[httpx.Request]:
    """Let a fake Prefect respond; return the requests."""
    asked, left = [], list(statuses)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(left.pop(0))

    vault = {"vault_ca_certificate": "", "vault_machine_passwords": {"worker-cpu": "secret"}}
    client = httpx.Client
    monkeypatch.setattr(lab_hosts, "secrets", lambda: vault)
    monkeypatch.setattr(bench.ssl, "create_default_context", lambda cadata: None)
    monkeypatch.setattr(bench.httpx, "Client", lambda **_: client(transport=httpx.MockTransport(answer)))
    return asked


GONE = [Host("cpu-2", "198.51.100.32"), Host("cpu-3", "198.51.100.33")]


def test_workers_of_removed_hosts_are_deleted_in_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prefect(monkeypatch, 204, 404)
    bench.forget_workers(GONE)
    assert [(request.method, request.url.path) for request in asked] == [
        ("DELETE", "/api/work_pools/cpu/workers/cpu-2-cpu"),
        ("DELETE", "/api/work_pools/cpu/workers/cpu-3-cpu"),
    ]


def test_a_worker_that_prefect_does_not_delete_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    prefect(monkeypatch, 403)
    with pytest.raises(ProblemError, match="the worker of cpu-2: 403"):
        bench.forget_workers(GONE)

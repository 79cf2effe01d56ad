"""scripts/progress.py: interpretation of events, and the display."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from scripts import progress


def event(kind: str, **data: Any) -> dict[str, Any]:
    return {"event": kind, "event_data": data}


def run(*events: dict[str, Any]) -> progress.State:
    state = progress.State()
    for each in events:
        state.take(each)
    return state


STATS = event(
    "playbook_on_stats", ok={"a": 3, "b": 1}, changed={"a": 1}, failures={"b": 1}, dark={}, skipped={}, rescued={"a": 1}
)
STORY = (
    event("playbook_on_play_start", play="Services"),
    event("playbook_on_task_start", task="Install"),
    event("runner_on_start", host="a"),
    event("runner_on_start", host="b"),
    event("runner_on_ok", host="a", task="Install", res={"changed": True}),
    event("runner_on_failed", host="b", task="Install", task_path="roles/x/tasks/main.yml:3", res={"msg": "no disk"}),
)


def test_changes_and_busy_hosts_are_counted() -> None:
    state = run(*STORY[:5])
    assert (state.play, state.task, state.tasks) == ("Services", "Install", 1)
    assert state.busy == {"b"}
    assert state.changed == [("a", "Install")]


def test_a_failure_names_host_task_place_and_reason() -> None:
    lines = "\n".join(progress.failure_lines(run(*STORY, STATS).failures, "inventory/lab"))
    assert "FAILED on b: Install" in lines
    assert "roles/x/tasks/main.yml:3" in lines
    assert "no disk" in lines


def test_rescued_and_ignored_failures_do_not_count() -> None:
    rescued = event("runner_on_failed", host="a", task="Try", res={"msg": "mended later"})
    ignored = event("runner_on_failed", host="b", task="Try", res={"msg": "ignored"}, ignore_errors=True)
    assert [failure.host for failure in run(rescued, ignored, *STORY, STATS).failures] == ["b"]


def test_an_unreachable_host_comes_with_what_to_try() -> None:
    lost = event("runner_on_unreachable", host="a", task="Facts", res={"msg": "timed out", "unreachable": True})
    lines = "\n".join(progress.failure_lines(run(lost).failures, "inventory/x"))
    assert "timed out" in lines
    assert "ansible -i inventory/x a -m ansible.builtin.ping" in lines


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"msg": "unit down\nJournal:\n  line 1"}, "unit down\nJournal:\n  line 1"),
        ({"msg": "non-zero return code", "stderr": "why"}, "non-zero return code\nstderr:\nwhy"),
        ({"msg": "same", "stderr": "same"}, "same"),
        ({"censored": "hidden", "msg": "s3cret"}, "its result is hidden because it holds secrets (no_log)"),
        ({}, "no message; see the log"),
        (
            {"msg": "One or more items failed", "results": [{"item": 1}, {"item": 2, "failed": True, "msg": "bad"}]},
            "One or more items failed\nitem 2: bad",
        ),
    ],
)
def test_reasons_are_extracted_from_results(result: dict[str, Any], expected: str) -> None:
    assert progress.reason(result) == expected


def test_time_is_compared_with_the_last_run() -> None:
    last = progress.Expectation(tasks=10, seconds=100)
    assert progress.against(65, None) == "1:05 (first run, no expectation)"
    assert progress.against(65, last) == "1:05 of about 1:40"
    assert progress.against(190, last) == "3:10, longer than the expected 1:40"
    assert (progress.count(3, last), progress.count(11, last), progress.count(3, None)) == ("3/10", "11", "3")


def test_plain_output_has_a_line_per_play_task_and_change() -> None:
    sink = io.StringIO()
    state = progress.State()
    with progress.PlainDisplay(Console(file=sink, width=40), state, progress.Expectation(4, 60)) as display:
        for each in STORY:
            state.take(each)
            display.show(each)
    assert sink.getvalue().splitlines() == [
        "PLAY Services (0:00 of about 1:00)",
        "  1/4 Install",
        "    changed on a",
        "    FAILED on b",
    ]


def test_the_live_view_shows_task_hosts_and_count() -> None:
    sink = io.StringIO()
    view = progress.LiveDisplay(Console(file=sink, width=100), run(*STORY[:4]), progress.Expectation(4, 60))
    Console(file=sink, width=100).print(view)
    shown = sink.getvalue()
    assert "Install  on a, b" in shown
    assert "task 1/4" in shown
    assert "of about 1:00" in shown


def test_the_recap_has_a_line_per_host() -> None:
    sink = io.StringIO()
    Console(file=sink, width=80).print(progress.recap_table(run(*STORY, STATS).recap))
    lines = [line.split() for line in sink.getvalue().splitlines()]
    assert ["a", "3", "1", "0", "0"] in lines
    assert ["b", "1", "0", "1", "0"] in lines

"""Work pools in which every run waits for another that cannot start: parents that hold the slots of their children.

A flow that calls `run_deployment` keeps its worker's slot while it waits. When all slots of a pool are held by such
flows and their children are due in the same pool, none of them ever continues. Nothing is ended here: the runs' logs
say what is wrong and what to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from metalworks.flow_run.api import PAGE, Api

LATE_SECONDS = 30.0
"""A run that is due for this long finds no free slot: workers look every two seconds."""
ERROR = 40
Run = dict[str, Any]


def late(api: Api, now: datetime) -> list[Run]:
    """Return the runs that are due and that no worker has taken."""
    before = (now - timedelta(seconds=LATE_SECONDS)).isoformat()
    wanted = {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": {"before_": before}}
    return api.flow_runs(wanted)


def parents(api: Api, runs: Iterable[Run]) -> dict[str, str]:
    """Return run → the run that started it and may wait for it."""
    tasks = {run["id"]: run["parent_task_run_id"] for run in runs if run["parent_task_run_id"]}
    wanted, owners = sorted(set(tasks.values())), dict[str, str]()
    for begin in range(0, len(wanted), PAGE):
        some = {"id": {"any_": wanted[begin : begin + PAGE]}}
        for task in api.ask("POST", "/task_runs/filter", {"task_runs": some, "limit": PAGE}):
            if task["flow_run_id"]:
                owners[task["id"]] = task["flow_run_id"]
    return {run: owners[task] for run, task in tasks.items() if task in owners}


def jammed(due: Iterable[Run], active: Iterable[Run], parent: dict[str, str]) -> dict[str, list[tuple[Run, Run]]]:
    """Return pool → its active runs, each with a due run that it waits for, directly or through others."""
    due, active = list(due), list(active)
    holders: dict[str, list[Run]] = defaultdict(list)
    for run in active:
        holders[run["work_pool_name"]].append(run)
    pools = {run["work_pool_name"] for run in due} & holders.keys()
    while True:
        waits_for: dict[str, Run] = {}
        for child in due:
            name = child["id"]
            while child["work_pool_name"] in pools and (name := parent.get(name, "")) and name not in waits_for:
                waits_for[name] = child
        still = {pool for pool in pools if all(run["id"] in waits_for for run in holders[pool])}
        if still == pools:
            return {pool: [(run, waits_for[run["id"]]) for run in holders[pool]] for pool in sorted(pools)}
        pools = still


def words(pool: str, holders: int, child: Run) -> str:
    """Return what the log of a waiting run says."""
    every = "The only run" if holders == 1 else f"Each of the {holders} runs"
    return (
        f"{every} at work in pool {pool} waits for another run, and {child['name']} is due and finds no free slot in "
        f"pool {child['work_pool_name']}: none of them can continue. Cancel one of them to let the others go on. To "
        "prevent it, call the child flow as a function (a subflow), give it another pool, start it with "
        "run_deployment(…, timeout=0), or raise worker_limits of the pool above the number of parents."
    )


def look(api: Api, active: list[Run], told: set[str]) -> list[str]:
    """Say in the logs of runs that wait for each other that they do; return a line about each pool. Say it once."""
    now = datetime.now(UTC)
    due = [run for run in late(api, now) if run["work_pool_name"]]
    if not any(run["parent_task_run_id"] for run in due):
        return []
    lines = []
    for pool, pairs in jammed(due, active, parents(api, [*due, *active])).items():
        logs, waiting = [], {each["id"]: child for run, child in pairs for each in (run, child)}
        for run, child in waiting.items():
            if run not in told:
                message = {"name": "metalworks", "level": ERROR, "timestamp": now.isoformat(), "flow_run_id": run}
                logs.append({**message, "message": words(pool, len(pairs), child)})
        if logs:
            api.ask("POST", "/logs/", logs)
            told.update(waiting)
            named = ", ".join(f"{run['name']} for {child['name']}" for run, child in pairs)
            lines.append(f"pool {pool}: all runs wait for runs that find no slot ({named}); their logs say what to do")
    return lines

"""Tell what ran in the last 24 hours, as Prefect knows it: for people who have logged in, and for metrics.

Everything is bounded, whatever was deployed: so many runs are read, so many deployments are told of, and of each so
many runs. What is left out is counted.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .checks import LATE_SECONDS, verdict
from .prefect import Ill, TooLong, count, prefect

HOURS = 24
PAGE = 200
"""Prefect's own limit of a list."""
MOST_RUNS, MOST_DEPLOYMENTS, MOST_TEXT = 2000, 200, 160
SHOWN = {"late": 2, "failed": 3, "running": 3, "completed": 1, "cancelled": 1}
"""Kind of run → how many of them are told of each deployment."""
KINDS = {"COMPLETED": "completed", "FAILED": "failed", "CRASHED": "failed", "CANCELLED": "cancelled"}
BUSY = ["RUNNING", "PENDING", "CANCELLING", "PAUSED"]
ENDED = {"type": {"any_": list(KINDS)}}
NO_NAME = "?"

Run = dict[str, Any]


def moment(text: str | None) -> float | None:
    """Return a time of Prefect's as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp() if text else None


def short(text: Any) -> str:
    """Return the first line of a text, not too long."""
    line = next(iter(str(text or "").strip().splitlines()), "")
    return line if len(line) <= MOST_TEXT else line[: MOST_TEXT - 1] + "…"


def listed(found: Run, kind: str) -> Run:
    """Return what is told of a run."""
    state = found.get("state") or {}
    at = {"late": "expected_start_time", "running": "start_time"}.get(kind, "end_time")
    said = short(state.get("message")) if kind == "failed" else ""
    return {
        "id": found["id"],
        "name": short(found.get("name")),
        "kind": kind,
        "state": short(found.get("state_name")),
        "at": moment(found.get(at) or found.get("expected_start_time")),
        "seconds": round(float(found.get("total_run_time") or 0), 1),
        "pool": short(found.get("work_pool_name")),
        "says": said,
    }


async def some(socket: str, body: dict[str, Any]) -> tuple[list[Run], bool]:
    """Return runs, and whether there may be more: fewer at once where their parameters are large."""
    limit = PAGE
    while True:
        try:
            found = await prefect(socket, "/api/flow_runs/filter", body | {"limit": limit})
            return [slim(each) for each in found], len(found) >= limit
        except TooLong:
            if limit == 1:
                raise
            limit = max(1, limit // 4)


async def ended(socket: str, after: str) -> tuple[list[Run], int]:
    """Return the runs that ended since a time, newest first, and how many more there are."""
    wanted = {"end_time": {"after_": after}, "state": ENDED}
    found: list[Run] = []
    while len(found) < MOST_RUNS:
        body = {"flow_runs": wanted, "sort": "END_TIME_DESC", "offset": len(found)}
        page, more = await some(socket, body)
        found += page
        if not more:
            return found, 0
    total = await count(socket, "/api/flow_runs/count", {"flow_runs": wanted})
    return found, max(0, total - len(found))


def slim(found: Run) -> Run:
    """Return the fields of a run that are needed: parameters, for example, can be large."""
    wanted = ("id", "name", "flow_id", "deployment_id", "parent_task_run_id", "state_type", "state_name", "start_time")
    more = ("end_time", "expected_start_time", "total_run_time", "work_pool_name")
    state = {"message": short((found.get("state") or {}).get("message"))}
    return {key: found.get(key) for key in wanted + more} | {"state": state}


async def names(socket: str, what: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Return deployments or flows by id."""
    known = sorted(ids)
    found: dict[str, dict[str, Any]] = {}
    for at in range(0, len(known), PAGE):
        body = {what: {"id": {"any_": known[at : at + PAGE]}}, "limit": PAGE}
        found |= {each["id"]: each for each in await prefect(socket, f"/api/{what}/filter", body)}
    return found


async def runs(socket: str, now: float) -> dict[str, Any]:
    """Return the runs of the last 24 hours by deployment, those with failures first."""
    since = datetime.fromtimestamp(now, UTC) - timedelta(hours=HOURS)
    due = datetime.fromtimestamp(now, UTC) - timedelta(seconds=LATE_SECONDS)
    late = {"state": {"name": {"any_": ["Late"]}}, "expected_start_time": {"before_": due.isoformat()}}
    busy = {"state": {"type": {"any_": BUSY}}}
    # One after the other: each answer may be large.
    done, left_out = await ended(socket, since.isoformat())
    waiting, _ = await some(socket, {"flow_runs": late})
    working, _ = await some(socket, {"flow_runs": busy, "sort": "START_TIME_DESC"})
    of_kind = [("late", each) for each in waiting] + [("running", each) for each in working]
    of_kind += [(KINDS[each["state_type"]], each) for each in done]
    groups: dict[tuple[str, str], list[tuple[str, Run]]] = {}
    for kind, each in of_kind:
        if each["deployment_id"] or not each["parent_task_run_id"]:  # a subflow without one is part of its parent
            groups.setdefault((each["deployment_id"] or "", each["flow_id"]), []).append((kind, each))
    told = sorted(groups.items(), key=lambda group: urgency(group[1]))[:MOST_DEPLOYMENTS]
    deployments = await names(socket, "deployments", {key[0] for key, _ in told if key[0]})
    flows = await names(socket, "flows", {key[1] for key, _ in told})
    return {
        "deployments": [group(key, members, deployments, flows) for key, members in told],
        "deployments_left_out": len(groups) - len(told),
        "runs_left_out": left_out,
    }


def urgency(members: list[tuple[str, Run]]) -> tuple[int, int, str]:
    """Return what sorts deployments: failed before late before running ones, then the most recent."""
    kinds = [kind for kind, _ in members]
    rank = next((place for place, kind in enumerate(("failed", "late", "running")) if kind in kinds), len(SHOWN))
    return rank, -kinds.count("failed"), str(members[0][1]["id"])


def group(
    key: tuple[str, str],
    members: list[tuple[str, Run]],
    deployments: dict[str, dict[str, Any]],
    flows: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Return what is told of a deployment."""
    states: dict[str, int] = {}
    for kind, each in members:
        if kind in set(KINDS.values()):
            states[each["state_type"]] = states.get(each["state_type"], 0) + 1
    shown = [
        listed(each, kind)
        for kind, most in SHOWN.items()
        for each in [each for its, each in members if its == kind][:most]
    ]
    flow, deployment = short(flows.get(key[1], {}).get("name") or NO_NAME), deployments.get(key[0], {})
    return {
        "id": key[0],
        "name": f"{flow}/{short(deployment.get('name') or NO_NAME)}" if key[0] else flow,
        "counts": {kind: sum(its == kind for its, _ in members) for kind in SHOWN},
        "states": states,
        "runs": shown,
    }


async def pool(socket: str, name: str) -> dict[str, Any]:
    """Return how many workers of a pool are online, and how many of its runs are late or at work."""
    this = {"work_pools": {"name": {"any_": [name]}}}
    before = (datetime.now(UTC) - timedelta(seconds=LATE_SECONDS)).isoformat()
    late = {"state": {"name": {"any_": ["Late"]}}, "expected_start_time": {"before_": before}}
    busy = {"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}}
    online, waiting, working = await asyncio.gather(
        prefect(
            socket,
            f"/api/work_pools/{urllib.parse.quote(name, safe='')}/workers/filter",
            {"workers": {"status": {"any_": ["ONLINE"]}}},
        ),
        count(socket, "/api/flow_runs/count", this | {"flow_runs": late}),
        count(socket, "/api/flow_runs/count", this | {"flow_runs": busy}),
    )
    return {"name": name, "workers": len(online), "late": waiting, "running": working}


async def told_or(ask: Callable[[], Awaitable[Any]], otherwise: Callable[[str], Any]) -> Any:
    """Return an answer, or what stands for it if there is none: the rest of the page is worth showing."""
    try:
        return await ask()
    except Ill as error:
        return otherwise(str(error))
    except Exception as error:  # a broken part may answer anything
        print("night:", repr(error), flush=True)
        return otherwise("Does not answer")


async def night(wishes: dict[str, Any]) -> dict[str, Any]:
    """Return what the morning page shows to those who have logged in."""
    now, socket = time.time(), wishes["prefect_socket"]
    nothing: dict[str, Any] = {"deployments": [], "deployments_left_out": 0, "runs_left_out": 0}

    async def of_pool(name: str) -> dict[str, Any]:
        found: dict[str, Any] = await told_or(lambda: pool(socket, name), lambda line: {"name": name, "problem": line})
        return found

    async def of_verdict(one: dict[str, Any]) -> dict[str, Any]:
        line = await told_or(lambda: verdict(Path(one["file"])), lambda line: line)
        return {"name": one["name"], "line": line}

    asked = bool(wishes["work_pools"])  # elsewhere, this host has not Prefect's socket
    return {
        "at": now,
        "hours": HOURS,
        "runs": await told_or(lambda: runs(socket, now), lambda line: nothing | {"problem": line})
        if asked
        else nothing | {"problem": "Prefect runs on another host than this page"},
        "pools": list(await asyncio.gather(*[of_pool(one["pool"]) for one in wishes["work_pools"]])),
        "verdicts": list(await asyncio.gather(*[of_verdict(one) for one in wishes["verdicts"]])),
    }

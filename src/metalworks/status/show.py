"""Write what the start page shows as text. Standard library alone: the controller uses it, too."""

from __future__ import annotations

import http
import json
from datetime import datetime
from typing import Any, NamedTuple

WELL, ILL, UNKNOWN = 0, 1, 2
"""Exit statuses: nothing is ill, something is, nobody can be asked."""
KINDS = {"failed": "failed", "late": "late", "running": "at work", "completed": "completed", "cancelled": "cancelled"}
POOL = {"workers": "workers online", "running": "at work", "late": "late"}
SAID = 200
"""Characters that a part's line may have."""
MOST_QUIET = 10
"""Deployments without a failure that are named."""


class Health(NamedTuple):
    """What a part says about itself."""

    title: str
    state: str
    """One of well, soon (healthy, and will not stay so) and ill."""
    says: str


def plain(text: Any) -> str:
    """Return a text without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def when(seconds: float | None) -> str:
    """Return a time in words."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%a %H:%M")


def counted(counts: dict[str, int]) -> str:
    """Return how many runs there are of each kind."""
    return ", ".join(f"{counts[kind]} {word}" for kind, word in KINDS.items() if counts.get(kind))


def judged(title: str, status: int, kind: str, content: str) -> Health:
    """Return what an answer about a part's health means, as the start page understands it."""
    if status != http.HTTPStatus.OK:
        told = content.strip()[:SAID] if kind.startswith("text/plain") else f"error {status}"
        return Health(title, "ill", "does not answer" if status in (-1, 502, 504) else told)
    if kind.startswith("application/json"):
        found = parsed(content)
        return Health(title, "soon" if found.get("soon") else "well", "; ".join(found.get("warnings", []))[:SAID])
    line = content.strip() if kind.startswith("text/plain") else ""
    return Health(title, "well", line if line != "OK" and "\n" not in line else "")


def parsed(content: str) -> dict[str, Any]:
    """Return an object; an empty one for anything else."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def health_lines(parts: list[Health]) -> list[str]:
    """Return one line for all, and one for each part, what is not well first."""
    ill, soon = (sum(part.state == state for part in parts) for state in ("ill", "soon"))
    first = f"{ill} of {len(parts)} not healthy" if ill else "Everything is healthy" + (" for now" if soon else "")
    rank = {"ill": 0, "soon": 1, "well": 2}
    marks = {"ill": "ILL", "soon": "soon", "well": "ok"}
    ordered = sorted(parts, key=lambda part: rank[part.state])
    lines = [f"  {marks[part.state]:<5} {plain(part.title)}: {plain(part.says)}".rstrip(": ") for part in ordered]
    return [first, *lines]


def run_lines(deployment: dict[str, Any], prefect: str) -> list[str]:
    """Return the lines of a deployment: its counts, and each run that failed or is late, with its page."""
    lines = [f"  {plain(deployment['name'])}: {counted(deployment['counts'])}"]
    for run in deployment["runs"]:
        if run["kind"] in ("failed", "late"):
            since = "due since" if run["kind"] == "late" else plain(run["state"]).lower()
            says = f": {plain(run['says'])}" if run["says"] else ""
            lines.append(f"    {plain(run['name'])} {since} {when(run['at'])}{says}")
            lines += [f"      {prefect}/runs/flow-run/{plain(run['id'])}"] if prefect else []
    return lines


def night_lines(night: dict[str, Any], prefect: str) -> list[str]:
    """Return the lines about the last 24 hours."""
    runs = night["runs"]
    lines = [f"Last {night['hours']} hours"]
    if runs.get("problem"):
        lines.append(f"  Flow runs: {plain(runs['problem'])}")
    elif not runs["deployments"]:
        lines.append("  No flow ran.")
    urgent = [each for each in runs["deployments"] if each["counts"]["failed"] or each["counts"]["late"]]
    rest = [each for each in runs["deployments"] if each not in urgent]
    lines += [line for each in urgent for line in run_lines(each, prefect)]
    lines += [f"  {plain(each['name'])}: {counted(each['counts'])}" for each in rest[:MOST_QUIET]]
    hidden = len(rest[MOST_QUIET:]) + runs["deployments_left_out"]
    lines += [f"  and {hidden} more deployments" if hidden > 1 else "  and 1 more deployment"] if hidden else []
    named = [
        f"  {plain(run['state'])} {when(run['at'])}: {plain(each['name'])}, {plain(run['name'])}"
        for each in runs["deployments"]
        for run in each["runs"]
        if run["kind"] == "completed" and run["state"] != "Completed"
    ]
    lines += ["", "Results that flows named", *named] if named else []
    if night["pools"]:
        lines += ["", "Work pools"]
    for pool in night["pools"]:
        numbers = [f"{word}: {pool.get(key)}" for key, word in POOL.items()]
        said = pool.get("problem") or ", ".join(numbers)
        lines.append(f"  {plain(pool['name'])}: {plain(said)}")
    for verdict in night["verdicts"]:
        if verdict["name"] == "backups":
            lines += ["", "Backups", f"  {plain(verdict['line'])}"]
    return lines


def text(parts: list[Health], night: dict[str, Any] | None, prefect: str, why: str = "") -> str:
    """Return all lines; without an answer about the night, why there is none."""
    about = night_lines(night, prefect) if night else [f"The last 24 hours: {why}"]
    return "\n".join([*health_lines(parts), "", *about])


def exit_status(parts: list[Health]) -> int:
    """Return the exit status for what the parts say."""
    if not parts:
        return UNKNOWN
    return ILL if any(part.state == "ill" for part in parts) else WELL

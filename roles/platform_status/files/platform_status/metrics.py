"""Write what is known as metrics, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Sample = tuple[dict[str, str], float]

ABOUT = {
    "metalworks_part_healthy": "Whether a part of the platform is healthy.",
    "metalworks_pool_workers_online": "Workers of a pool that have recently contacted Prefect.",
    "metalworks_pool_runs_late": "Flow runs of a pool that are due and were not started.",
    "metalworks_pool_runs_running": "Flow runs of a pool that are at work.",
    "metalworks_flow_runs_ended": "Flow runs that ended in the last 24 hours.",
    "metalworks_metrics_dropped": "Deployments and runs that were left out, because there are too many.",
}


def escaped(value: str) -> str:
    """Return a label's value as the format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def written(name: str, samples: Iterable[Sample]) -> list[str]:
    """Return the lines of a metric; none if it has no samples."""
    lines = []
    for labels, value in samples:
        inner = ",".join(f'{label}="{escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
    return [f"# HELP {name} {ABOUT[name]}", f"# TYPE {name} gauge", *lines] if lines else []


def text(healthy: dict[str, bool], night: dict[str, Any] | None) -> str:
    """Return all metrics. Without an answer about the night, only the parts' health is known."""
    lines = written("metalworks_part_healthy", (({"part": name}, well) for name, well in healthy.items()))
    if night is not None:
        pools = [pool for pool in night["pools"] if "problem" not in pool]
        for field, name in (("workers", "workers_online"), ("late", "runs_late"), ("running", "runs_running")):
            lines += written(f"metalworks_pool_{name}", (({"pool": pool["name"]}, pool[field]) for pool in pools))
        runs = night["runs"]
        if "problem" not in runs:
            totals: dict[tuple[str, str], int] = {}
            for deployment in runs["deployments"]:
                for state, number in deployment["states"].items():
                    key = deployment["name"], state.lower()  # two flows or deployments may have one name
                    totals[key] = totals.get(key, 0) + number
            ended = (({"deployment": name, "state": state}, number) for (name, state), number in totals.items())
            lines += written("metalworks_flow_runs_ended", ended)
            dropped = runs["deployments_left_out"] + runs["runs_left_out"]
            lines += written("metalworks_metrics_dropped", [({}, dropped)])
    return "\n".join(lines) + "\n"

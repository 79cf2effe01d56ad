"""Shared by the benchmarks: targets, the description of the machine, and pictures."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """The target of a figure: `at_least` or `at_most` a number."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, figures: Mapping[str, float]) -> bool:
        """Tell whether the figure was measured and meets the target."""
        found = figures.get(self.figure)
        if found is None:
            return False
        return (self.at_least is None or found >= self.at_least) and (self.at_most is None or found <= self.at_most)

    def describe(self) -> str:
        """Return the target as text."""
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


def judged(targets: Iterable[Target], figures: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return every target with the measured figure and whether it is met."""
    return [
        {
            "figure": target.figure,
            "target": target.describe(),
            "found": figures.get(target.figure),
            "ok": target.met(figures),
        }
        for target in targets
    ]


def told(judgements: Iterable[Mapping[str, Any]]) -> str:
    """Return a line of text for each judged target."""
    shown = []
    for each in judgements:
        found = "not measured" if each["found"] is None else str(each["found"])
        shown.append(f"{'ok    ' if each['ok'] else 'MISSED'} {each['figure']:<30} {found:>12}  {each['target']}")
    return "\n".join(shown)


def machine() -> dict[str, Any]:
    """Return the properties of this machine that the figures depend on."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": next((line.split(": ")[1] for line in cpu if line.startswith("model name")), platform.machine()),
        "processors": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": f"Python {platform.python_version()}",
        "load_before": os.getloadavg()[0],
    }


def pyplot() -> Any:
    """Return matplotlib's pyplot, set up for reproducible SVGs with real text."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "metalworks", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, file: Path) -> None:
    """Write a figure of `pyplot` as SVG."""
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})

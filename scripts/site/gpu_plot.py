"""Draw a plot beside each result of a burn-in in a folder: build/gpu-burnin, or the one that is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.benchmarks.measured import pyplot, save
from scripts.common import BUILD

FOLDER = BUILD / "gpu-burnin"
COLOURS = ("#0b7a75", "#c2571a", "#3b5b92", "#8a6d1c", "#7b3f61", "#4c8c2b", "#5a6472")
UNITS = {"fp": "TFLOPS", "int": "TOPS"}


def turns(result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return when each kind of work ended, and how fast it was."""
    found: dict[str, list[tuple[float, float]]] = {}
    for each in result["measured"]:
        if "value" in each:
            found.setdefault(each["part"], []).append((each["ended"] / 60, each["value"]))
    return found


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw how hot, how busy and how fast the device was."""
    figure, panels = pyplot().subplots(3, 1, figsize=(7, 6), sharex=True)
    heat, clock, speed = panels
    for panel, name, label in ((heat, "temperature", "°C"), (heat.twinx(), "power", "W"), (clock, "clock", "MHz")):
        points = [(each["at"] / 60, each[name]) for each in result["samples"] if each[name] is not None]
        colour = COLOURS[1] if name == "power" else COLOURS[0]
        if points:
            panel.plot(*zip(*points, strict=True), color=colour, linewidth=1)
        panel.set_ylabel(f"{name} [{label}]", color=colour)
        panel.set_ylim(bottom=0)
    slowed = [each["at"] / 60 for each in result["samples"] if each["slowed"]]
    clock.plot(slowed, [0] * len(slowed), "|", color="#b00020", label="slowed for heat or power" if slowed else None)
    for (name, points), colour in zip(turns(result).items(), COLOURS, strict=False):
        unit = next((unit for start, unit in UNITS.items() if name.startswith(start)), "GB/s")
        speed.plot(*zip(*points, strict=True), ".-", color=colour, linewidth=0.8, label=f"{name} [{unit}]")
    speed.set_yscale("log")
    speed.set_ylabel("speed")
    speed.set_xlabel("minutes")
    speed.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    if slowed:
        clock.legend(loc="lower right", frameon=False)
    state = "passed" if result["ok"] else "FAILED"
    title = f"{result['product']}, {result['serial']}: {state}\n{result['ended'][:10]}, driver {result['driver']}"
    heat.set_title(title, loc="left", fontsize=10)
    for panel in panels:
        panel.spines[["top"]].set_visible(False)
    save(figure, file)


def main() -> int:
    """Draw all plots that are older than their results."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for path in sorted(folder.glob("*.json")):
        picture = path.with_suffix(".svg")
        if not picture.exists() or picture.stat().st_mtime < path.stat().st_mtime:
            plot(json.loads(path.read_text()), picture)
            print(picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

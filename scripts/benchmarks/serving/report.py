"""Turn measurements into figures, a verdict, tables and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.benchmarks.measured import Target, judged, pyplot, save
from scripts.benchmarks.serving.measure import CONNECTIONS, Cell
from scripts.benchmarks.serving.systems import SYSTEMS

MEASURED = ("per_second", "p50_ms", "p99_ms", "cpu_ms", "memory_mib", "cold_start_seconds")
OURS = {"ours": "", "ours_native": "native_"}
"""Metalworks' systems → suffix of the figures' names after the model's name."""
HEAD = ("", *(f"req/s, {number}" for number in CONNECTIONS), "p50 ms, 16", "p99 ms, 16", "CPU ms", "MiB", "start s")
TITLES = {
    "ridge": "Ridge, 13 columns",
    "forest": "Random forest, 200 trees, 30 columns",
    "boosted": "Gradient boosting, categories (does not convert to ONNX)",
}
Key = tuple[str, str, int]
Figures = dict[str, float]


TARGETS = (
    Target("ridge_c16_vs_mlflow", at_least=100),
    Target("forest_c16_vs_mlflow", at_least=100),
    Target("forest_native_c16_vs_mlflow", at_least=30),
    Target("ridge_c16_vs_noop_fastapi", at_least=1),
    Target("ridge_c16_vs_noop_uvicorn", at_least=0.5),
    *(Target(f"{own}_c16_p99_over_p50", at_most=3) for own in ("ridge", "forest", "forest_native", "boosted")),
    Target("memory_vs_mlflow", at_least=1),
)


def medians(cells: Sequence[Cell]) -> dict[Key, Cell]:
    """Return the medians over the rounds of the valid cells."""
    groups: dict[Key, list[Cell]] = {}
    for cell in cells:
        if not cell.problem:
            groups.setdefault((cell.model, cell.system, cell.connections), []).append(cell)
    return {
        key: replace(group[0], **{name: statistics.median(getattr(cell, name) for cell in group) for name in MEASURED})
        for key, group in groups.items()
    }


def figures(found: Mapping[Key, Cell]) -> Figures:
    """Return ours over theirs for every load; the inverse if less is better."""
    numbers: Figures = {}
    for (model, name, connections), ours in found.items():
        if name not in OURS:
            continue
        own = f"{model}_{OURS[name]}"
        numbers[f"{own}c{connections}_per_second"] = ours.per_second
        numbers[f"{own}c{connections}_p99_over_p50"] = ours.p99_ms / ours.p50_ms
        for peer in SYSTEMS:
            theirs = found.get((model, peer, connections))
            if peer not in OURS and theirs:
                numbers[f"{own}c{connections}_vs_{peer}"] = ours.per_second / theirs.per_second
                if connections == 16 and not SYSTEMS[peer].constant:
                    numbers[f"{own}cpu_vs_{peer}"] = theirs.cpu_ms / ours.cpu_ms
                    numbers[f"{own}memory_vs_{peer}"] = theirs.memory_mib / ours.memory_mib
                    numbers[f"{own}cold_start_vs_{peer}"] = theirs.cold_start_seconds / ours.cold_start_seconds
    memory = [value for figure, value in numbers.items() if figure.endswith("memory_vs_mlflow")]
    if memory:
        numbers["memory_vs_mlflow"] = min(memory)
    return {figure: round(value, 3) for figure, value in numbers.items()}


def number(value: float) -> str:
    """Return a number with three digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rows(found: Mapping[Key, Cell], model: str) -> list[list[str]]:
    """Return a row for each system measured with a model, with the columns of HEAD."""
    lines = []
    for name, system in SYSTEMS.items():
        loads = [found.get((model, name, connections)) for connections in CONNECTIONS]
        if any(loads):
            line = [system.title, *(number(cell.per_second) if cell else "" for cell in loads)]
            middle = found.get((model, name, 16))
            values = ("p50_ms", "p99_ms", "cpu_ms", "memory_mib", "cold_start_seconds")
            lines.append([*line, *(number(getattr(middle, value)) if middle else "" for value in values)])
    return lines


def page(found: Mapping[Key, Cell], numbers: Mapping[str, float], measured_on: Mapping[str, Any]) -> str:
    """Return docs/serving-benchmark.md."""
    text = [
        "# Serving benchmark",
        "",
        "Metalworks' inference server beside others. Each system starts with its defaults and one worker, over plain "
        "HTTP, on the machine that also generates the load. Every system's response is checked against the model's "
        f"own. Figures are medians of {measured_on['rounds']} turns of {measured_on['seconds']:g} s. *CPU* is the "
        "server's time per request; *start* is the time from nothing to the first correct response. "
        "`make bench-serving OPTIONS=--docs` measures again and rewrites this page.",
        "",
        "![Requests per second](pictures/serving-benchmark.svg)",
    ]
    for model, title in TITLES.items():
        lines = rows(found, model)
        if lines:
            text += [
                "",
                f"## {title}",
                "",
                f"| {' | '.join(HEAD)} |",
                f"|{'|'.join(['---'] + ['--:'] * (len(HEAD) - 1))}|",
            ]
            text += [f"| {' | '.join(line)} |" for line in lines]
    text += ["", "## Targets", "", "| figure | target | measured |", "|---|---|--:|"]
    for target in judged(TARGETS, numbers):
        value = "" if target["found"] is None else number(target["found"])
        text.append(f"| `{target['figure']}` | {target['target']} | {value}{'' if target['ok'] else ' **missed**'} |")
    peers = ", ".join(f"{name} {version}" for name, version in measured_on["peers"].items())
    machine = f"{measured_on['processors']} processors ({measured_on['processor']}), {measured_on['python']}"
    return "\n".join([*text, "", f"Measured on {measured_on['date']} on {machine}; {peers}.", ""])


def plot(found: Mapping[Key, Cell], file: Path) -> None:
    """Draw requests per second at 16 connections, a panel for each model."""
    models = [model for model in TITLES if rows(found, model)]
    shown = {model: [name for name in SYSTEMS if (model, name, 16) in found] for model in models}
    heights = [len(names) for names in shown.values()]
    figure, panels = pyplot().subplots(
        len(models),
        sharex=True,
        squeeze=False,
        height_ratios=heights,
        figsize=(9, 0.27 * sum(heights) + 0.6 * len(models)),
    )
    for panel, (model, names) in zip(panels[:, 0], shown.items(), strict=True):
        values = [found[model, name, 16].per_second for name in names]
        colors = ["#0b7a75" if name in OURS else "#c9ced6" if SYSTEMS[name].constant else "#8795a8" for name in names]
        bars = panel.barh([SYSTEMS[name].title for name in names], values, color=colors)
        panel.bar_label(bars, [number(value) for value in values], padding=3)
        panel.set_title(TITLES[model], loc="left", fontsize=10)
        panel.set_xscale("log")
        panel.set_xlim(10, 100_000)
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("requests per second, 16 connections (logarithmic)")
    save(figure, file)

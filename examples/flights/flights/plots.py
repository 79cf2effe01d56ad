"""Pictures as SVG with real text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CHAMPION, CHALLENGER = "#2f5d8a", "#e08a1e"
# The same numbers give the same file.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "flights", "font.family": "sans-serif", "font.size": 10}
METADATA = {"Date": None, "Creator": None}


def over_months(history: Sequence[Mapping[str, Any]]) -> str:
    """Plot the champion's and the challenger's error on each newest month, and where the champion changed."""
    with rc_context(STYLE):
        figure, axes = _figure(9, 3.6)
        months = [point["month"] for point in history]
        places = range(len(history))
        axes.plot(places, [_before(point) for point in history], "o-", color=CHAMPION, label="champion until then")
        axes.plot(places, [point["rmse"] for point in history], "s", color=CHALLENGER, label="challenger")
        for place, point in zip(places, history, strict=True):
            if point["promoted"]:
                axes.axvline(place, color=CHALLENGER, linewidth=6, alpha=0.25, zorder=0)
            axes.annotate(
                f"v{point['version']}", (place, point["rmse"]), (0, -14), textcoords="offset points", ha="center"
            )
        axes.plot([], [], color=CHALLENGER, linewidth=6, alpha=0.25, label="becomes champion")
        axes.set_xticks(places, months, rotation=30, ha="right")
        axes.set_ylabel("error (rmse), minutes")
        axes.margins(y=0.2)
        axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        return _svg(figure)


def side_by_side(groups: pd.DataFrame, label: str) -> str:
    """Plot bars for each row of a table with the columns `challenger` and, optionally, `champion`."""
    with rc_context(STYLE):
        figure, axes = _figure(9, 2.8)
        width = 0.8 / len(groups.columns)
        for number, (who, color) in enumerate([("champion", CHAMPION), ("challenger", CHALLENGER)]):
            if who in groups:
                shift = width * (number - 0.5) if len(groups.columns) > 1 else 0
                axes.bar([place + shift for place in range(len(groups))], groups[who], width, color=color, label=who)
        axes.set_xticks(range(len(groups)), [str(value) for value in groups.index])
        axes.set_xlabel(label)
        axes.set_ylabel("error (rmse), minutes")
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        return _svg(figure)


def _before(point: Mapping[str, Any]) -> float:
    """Return the error of the champion at the time of this version; NaN if there was none."""
    value = point["champion_rmse"]
    return float("nan") if value is None or value == float("inf") else float(value)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    file = StringIO()
    figure.savefig(file, format="svg", metadata=METADATA)
    text = file.getvalue()
    return text[text.index("<svg") :]

"""The model card of a registered version: a self-contained HTML page, and a summary in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
from mlflow.entities import Run

from flights import plots, scores, versions

# Path among the artifacts of the version's run.
PATH = "card/index.html"

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
th{font-weight:600;border-bottom:1px solid #ccc}svg{max-width:100%;height:auto}code{overflow-wrap:anywhere}
.yes{color:#1a7f37}.no{color:#9a6700}"""
REMOTE = "mlflow.source.git.repoURL"
COMMIT = "mlflow.source.git.commit"


def page(
    version: Mapping[str, Any],
    outcome: Mapping[str, Any],
    run: Run,
    table: pd.DataFrame,
    history: Sequence[Mapping[str, Any]],
) -> str:
    """Return the page, from the flights' errors and the decisions so far."""
    who = [name for name in ("champion", "challenger") if name in table]
    by_hour, by_carrier = (
        pd.DataFrame({name: scores.by(column, table, name) for name in who}) for column in ("hour", "carrier")
    )
    mark, word = ("yes", "is the new champion") if outcome["promoted"] else ("no", "is not promoted")
    parts = [
        f"<h1>Flight delay, version {version['version']}</h1>",
        f"<p>How late will an aircraft arrive, asked as it leaves the gate? Model <b>{escape(version['model'])}</b> "
        f"<b class={mark}>{word}</b>: {escape(outcome['verdict'])}.</p>",
        "<h2>Champion and challenger</h2>",
        f"<p>Evaluated on all {len(table)} flights of {escape(outcome['month'])}, which were not trained with.</p>",
        _table(["minutes", *who], _comparison(table, who)),
        "<h3>Over the months</h3>",
        plots.over_months(history),
        "<h3>By hour of departure</h3>",
        plots.side_by_side(by_hour, "hour"),
        "<h3>By carrier</h3>",
        plots.side_by_side(by_carrier, "carrier"),
        "<h2>What it was made with</h2>",
        _table(["", ""], _made_with(version, run)),
        "<h2>Parameters</h2>",
        _table(["parameter", "value"], sorted(run.data.params.items())),
    ]
    title = f"<title>Flight delay, version {version['version']}</title>"
    head = f"<!doctype html><html lang=en><meta charset=utf-8>{title}<style>{STYLE}</style>"
    return "\n".join([head, *parts, "</html>"])


def summary(version: Mapping[str, Any], outcome: Mapping[str, Any], run: Run) -> str:
    """Return the version's description, in Markdown."""
    word = "Promoted" if outcome["promoted"] else "Not promoted"
    lines = [f"**{word}**: {outcome['verdict']}.", ""]
    lines += [f"- {name}: {value}" for name, value in _made_with(version, run)]
    return "\n".join([*lines, f"- model card: `{PATH}` among the artifacts of run `{run.info.run_id}`"])


def _comparison(table: pd.DataFrame, who: Sequence[str]) -> list[tuple[str, ...]]:
    measures = {
        "root mean square": scores.rmse,
        "mean": lambda errors: errors.abs().mean(),
        "half of the flights within": lambda errors: errors.abs().median(),
        "nine of ten within": lambda errors: errors.abs().quantile(0.9),
        "too late (+) or too early (-) on average": lambda errors: errors.mean(),
    }
    return [(name, *(f"{measure(table[one]):.2f}" for one in who)) for name, measure in measures.items()]


def _made_with(version: Mapping[str, Any], run: Run) -> list[tuple[str, str]]:
    tags = run.data.tags
    return [
        ("months", f"{version['data.months']} (the newest one held out)"),
        ("rows", run.data.params["rows"]),
        ("data", f"{versions.DATA} {versions.data_of(tags) or 'not recorded'} (DVC)"),
        ("code", f"{tags.get(COMMIT, 'not recorded')} of {tags.get(REMOTE, 'a repository that is not recorded')}"),
        ("trained on", str(version.get("trained_on", "not recorded"))),
    ]


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"

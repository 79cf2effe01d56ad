"""`metalworks compare`: show the differences between runs side by side."""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metalworks.errors import CommandError
from metalworks.runs import record
from metalworks.runs.find import HELP, connect, find
from metalworks.runs.record import Data, Recorded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNKNOWN = "unknown"
NAMED = 4
"""Name at most this many equal rows of a section; otherwise, count them."""
Value = str | float | None
CODE = {
    "commit": record.COMMIT,
    "branch": record.BRANCH,
    "dirty": record.DIRTY,
    "pushed": record.PUSHED,
    "folder": record.FOLDER,
    "remote": record.REMOTE,
}


@dataclass(frozen=True)
class Row:
    """A value in all runs: None if a run does not have it, UNKNOWN if it was not recorded."""

    name: str
    values: list[Value]
    of_known: bool = False
    """Whether to ignore runs that did not record it: otherwise, all packages of the others would differ."""

    @property
    def unknown(self) -> bool:
        """Tell whether no run recorded it."""
        return all(value == UNKNOWN for value in self.values)

    @property
    def equal(self) -> bool:
        """Tell whether all runs have the same value."""
        values = [value for value in self.values if value != UNKNOWN] if self.of_known else self.values
        return all(value == values[0] or (_nan(value) and _nan(values[0])) for value in values)


Sections = dict[str, list[Row]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `metalworks compare`."""
    parser.add_argument("first", metavar="RUN", help=HELP)
    parser.add_argument("others", metavar="RUN", nargs="+", help="runs to compare with it")
    parser.add_argument("--experiment", help="look for names only in this experiment")
    parser.add_argument("--all", action="store_true", help="show equal values, too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the differences; return 0, since a difference is not a failure."""
    from mlflow.exceptions import MlflowException

    client = connect()
    try:
        names = [arguments.first, *arguments.others]
        runs = [record.read(client, find(client, name, arguments.experiment)) for name in names]
    except MlflowException as error:
        raise CommandError(f"MLflow: {error.message}") from error
    sections = compare(runs)
    if arguments.json:
        print(json.dumps(_data(runs, sections, arguments.all), indent=2))
    else:
        _show(runs, sections, arguments.all)
    return 0


def compare(runs: Sequence[Recorded]) -> Sections:
    """Return all rows, whether equal or not."""
    return {
        "code": [
            *(Row(name, [one.tags.get(tag, UNKNOWN) for one in runs]) for name, tag in CODE.items()),
            Row("command", [" ".join(one.command) if one.command else UNKNOWN for one in runs]),
        ],
        "data": _rows(runs, lambda one: one.data, lambda one: record.DIRTY in one.tags, _describe),
        "parameters": _rows(runs, lambda one: one.params)
        + _rows(runs, lambda one: {f"flow: {key}": json.dumps(v) for key, v in (one.flow_parameters or {}).items()}),
        "scores": _rows(runs, lambda one: one.metrics),
        "environment": [
            Row("Python", [one.tags.get(record.PYTHON, UNKNOWN) for one in runs]),
            Row("host", [one.tags.get(record.HOST, UNKNOWN) for one in runs]),
            Row("packages", [UNKNOWN if one.packages is None else str(len(one.packages)) for one in runs]),
            *(
                Row(row.name, row.values, of_known=True)
                for row in _rows(runs, lambda one: one.packages or {}, lambda one: one.packages is not None)
            ),
        ],
    }


def _rows(
    runs: Sequence[Recorded],
    things: Callable[[Recorded], Mapping[str, Any]],
    known: Callable[[Recorded], bool] | None = None,
    describe: Callable[[Any], Value] = lambda thing: thing,
) -> list[Row]:
    found = [things(one) for one in runs]
    absent = [None if known is None or known(one) else UNKNOWN for one in runs]
    return [
        Row(name, [describe(of[name]) if name in of else none for of, none in zip(found, absent, strict=True)])
        for name in sorted(set().union(*found))
    ]


def _describe(data: Data) -> str:
    if data.md5 is None:
        return UNKNOWN
    clean = {True: "clean", False: "differs from dvc.lock", None: "clean unknown"}[data.clean]
    pushed = {True: "pushed", False: "not pushed", None: "pushed unknown"}[data.pushed]
    return ", ".join([data.md5, *([] if data.size is None else [_bytes(data.size)]), clean, pushed])


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _nan(value: Value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _short(name: str, value: Value) -> str:
    """Return a value for a table; commits are shortened."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if name == "folder" and not value:
        return "(root)"
    return value[:10] if name == "commit" and value != UNKNOWN else value


def _data(runs: Sequence[Recorded], sections: Sections, everything: bool) -> dict[str, Any]:
    return {
        "runs": [{"id": one.id, "name": one.run.info.run_name, "experiment": one.experiment} for one in runs],
        **{
            title: {row.name: row.values for row in rows if everything or not row.equal}
            for title, rows in sections.items()
        },
        "equal": {
            title: [row.name for row in rows if row.equal and not row.unknown] for title, rows in sections.items()
        },
        "unknown": {title: [row.name for row in rows if row.unknown] for title, rows in sections.items()},
        "diff": _diffs(runs, 80),
    }


def _show(runs: Sequence[Recorded], sections: Sections, everything: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for number, one in enumerate(runs, 1):
        console.print(Text(f"{number}  {one.title} in {one.experiment} ({one.id})"), soft_wrap=True)
    for title, rows in sections.items():
        shown = [row for row in rows if everything or not row.equal]
        if not shown:
            continue
        console.print()
        console.print(_table(title, shown, len(runs), console))
        if title == "code":
            for text in _diffs(runs, console.width):
                console.print(Text(f"\n{text}"), soft_wrap=True)
    console.print()
    console.print(Text(_sentence(sections, lambda row: row.equal and not row.unknown, "Equal", "nothing")))
    if any(row.unknown for rows in sections.values() for row in rows):
        text = _sentence(sections, lambda row: row.unknown, "Not recorded", "nothing")
        console.print(Text(f"{text} (did they run without the platform's MLflow plugin?)"))


def _table(title: str, rows: Sequence[Row], count: int, console: Console) -> Table:
    """Return the table of a section; scores also get their difference from the first run."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    scores = title == "scores"
    table = Table(box=box.SIMPLE_HEAD, title=title.capitalize(), title_justify="left", show_edge=False)
    table.add_column("", overflow="fold", max_width=max(16, console.width // 4))
    for number in range(1, count + 1):
        table.add_column(str(number), overflow="fold", justify="right" if scores else "left")
        if scores and number > 1:
            table.add_column(f"{number} - 1", overflow="fold", justify="right")
    for row in rows:
        cells: list[str] = []
        for number, value in enumerate(row.values):
            cells.append(_short(row.name, value if title != "data" or value is None else _hash(str(value))))
            if scores and number:
                cells.append(_difference(row.values[0], value))
        table.add_row(*map(Text, [row.name, *cells]))
    return table


def _hash(described: str) -> str:
    """Shorten the hash in a description of data; keep the suffix that marks directories."""
    md5, *rest = described.split(", ")
    name, dot, suffix = md5.partition(".")
    return ", ".join([name[:8] + dot + suffix, *rest])


def _difference(first: Value, other: Value) -> str:
    if not isinstance(first, float) or not isinstance(other, float):
        return ""
    return f"{other - first:+.3g}"


def _sentence(sections: Sections, chosen: Callable[[Row], bool], beginning: str, nothing: str) -> str:
    """Return one line about the chosen rows: names if they are few, otherwise their number."""
    parts = []
    for title, rows in sections.items():
        names = [row.name for row in rows if chosen(row)]
        if 0 < len(names) <= NAMED:
            parts.append(f"{title} ({', '.join(names)})")
        elif names:
            parts.append(f"{title} ({len(names)} of {len(rows)})")
    return f"{beginning}: {'; '.join(parts) or nothing}."


def _diffs(runs: Sequence[Recorded], width: int) -> list[str]:
    """Return `git diff --stat` from the first run's commit to each other one, if this clone has both."""
    commits = [one.tags.get(record.COMMIT, "") for one in runs]
    found = []
    for commit in dict.fromkeys(commits[1:]):
        if commit == commits[0] or not all(map(_commit_is_here, (commits[0], commit))):
            continue
        line = ["git", "diff", f"--stat={width}", commits[0], commit, "--"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.stdout:
            found.append(f"git diff --stat {commits[0][:10]} {commit[:10]}\n{done.stdout.rstrip()}")
    return found


def _commit_is_here(commit: str) -> bool:
    line = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    return bool(re.fullmatch("[0-9a-f]{7,64}", commit)) and not subprocess.run(line, capture_output=True).returncode

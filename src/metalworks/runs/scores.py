"""Compare the scores of a run and of its reproduction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from metalworks.errors import CommandError
from metalworks.runs.record import REPRODUCES, Recorded

if TYPE_CHECKING:
    from mlflow.entities import Run


def match(old: Recorded, made: Sequence[Run]) -> Run:
    """Return the new run that corresponds to the old one: a command may create a run for every model."""
    if not made:
        raise CommandError(
            f"the command succeeded, but no run has the tag {REPRODUCES}. Check that the platform's MLflow plugin is "
            "on PYTHONPATH, and that your code does not skip existing runs if METALWORKS_REPRODUCES is set."
        )
    same_name = [run for run in made if run.info.run_name == old.run.info.run_name]
    same_parameters = [run for run in made if run.data.params == old.params]
    both = [run for run in same_name if run in same_parameters]
    # MLflow generates a new name if the code gives none; parameters may contain a path or the time.
    for found in (both, same_parameters, same_name, list(made)):
        if len(found) == 1:
            return found[0]
        if found:
            break
    names = ", ".join(f"{run.info.run_name} {run.info.run_id}" for run in made)
    raise CommandError(
        f"the command created {len(made)} runs, and neither names nor parameters tell which one corresponds to "
        f"{old.title}: {names}. `metalworks compare` shows their scores."
    )


def show(old: Recorded, new: Recorded, names: Sequence[str], tolerance: float) -> bool:
    """Print the scores side by side and the differences; tell whether the scores are equal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("score", overflow="fold")
    for title in (old.title, f"again {new.id[:8]}", "difference"):
        table.add_column(Text(title), justify="right", overflow="fold")
    table.add_column("")
    differing, exact = [], True
    for name in names:
        first, second = old.run.data.metrics[name], new.run.data.metrics.get(name)
        same = second is not None and _same(first, second, tolerance)
        exact = exact and second is not None and _same(first, second, 0)
        if not same:
            differing.append(name)
        cells = [repr(first), "-" if second is None else repr(second)]
        cells.append("" if second is None else f"{second - first:+.3g}")
        table.add_row(*map(Text, [name, *cells, "" if same else "differs"]))
    console.print(table)
    for text in _notes(old, new):
        console.print(Text(text))
    if differing:
        within = f" (relative tolerance {tolerance:g})" if tolerance else ""
        console.print(Text(f"Different: {', '.join(differing)}{within}."))
    else:
        console.print("Equal to the last digit." if exact else f"Equal within a relative tolerance of {tolerance:g}.")
    console.print(Text(f"New run: {new.id} in experiment {new.experiment}"), soft_wrap=True)
    return not differing


def _same(first: float, second: float, tolerance: float) -> bool:
    return math.isclose(first, second, rel_tol=tolerance, abs_tol=0) or (math.isnan(first) and math.isnan(second))


def _notes(old: Recorded, new: Recorded) -> list[str]:
    """Return other differences, which may explain different scores."""
    notes = []
    names = sorted(name for name in {*old.params, *new.params} if old.params.get(name) != new.params.get(name))
    for name in names:
        notes.append(f"Parameter {name}: {old.params.get(name, '-')}, again: {new.params.get(name, '-')}")
    for path, data in new.data.items():
        if path in old.data and old.data[path].md5 != data.md5:
            notes.append(f"Data {path}: {old.data[path].md5}, again: {data.md5}")
    if new.run.info.status != "FINISHED":
        notes.append(f"The new run's state is {new.run.info.status}.")
    return notes

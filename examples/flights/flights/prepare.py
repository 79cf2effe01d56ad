"""The stage `prepare`: one Parquet file per month, so that a new month adds one file to the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import psycopg
import yaml

from flights import checks, features, raw
from flights.versions import DATA


def prepare() -> None:
    """Write the features of the months in params.yaml; if one is broken, write none."""
    months: list[str] = yaml.safe_load(Path("params.yaml").read_text())["months"]
    absent = sorted(set(months) - set(raw.arrived_months()))
    if absent:
        raise SystemExit(f"The raw database does not have {', '.join(absent)} (yet): correct `months` in params.yaml.")
    if broken := broken_months(months, months):
        raise SystemExit(f"Nothing was prepared, because of broken months: {checks.report(broken, [])}.")
    if DATA.exists():
        shutil.rmtree(DATA)
    DATA.mkdir(parents=True)
    for month in months:
        features.build(raw.read_month(month)).to_parquet(DATA / f"{month}.parquet", index=False)


def broken_months(months: list[str], others: list[str]) -> dict[str, list[str]]:
    """Return the broken months and what is wrong with them, compared with others in the raw database."""
    found = {}
    counts = raw.counts()
    for month in months:
        usual = [counts.get(other, 0) for other in others if other != month]
        try:
            problems = checks.problems(month, raw.read_month(month), usual)
        except psycopg.ProgrammingError as error:  # a column is gone, or of another type
            problems = [f"cannot be read: {str(error).splitlines()[0]}"]
        if problems:
            found[month] = problems
    return found


def load() -> dict[str, pd.DataFrame]:
    """Return the prepared months, oldest first."""
    return {file.stem: pd.read_parquet(file) for file in sorted(DATA.glob("*.parquet"))}

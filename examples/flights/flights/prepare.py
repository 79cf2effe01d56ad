"""The stage `prepare`: one parquet file per month, so that a new month adds one file to the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import yaml

from flights import features, raw
from flights.versions import DATA


def prepare() -> None:
    """Write the features of the months that params.yaml asks for."""
    months: list[str] = yaml.safe_load(Path("params.yaml").read_text())["months"]
    absent = sorted(set(months) - set(raw.arrived_months()))
    if absent:
        raise SystemExit(f"The raw database does not hold {', '.join(absent)} (yet): mend `months` in params.yaml.")
    if DATA.exists():
        shutil.rmtree(DATA)
    DATA.mkdir(parents=True)
    for month in months:
        features.build(raw.read_month(month)).to_parquet(DATA / f"{month}.parquet", index=False)


def load() -> dict[str, pd.DataFrame]:
    """Prepared months, oldest first."""
    return {file.stem: pd.read_parquet(file) for file in sorted(DATA.glob("*.parquet"))}

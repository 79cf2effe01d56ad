"""Compare the flights in the service's requests with those that its model was trained on."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from flights.errors import FlightsError
from flights.features import FEATURES

# Usual limits of the population stability index: below 0.1 alike, above 0.25 drifted.
ALIKE, OTHER = 0.1, 0.25
BINS, LEAST_ROWS = 10, 500


def report(service: str = "delay", days: int = 7) -> list[dict[str, Any]]:
    """Return each feature's index, the most changed first: the last days compared with the prepared months."""
    from flights import prepare  # imports the database's driver, which nothing else here needs

    learnt, seen = pd.concat(prepare.load().values()), asked(service, days)
    if len(seen) < LEAST_ROWS:
        raise FlightsError(
            f"{len(seen)} flights were logged in {days} days, but {LEAST_ROWS} are needed to compare: wait, use "
            "more days, or log a larger share of requests (`log_share` of the service)."
        )
    found = [{"feature": name, "psi": round(psi(learnt[name], seen[name]), 3)} for name in FEATURES]
    for row in found:
        row["verdict"] = "alike" if row["psi"] < ALIKE else "changed" if row["psi"] < OTHER else "something else"
    return sorted(found, key=lambda row: -row["psi"])


def asked(service: str, days: int) -> pd.DataFrame:
    """Return the features in requests from the prediction log, without the shadow's, which are the same."""
    first = (datetime.now(UTC) - timedelta(days=days)).date().isoformat()
    try:
        log = pd.read_parquet(
            f"s3://{os.environ['METALWORKS_PREDICTIONS_BUCKET']}/{service}",
            columns=[f"input_{name}" for name in FEATURES],
            filters=[("date", ">=", first), ("role", "!=", "shadow"), ("status", "==", 200)],
        )
    except FileNotFoundError:
        return pd.DataFrame(columns=FEATURES)
    return log.rename(columns=lambda name: name.removeprefix("input_"))


def psi(learnt: pd.Series, seen: pd.Series) -> float:
    """Return the population stability index: numbers binned by deciles, texts by the most frequent values."""
    if pd.api.types.is_numeric_dtype(learnt):
        edges = learnt.quantile(np.linspace(0, 1, BINS + 1)[1:-1]).unique()
        bins = [pd.Series(np.searchsorted(edges, each)).where(each.notna().to_numpy(), -1) for each in (learnt, seen)]
    else:
        frequent = learnt.value_counts().index[: BINS - 1]
        bins = [each.where(each.isin(frequent), "others") for each in (learnt, seen)]
    shares = pd.concat([each.value_counts(normalize=True) for each in bins], axis=1).fillna(0).clip(lower=1e-4)
    before, now = shares.iloc[:, 0], shares.iloc[:, 1]
    return float(((now - before) * np.log(now / before)).sum())

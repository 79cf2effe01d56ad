"""Scores of a model on a prepared month."""

from __future__ import annotations

from typing import Any

import pandas as pd
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from flights.features import FEATURES, TARGET


def score(model: Any, held_out: pd.DataFrame) -> dict[str, float]:
    """Return errors in minutes, and the share of the variance explained."""
    expected, predicted = held_out[TARGET], model.predict(held_out[FEATURES])
    return {
        "rmse": float(root_mean_squared_error(expected, predicted)),
        "mae": float(mean_absolute_error(expected, predicted)),
        "r2": float(r2_score(expected, predicted)),
    }


def rmse(errors: pd.Series) -> float:
    """Return the root mean square of errors."""
    return float((errors**2).mean() ** 0.5)


def by(column: str, table: pd.DataFrame, who: str) -> pd.Series:
    """Return the error of `who` for each value of a column."""
    return table.groupby(column)[who].apply(rmse)

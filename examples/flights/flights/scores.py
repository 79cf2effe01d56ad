"""How wrong a model is on a prepared month."""

from __future__ import annotations

from typing import Any

import pandas as pd
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from flights.features import FEATURES, TARGET


def score(model: Any, held_out: pd.DataFrame) -> dict[str, float]:
    """Errors in minutes, and the share of the variance explained."""
    expected, predicted = held_out[TARGET], model.predict(held_out[FEATURES])
    return {
        "rmse": float(root_mean_squared_error(expected, predicted)),
        "mae": float(mean_absolute_error(expected, predicted)),
        "r2": float(r2_score(expected, predicted)),
    }

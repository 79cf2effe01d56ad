"""A client of the model in service, which also checks the service: its answers must be the model's own."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from flights import prepare, registry
from flights.features import FEATURES

# Two machines may differ in the last bit of a sum, not more.
TOLERANCE = 1e-9


def payload(rows: pd.DataFrame) -> dict[str, Any]:
    """Rows in MLflow's scoring protocol; what is missing becomes null."""
    values = rows.astype(object).where(rows.notna(), None)
    return {"dataframe_split": {"columns": list(rows.columns), "data": values.to_numpy().tolist()}}


def ask(url: str, rows: pd.DataFrame) -> list[float]:
    """Predictions of the service at `url`."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/invocations",
        data=json.dumps(payload(rows)).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: list[float] = json.load(response)["predictions"]
    return answer


def check(url: str, rows: int = 200) -> dict[str, Any]:
    """Ask for flights of the newest month here, and compare with the champion run in this process."""
    months = prepare.load()
    flights = months[max(months)][FEATURES].head(rows)
    served = np.asarray(ask(url, flights))
    own = np.asarray(mlflow.pyfunc.load_model(f"models:/{registry.MODEL}@{registry.CHAMPION}").predict(flights))
    if served.shape != own.shape or not np.allclose(served, own, rtol=TOLERANCE, atol=TOLERANCE):
        raise SystemExit(f"{url} answers {served[:3]}…, the champion in this process {own[:3]}…")
    return {"url": url, "rows": len(own), "max_difference": float(np.abs(served - own).max()), "equal": True}

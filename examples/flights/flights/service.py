"""The model in service, as its clients see it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def ask(url: str, rows: pd.DataFrame) -> list[float]:
    """Predictions for these rows."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/invocations",
        data=json.dumps(payload(rows)).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: list[float] = json.load(response)["predictions"]
    return answer


def payload(rows: pd.DataFrame) -> dict[str, Any]:
    """Rows in MLflow's scoring protocol; what is missing becomes null."""
    values = rows.astype(object).where(rows.notna(), None)
    return {"dataframe_split": {"columns": list(rows.columns), "data": values.to_numpy().tolist()}}


def served(url: str) -> int | None:
    """The version that answers there; None: nothing answers."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/version", timeout=10) as response:
            return int(json.load(response)["version"])
    except urllib.error.URLError:
        return None

"""Client functions for the model in service."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def ask(url: str, rows: pd.DataFrame) -> list[float]:
    """Return predictions for these rows."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/invocations",
        data=json.dumps(payload(rows)).encode(),
        headers={"Content-Type": "application/json", **who()},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: list[float] = json.load(response)["predictions"]
    return answer


def who() -> dict[str, str]:
    """Return the header with the token: a worker has it in its environment, a user in a file in the home folder."""
    file = Path.home() / ".config/metalworks/inference_token"
    token = os.environ.get("METALWORKS_INFERENCE_TOKEN") or (file.read_text().strip() if file.exists() else "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def payload(rows: pd.DataFrame) -> dict[str, Any]:
    """Return rows in MLflow's scoring protocol; missing values become null."""
    values = rows.astype(object).where(rows.notna(), None)
    return {"dataframe_split": {"columns": list(rows.columns), "data": values.to_numpy().tolist()}}


def served(url: str) -> int | None:
    """Return the version that answers there, or None if nothing does."""
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/version", headers=who())
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(json.load(response)["version"])
    except urllib.error.URLError:
        return None

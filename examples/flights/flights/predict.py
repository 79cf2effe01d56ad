"""A client that checks the model in service: its predictions must be those of the model itself."""

from __future__ import annotations

import socket
import time
from typing import Any

import mlflow
import numpy as np

from flights import prepare, registry, service
from flights.features import FEATURES

# Relative tolerance of the platform's equivalence check.
TOLERANCE = 1e-5


def wait(url: str, timeout: int) -> dict[str, Any]:
    """Wait until the champion answers at `url`; the platform puts it into service by itself."""
    champion, began = registry.in_service(), time.monotonic()
    while service.served(url) != champion:
        if time.monotonic() - began > timeout:
            raise SystemExit(
                f"{url} does not serve version {champion} after {timeout} s: see the version's tags in MLflow, "
                "and the logs of model-follower and of the service"
            )
        time.sleep(0.5)
    return {"version": champion, "seconds": round(time.monotonic() - began, 1)}


def check(url: str, rows: int = 200) -> dict[str, Any]:
    """Send flights of the newest prepared month, and compare with the champion loaded in this process."""
    months = prepare.load()
    flights = months[max(months)][FEATURES].head(rows)
    answers = np.asarray(service.ask(url, flights))
    own = np.asarray(mlflow.pyfunc.load_model(f"models:/{registry.MODEL}@{registry.CHAMPION}").predict(flights))
    if answers.shape != own.shape or not np.allclose(answers, own, rtol=TOLERANCE, atol=TOLERANCE):
        raise SystemExit(f"{url} predicts {answers[:3]}…, but the champion in this process predicts {own[:3]}….")
    return {
        "url": url,
        "version": service.served(url),
        "asked_from": socket.gethostname(),
        "rows": len(own),
        "max_difference": float(np.abs(answers - own).max()),
    }

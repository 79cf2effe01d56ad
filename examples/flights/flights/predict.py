"""A client of the model in service that checks it: its answers must be the model's own."""

from __future__ import annotations

import socket
from typing import Any

import mlflow
import numpy as np

from flights import prepare, registry, service
from flights.features import FEATURES

# Two machines may differ in the last bits of a sum, not in more.
TOLERANCE = 1e-9


def check(url: str, rows: int = 200) -> dict[str, Any]:
    """Ask for flights of the newest month here, and compare with the champion run in this process."""
    months = prepare.load()
    flights = months[max(months)][FEATURES].head(rows)
    answers = np.asarray(service.ask(url, flights))
    own = np.asarray(mlflow.pyfunc.load_model(f"models:/{registry.MODEL}@{registry.CHAMPION}").predict(flights))
    if answers.shape != own.shape or not np.allclose(answers, own, rtol=TOLERANCE, atol=TOLERANCE):
        raise SystemExit(f"{url} answers {answers[:3]}…, the champion in this process {own[:3]}…: serve it anew?")
    return {
        "url": url,
        "version": service.served(url),
        "asked_from": socket.gethostname(),
        "rows": len(own),
        "max_difference": float(np.abs(answers - own).max()),
    }

"""The equivalence check: chooses the fastest allowed executor that gives MLflow's predictions.

`python -m metalworks.serving.rollout.equivalence FOLDER EXECUTORS` runs once per version in the server's environment.
It reads the samples that the model runner recorded in the model's own environment. It is a separate process, so its
memory is free again when it ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from metalworks_model_runner import array_equality, evidence, samples
from metalworks_model_runner.facts import VALUES

from metalworks.contracts import FACTS, VERDICT, EquivalenceVerdict, Facts
from metalworks.serving.predict.codecs import mlflow_request, mlflow_response
from metalworks.serving.predict.onnx import Feed, OnnxModel

INLINE_SECONDS = 200e-6
"""A model that takes longer for one row runs in a thread instead of the event loop."""


def check_equivalence(folder: Path, allowed: tuple[str, ...]) -> EquivalenceVerdict:
    """Return the verdict on the model whose facts are in `folder`, and write it there.

    Raises ValueError if no allowed executor gives MLflow's predictions.
    """
    facts: Facts = json.loads((folder / FACTS).read_text())
    reasons: list[str] = []
    verdict: EquivalenceVerdict | None = None
    comparable = allowed
    if facts.get("varies"):
        comparable = ()
        reasons.append("its answers to the same request vary, so no other executor can be compared with MLflow")
    if "onnx" in comparable:
        verdict = _onnx(folder, facts, allowed, reasons)
    for name in ("native", "pyfunc"):
        if verdict is None and name in comparable:
            found = facts["executors"][name]
            if found["ok"]:
                verdict = {
                    "executor": name,
                    "function": found.get("function", name),
                    "nulls": found.get("nulls", False),
                    "reason": found["reason"],
                }
            else:
                reasons.append(f"not {name}: {found['reason']}")
    if verdict is None:
        if "mlflow" not in allowed:
            raise ValueError(f"no allowed executor gives MLflow's predictions: {'; '.join(reasons)}")
        verdict = {
            "executor": "mlflow",
            "function": "mlflow",
            "nulls": False,
            "reason": "request by request, by MLflow's own functions",
        }
    if verdict["executor"] != "mlflow":  # the codecs can be made of these facts, which are not trusted
        mlflow_request.decoder(facts | {"nulls": verdict["nulls"]})
        mlflow_response.writer(facts["form"])
    verdict["reason"] = "; ".join([verdict["reason"], *reasons])
    verdict["warnings"] = _warnings(facts)
    verdict["allowed"] = list(allowed)
    new = folder / f"{VERDICT}.new"
    new.write_text(json.dumps(verdict, indent=1))
    new.replace(folder / VERDICT)
    return verdict


def _warnings(facts: Facts) -> list[str]:
    """Return what the platform cannot check about this model."""
    found = []
    if facts["schema"] is None:
        found.append(
            "it has no signature, so the columns and types of requests are not checked: log the model with one"
        )
    if facts.get("varies") == VALUES:
        found.append("its answers vary, so only their form was checked: number of rows, names and types")
    elif facts.get("varies"):
        found.append("its answers vary, also in their form, so nothing about them was checked")
    return found


def _onnx(folder: Path, facts: Facts, allowed: tuple[str, ...], reasons: list[str]) -> EquivalenceVerdict | None:
    """Return the verdict for the first candidate that gives MLflow's predictions for all samples."""
    found = facts["onnx"]["candidates"]
    if not found:
        reasons.append(f"not onnx: {facts['onnx']['reason'] or facts['executors']['pyfunc'].get('reason', '')}")
        return None
    known = evidence.read(folder)
    for candidate in found:
        feed = Feed(candidate["double"], candidate["columns"])
        try:
            model = OnnxModel(folder / candidate["file"], feed, facts["output_types"], facts["output_shapes"])
            equal, refused = _equal(model, known, ROWS)
            one = _seconds(model, known["rows"])
        except Exception as error:  # the runtime has errors of many types
            reason = _short(error)
        else:
            nulls, native = _takes_nulls(model, known), facts["executors"]["native"]
            quick = "native" in allowed and native["ok"] and (native["nulls"] or not nulls)
            rest = f"; the model itself answers what it refuses, as {refused} more of them" if refused else ""
            return {
                "executor": "onnx",
                "function": native["function"]
                if quick
                else "pyfunc",  # of the model's process, for rows that the runtime refuses
                "reason": f"ONNX Runtime's answers are equal to MLflow's on {equal} rows{rest}",
                "file": candidate["file"],
                "feed": {"double": feed.double, "columns": feed.columns},
                "nulls": nulls,
                "inline": one <= INLINE_SECONDS,
                "seconds_per_row": one,
            }
    reasons.append(f"not onnx: {reason}")
    return None


ROWS = (("rows", "expected", "rows of its kind"), ("edges", "edge_answers", "rows at its trees' thresholds"))
NULLS = (("nulls", "null_answers", "rows with nulls"),)
ENOUGH = 32
"""Rows that a model must accept for a comparison to count."""


def _equal(
    model: OnnxModel, known: dict[str, list[np.ndarray]], groups: Iterable[tuple[str, str, str]]
) -> tuple[int, int]:
    """Return how many rows the model answers as MLflow does, and how many it refuses, such as unknown categories.

    Raises ValueError if it answers a row differently, refuses a row of the recorded example, or accepts too few rows.
    """
    equal = refused = 0
    for group, answered, what in groups:
        if not known.get(group):
            continue
        taken, reason = _taken(model, known[group])
        example = len(taken) - samples.ROWS if group == "rows" else 0
        if not taken[:example].all() or np.sum(taken) < min(ENOUGH, len(taken)):
            raise ValueError(f"the converted model refuses {what}: {reason}")
        rows, expected = [each[taken] for each in known[group]], [each[taken] for each in known[answered]]
        for start, end in ((0, len(rows[0])), (0, 1), (1, 6)):
            ours = model([each[start:end] for each in rows])
            if reason := array_equality.difference(ours, [each[start:end] for each in expected], expected):
                raise ValueError(f"the converted model differs from MLflow on {what}: {reason}")
        equal, refused = equal + len(rows[0]), refused + int(np.sum(~taken))
    return equal, refused


def _taken(model: OnnxModel, rows: list[np.ndarray]) -> tuple[np.ndarray, str]:
    """Return which rows the model accepts, and why it refuses the others."""
    try:
        model(rows)
    except Exception:  # the runtime has errors of many types
        taken, reason = np.zeros(len(rows[0]), dtype=bool), ""
        for i in range(len(taken)):
            try:
                model([each[i : i + 1] for each in rows])
                taken[i] = True
            except Exception as error:
                reason = _short(error)
        return taken, reason
    return np.ones(len(rows[0]), dtype=bool), ""


def _takes_nulls(model: OnnxModel, known: dict[str, list[np.ndarray]]) -> bool:
    try:
        return _equal(model, known, NULLS)[0] > 0
    except Exception:  # as above
        return False


def _short(error: Exception) -> str:
    message = " ".join(str(error).split())[:200]
    return message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"


def _seconds(model: OnnxModel, rows: list[np.ndarray]) -> float:
    """Return the shortest time that the model took for one row that it accepts."""
    first = int(np.argmax(_taken(model, rows)[0]))
    one = [each[first : first + 1] for each in rows]
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        model(one)
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    os.nice(10)  # requests come first
    try:
        check_equivalence(Path(sys.argv[1]), tuple(json.loads(sys.argv[2])))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(3)

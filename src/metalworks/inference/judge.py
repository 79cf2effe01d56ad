"""Which way a model is asked: the first that is allowed and proven equal. `python -m metalworks.inference.judge`.

Run once per version, in the server's environment, on what the model's own environment left (the package
metalworks_model_runner). A process of its own, so that what it loads is gone when it ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from metalworks_model_runner import array_equality, evidence

from metalworks.inference.onnx import Feed, OnnxModel

FACTS, VERDICT = "facts.json", "verdict.json"
INLINE_SECONDS = 200e-6
"""What one row may take for the model to run between two turns of the loop; what takes longer runs in a thread."""


def judge(folder: Path, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Return {executor, why, way, …} for the model whose proof is in `folder`; also written there.

    executor: onnx (with file, feed and inline), native, pyfunc or mlflow. Raises ValueError when none is allowed.
    """
    facts = json.loads((folder / FACTS).read_text())
    whys: list[str] = []
    verdict: dict[str, Any] | None = None
    if "onnx" in allowed:
        verdict = _onnx(folder, facts, whys)
    for name in ("native", "pyfunc"):
        if verdict is None and name in allowed:
            found = facts["executors"][name]
            if found["ok"]:
                verdict = {"executor": name, "way": found.get("way", name), "nulls": found.get("nulls", False)}
                verdict["why"] = found["why"]
            else:
                whys.append(f"not {name}: {found['why']}")
    if verdict is None:
        if "mlflow" not in allowed:
            raise ValueError(f"none of the allowed executors fits: {'; '.join(whys)}")
        verdict = {
            "executor": "mlflow",
            "way": "mlflow",
            "nulls": False,
            "why": "request by request, by MLflow's own functions",
        }
    verdict["why"] = "; ".join([verdict["why"], *whys])
    verdict["allowed"] = list(allowed)
    new = folder / f"{VERDICT}.new"
    new.write_text(json.dumps(verdict, indent=1))
    new.replace(folder / VERDICT)
    return verdict


def _onnx(folder: Path, facts: dict[str, Any], whys: list[str]) -> dict[str, Any] | None:
    """Return the verdict for the first candidate that answers all samples as MLflow does."""
    found = facts["onnx"]["candidates"]
    if not found:
        whys.append(f"not onnx: {facts['onnx']['why'] or facts['executors']['pyfunc'].get('why', '')}")
        return None
    known = evidence.read(folder)
    for candidate in found:
        feed = Feed(candidate["double"], candidate["columns"])
        try:
            model = OnnxModel(folder / candidate["file"], feed, facts["output_types"], facts["output_shapes"])
            why = _differs(model, known, ROWS)
        except Exception as error:  # the runtime has errors of many types
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if not why:
            one = _seconds(model, known["rows"], 1)
            rows = len(known["rows"][0]) + (len(known["edges"][0]) if known["edges"] else 0)
            return {
                "executor": "onnx",
                "way": "pyfunc",  # of the model's process, for what is not decoded here
                "why": f"ONNX Runtime's answers are equal to MLflow's on {rows} rows",
                "file": candidate["file"],
                "feed": {"double": feed.double, "columns": feed.columns},
                "nulls": bool(known.get("nulls")) and not _differs(model, known, NULLS),
                "inline": one <= INLINE_SECONDS,
                "seconds_per_row": one,
            }
    whys.append(f"not onnx: {why}")
    return None


ROWS = (("rows", "expected", "rows of its kind"), ("edges", "edge_answers", "rows at its trees' thresholds"))
NULLS = (("nulls", "null_answers", "rows with nulls"),)


def _differs(model: OnnxModel, known: dict[str, list[np.ndarray]], groups: Iterable[tuple[str, str, str]]) -> str:
    """Return on which rows the model answers otherwise than MLflow, or nothing."""
    for rows, answers, what in groups:
        if not known.get(rows):
            continue
        count = len(known[rows][0])
        for start, end in ((0, count), (0, 1), (1, 6)):
            ours = model([each[start:end] for each in known[rows]])
            expected = [each[start:end] for each in known[answers]]
            if why := array_equality.difference(ours, expected, known[answers]):
                return f"the converted model answers {what} otherwise than MLflow: {why}"
    return ""


def _seconds(model: OnnxModel, rows: list[np.ndarray], count: int) -> float:
    """Return the least time that `count` rows took."""
    some = [each[:count] for each in rows]
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        model(some)
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    os.nice(10)  # requests come first
    try:
        judge(Path(sys.argv[1]), tuple(json.loads(sys.argv[2])))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(3)

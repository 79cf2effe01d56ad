"""Run an inference service under constant load and check that its memory does not grow (`make soak`).

The load mixes valid and invalid requests of several forms, and two versions of a model replace each other regularly.
At the end, the memory of all processes (proportional set size) in the last third of the time is compared with the
second third; the first is for warming up. The verdict is in build/soak.json; the exit code is 0 on success.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts import processes
from scripts.common import BUILD, ProblemError, end, write_json
from scripts.inference.constant_load import JSON, Load, Request
from scripts.inference.serve_model import champion, served, version, wait_until_serving, want

REPORT = BUILD / "soak.json"
CONNECTIONS, PER_SECOND = 8, 200
SWAP_SECONDS, SAMPLE_SECONDS = 20.0, 1.0
GROWTH = 0.02
"""How much memory may grow from the second third of the time to the last: the noise of a sample."""


def save_models(folder: Path) -> list[Path]:
    """Save two versions of a model: one that converts to ONNX, and one that does not."""
    import mlflow
    import numpy as np
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"
    random = np.random.default_rng(1)
    rows = pd.DataFrame(random.uniform((50, 0, 0), (2600, 15, 23), (500, 3)), columns=["distance", "wind", "hour"])
    target = rows["distance"] / 100 + rows["wind"] ** 2
    models = (
        RandomForestRegressor(50, random_state=1, n_jobs=1),
        HistGradientBoostingRegressor(categorical_features=[2]),
    )
    folders = []
    for number, model in enumerate(models, 1):
        model.fit(rows.round(), target)
        signature = mlflow.models.infer_signature(rows[:2], model.predict(rows[:2]))
        mlflow.sklearn.save_model(
            model,
            folder / str(number),
            signature=signature,
            input_example=rows[:2],
            pip_requirements=["scikit-learn"],
            serialization_format="cloudpickle",
        )
        folders.append(folder / str(number))
    return folders


def requests() -> list[Request]:
    """Return the requests of the load, good and bad."""
    columns = ["distance", "wind", "hour"]

    def split(data: list[list[Any]]) -> bytes:
        return json.dumps({"dataframe_split": {"columns": columns, "data": data}}).encode()

    one = [187.0, 0.1, 5.0]
    records = [dict(zip(columns, one, strict=True))] * 20
    quick = [Request(JSON, split([[187.0 + i, 0.1, 5.0]])) for i in range(20)]
    return [
        *quick,
        Request(JSON, split([one] * 200)),
        Request(JSON, json.dumps({"dataframe_records": records}).encode()),
        Request(JSON, json.dumps({"inputs": {name: [1.0] for name in columns}}).encode()),
        Request("text/csv", b"distance,wind,hour\n187.0,0.1,5.0\n"),
        Request(JSON, split([[187.0, "a storm", 5.0]]), 400),
        Request(JSON, b'{"dataframe_split": {', 400),
        Request(JSON, json.dumps({"instances": [{"distance": 1.0}]}).encode(), 400),
        Request("text/plain", b"x" * 10_000, 415),
    ]


def soak(folder: Path, seconds: float, workers: int) -> dict[str, Any]:
    """Run the service under load; return the figures and the verdict."""
    models = save_models(folder)
    samples: list[tuple[float, float, int]] = []
    swaps = 0
    # A replaced version ends before it is served again: starting and ending must not leak either.
    with served(folder, models[0], workers=workers, keep_previous=5, log_share=0.1) as (process, port):
        wait_until_serving(process, folder, "1")
        mix = requests()
        load = Load(port, [mix[i:] + mix[:i] for i in range(CONNECTIONS)], PER_SECOND)
        began = swapped = time.monotonic()
        wanted = 1
        while (now := time.monotonic()) - began < seconds:
            if champion(folder) == str(wanted) and now - swapped > SWAP_SECONDS:
                wanted = 3 - wanted
                want(folder, version(folder, str(wanted), models[wanted - 1]))
                swaps, swapped = swaps + 1, now
            several = len(processes.tree(process.pid))
            # Sample only between swaps: during one there are more processes.
            if several == 3 + workers:
                samples.append((now - began, processes.memory_mib(process.pid), wanted))
            for segment in (folder / "state" / "spool").glob("*.jsonl"):
                segment.unlink()
            time.sleep(SAMPLE_SECONDS)
        load.end()
        lasted = time.monotonic() - began
    return report(load, samples, swaps, lasted)


def report(load: Load, samples: list[tuple[float, float, int]], swaps: int, lasted: float) -> dict[str, Any]:
    """Return the figures, and whether memory stayed flat and every response was as expected."""
    figures: dict[str, Any] = {
        "seconds": round(lasted),
        "requests": len(load.answers),
        "statuses": dict(sorted(collections.Counter(each.status for each in load.answers).items())),
        "wrong": len(load.wrong),
        "first_wrong": load.wrong[:5],
        "swaps": swaps,
        "may_grow_by": GROWTH,
        "memory": {},
    }
    flat = True
    for number in (1, 2):
        of_version = [(at, size) for at, size, served_then in samples if served_then == number]
        thirds = [[size for at, size in of_version if i <= at / lasted * 3 < i + 1] for i in range(3)]
        middle = [statistics.median(third) if third else 0.0 for third in thirds]
        growth = middle[2] / middle[1] - 1 if middle[1] and middle[2] else None
        flat = flat and growth is not None and growth <= GROWTH
        figures["memory"][f"version {number}"] = {
            "samples": len(of_version),
            "MiB by third": [round(each, 1) for each in middle],
            "growth": round(growth, 4) if growth is not None else None,
        }
    figures["ok"] = flat and not load.wrong and swaps > 0
    return figures


def main() -> int:
    """Run the soak, write the report, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="how long (default: %(default)g)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: %(default)s)")
    arguments = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        figures = soak(folder, arguments.seconds, arguments.workers)
        if not figures["ok"]:
            shutil.copy(folder / "log", REPORT.with_suffix(".log"))
    finally:
        shutil.rmtree(folder)
    write_json(REPORT, figures)
    print(json.dumps(figures, indent=1))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProblemError as error:
        end(error)

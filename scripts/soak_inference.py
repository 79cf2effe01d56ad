"""Run an inference service under a constant load, and see that its memory does not grow; called by `make soak`.

The load is of good and bad requests in several forms, while the versions of a model take turns every so often. In the
end the memory of all its processes (their proportional shares) in the last third of the time is compared with the
second: the first is for warming up. The verdict is in build/soak.json; the exit code is 0 when all is well.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.bench_serving import processes
from scripts.serve_model import settings_for

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "build" / "soak.json"
CONNECTIONS, PER_SECOND = 8, 200
SWAP_SECONDS, SAMPLE_SECONDS = 20.0, 1.0
GROWTH = 0.02
"""Share by which memory may be more in the last third of the time than in the second: the noise of a sample."""
JSON, CSV = "application/json", "text/csv"


def save_models(folder: Path) -> list[Path]:
    """Save two versions of a model: one that is converted, one that MLflow's environment answers by itself."""
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


def requests() -> list[tuple[str, bytes, int]]:
    """Return content type, body and the status that is to come back, of what the load is made of."""
    columns = ["distance", "wind", "hour"]

    def split(data: list[list[Any]]) -> bytes:
        return json.dumps({"dataframe_split": {"columns": columns, "data": data}}).encode()

    one = [187.0, 0.1, 5.0]
    records = [dict(zip(columns, one, strict=True))] * 20
    quick = [(JSON, split([[187.0 + i, 0.1, 5.0]]), 200) for i in range(20)]
    return [
        *quick,
        (JSON, split([one] * 200), 200),
        (JSON, json.dumps({"dataframe_records": records}).encode(), 200),
        (JSON, json.dumps({"inputs": {name: [1.0] for name in columns}}).encode(), 200),
        (CSV, b"distance,wind,hour\n187.0,0.1,5.0\n", 200),
        (JSON, split([[187.0, "a storm", 5.0]]), 400),
        (JSON, b'{"dataframe_split": {', 400),
        (JSON, json.dumps({"instances": [{"distance": 1.0}]}).encode(), 400),
        ("text/plain", b"x" * 10_000, 415),
    ]


class Load:
    """Asks in threads, each so many times a second and no more."""

    def __init__(self, port: int) -> None:
        """Begin at once."""
        self.port = port
        self.statuses: collections.Counter[int] = collections.Counter()
        self.wrong: list[str] = []
        self.count = 0
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int) -> None:
        mix = requests()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        due = time.monotonic()
        at = number
        while not self._ending.is_set():
            content_type, body, wanted = mix[at % len(mix)]
            at += 1
            try:
                connection.request("POST", "/invocations", body, {"content-type": content_type})
                answer = connection.getresponse()
                said = answer.read()
                self.statuses[answer.status] += 1
                if answer.status != wanted:
                    self.wrong.append(f"{answer.status} instead of {wanted}: {said[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                connection.close()
            self.count += 1
            due = max(due + CONNECTIONS / PER_SECOND, time.monotonic() - 1)  # what is late is not made up for
            self._ending.wait(max(0.0, due - time.monotonic()))
        connection.close()

    def end(self) -> None:
        """Let every thread have its answer."""
        self._ending.set()
        for thread in self._threads:
            thread.join(130)


@contextlib.contextmanager
def served(folder: Path, model: Path, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the service; give its process and its port."""
    port = processes.free_port()
    variables = settings_for(folder, model, port, sys.executable)
    # A version that was replaced ends before it is wanted again: starting and ending is to leak nothing either.
    variables |= {"METALWORKS_INFERENCE_WORKERS": str(workers), "METALWORKS_INFERENCE_KEEP_PREVIOUS": "5"}
    variables |= {"METALWORKS_INFERENCE_LOG_SHARE": "0.1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "metalworks.inference.supervisor"],
            env={**os.environ, **variables},
            stdout=log,
            stderr=log,
        )
    try:
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def champion(folder: Path) -> str | None:
    """Return the version in service."""
    try:
        said = json.loads((folder / "run" / "state.json").read_text())["champion"]
    except FileNotFoundError:
        return None
    return str(said["version"]) if said else None


def want(folder: Path, number: int, models: list[Path]) -> None:
    """Have a version served."""
    version = folder / "versions" / str(number)
    version.mkdir(exist_ok=True)
    if not (version / "model").exists():
        (version / "model").symlink_to(models[number - 1])
    card = {"name": "model", "version": str(number), "alias": "champion", "source": "", "created": 0}
    (version / "model.json").write_text(json.dumps(card))
    entry = {"version": str(number), "path": str(version), "python": sys.executable, "environment": ""}
    new = folder / "wanted.new"
    new.write_text(json.dumps({"champion": entry, "shadow": None, "canary": None}))
    new.replace(folder / "wanted.json")


def soak(folder: Path, seconds: float, workers: int) -> dict[str, Any]:
    """Run the service for so long; return the figures and the verdict."""
    models = save_models(folder)
    samples: list[tuple[float, float, int]] = []
    swaps = 0
    with served(folder, models[0], workers) as (process, port):
        while champion(folder) is None:
            if process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.2)
        load = Load(port)
        began = swapped = time.monotonic()
        wanted = 1
        while (now := time.monotonic()) - began < seconds:
            if champion(folder) == str(wanted) and now - swapped > SWAP_SECONDS:
                wanted = 3 - wanted
                want(folder, wanted, models)
                swaps, swapped = swaps + 1, now
            several = len(processes.tree(process.pid))
            # While a version comes or goes, there are more processes than afterwards.
            if several == 2 + workers:
                samples.append((now - began, processes.memory_mib(process.pid), wanted))
            for segment in (folder / "state" / "spool").glob("*.jsonl"):
                segment.unlink()
            time.sleep(SAMPLE_SECONDS)
        load.end()
        lasted = time.monotonic() - began
    return report(load, samples, swaps, lasted)


def report(load: Load, samples: list[tuple[float, float, int]], swaps: int, lasted: float) -> dict[str, Any]:
    """Return the figures, and whether memory is flat and every answer was as it was to be."""
    figures: dict[str, Any] = {
        "seconds": round(lasted),
        "requests": load.count,
        "statuses": dict(sorted(load.statuses.items())),
        "wrong": len(load.wrong),
        "first_wrong": load.wrong[:5],
        "swaps": swaps,
        "may_grow_by": GROWTH,
        "memory": {},
    }
    flat = True
    for number in (1, 2):
        of_version = [(at, size) for at, size, version in samples if version == number]
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
    parser.add_argument("--workers", type=int, default=2, help="HTTP processes (default: %(default)s)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        figures = soak(folder, arguments.seconds, arguments.workers)
        if not figures["ok"]:
            shutil.copy(folder / "log", REPORT.with_suffix(".log"))
    finally:
        shutil.rmtree(folder)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

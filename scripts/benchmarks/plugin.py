"""Measure how much longer creating a run takes with the MLflow plugin; exit with 1 if it is too long.

Runs real programs in a real project (Git with a remote, DVC, a SQLite store), alternately with and without the plugin.
The figures are in build/bench-plugin.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.common import BUILD, ROOT, environment, write_json

PLUGIN = ROOT / "src/mlflow_plugin"
VERDICT = BUILD / "bench-plugin.json"
MOST_MS = 100.0
RUNS = 5
"""Runs that each program creates; the first one includes the time for imports."""
PROGRAM = f"""
import json, time
import mlflow
mlflow.set_experiment("bench")
took = []
for number in range({RUNS}):
    began = time.perf_counter()
    run = mlflow.start_run()
    took.append((time.perf_counter() - began) * 1000)
    mlflow.end_run()
print(json.dumps([took, run.info.run_id]))
"""
PIPELINE = """
stages:
  features:
    cmd: mkdir -p data && seq 100000 > data/features
    outs: [data]
"""


def project(folder: Path) -> Path:
    """Create a small project, commit and push it with its data, and return its folder."""
    code = folder / "project"
    code.mkdir()
    (code / "train.py").write_text(PROGRAM)
    (code / "dvc.yaml").write_text(PIPELINE)
    (code / ".gitignore").write_text("__pycache__\n")
    for number in range(200):
        (code / f"module_{number}.py").write_text("\n")
    remote = folder / "origin.git"
    for line in (
        f"git init --quiet --bare {remote}",
        "git init --quiet --initial-branch main",
        f"git remote add origin {remote}",
        "dvc init --quiet",
        f"dvc remote add --quiet --default storage {folder}/storage",
        "dvc repro --quiet",
        "git add --all",
        "git -c user.name=bench -c user.email=bench@example.com commit --quiet --message bench",
        "git push --quiet origin main",
        "dvc push --quiet",
    ):
        subprocess.run(line.split(), cwd=code, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return code


def measure(code: Path, plugin: bool) -> tuple[list[float], float, dict[str, str]]:
    """Return the milliseconds of each run of a program, the program's seconds, and the last run's tags."""
    store = f"sqlite:///{code.parent}/mlflow.db"
    variables = environment({"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(PLUGIN) if plugin else ""})
    began = time.monotonic()
    line = [sys.executable, "train.py"]
    done = subprocess.run(line, cwd=code, env=variables, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - began
    took, run = json.loads(done.stdout.splitlines()[-1])

    from mlflow import MlflowClient

    return took, seconds, MlflowClient(store).get_run(run).data.tags


def compare(code: Path, rounds: int) -> dict[str, float]:
    """Return the figures."""
    first: dict[bool, list[float]] = {True: [], False: []}
    later: dict[bool, list[float]] = {True: [], False: []}
    whole: dict[bool, list[float]] = {True: [], False: []}
    measure(code, plugin=False)  # creates the database
    for _ in range(rounds):
        for plugin in (False, True):
            took, seconds, tags = measure(code, plugin)
            if plugin != ("git.dirty" in tags and '"pushed": true' in tags.get("dvc.data", "")):
                raise SystemExit(f"With{'' if plugin else 'out'} the plugin the tags are: {sorted(tags)}")
            first[plugin].append(took[0])
            later[plugin] += took[1:]
            whole[plugin].append(seconds)
    figures: dict[str, float] = {}
    for name, values in (("first_run_ms", first), ("later_run_ms", later), ("program_s", whole)):
        with_it, without = statistics.median(values[True]), statistics.median(values[False])
        figures |= {f"{name}_with": with_it, f"{name}_without": without, f"{name}_extra": with_it - without}
    return {name: round(value, 2) for name, value in figures.items()}


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="programs with and without the plugin (default: 5)")
    rounds: int = parser.parse_args().rounds
    os.environ.setdefault("GIT_CONFIG_NOSYSTEM", "1")
    VERDICT.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(project(Path(folder)), rounds)
    ok = max(figures["first_run_ms_extra"], figures["later_run_ms_extra"]) < MOST_MS
    write_json(VERDICT, {"ok": ok, "figures": figures})
    for name, value in figures.items():
        print(f"{value:>10.2f}  {name}")
    print(f"bench-plugin: {'ok' if ok else 'FAILED'} (a run may take {MOST_MS:.0f} ms longer)")
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())

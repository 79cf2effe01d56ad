"""Work on the lab as a developer does, and note each write that was acknowledged. Runs on a dev host.

`scripts.tests.faults` sends this file to the Python of the clients' environment, with a call of `load` or `verify`
appended. Requests are never repeated, so that each one that fails counts. Packages of the clients' environment are
imported only where they are needed.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PLACE = "metalworks-faults"
"""Name of the experiment, and prefix of the objects."""
TIMEOUT = 10.0
"""Seconds after which a request has failed."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
FLIGHT = {
    "dep_delay": 30.0, "departure_hour": 17.5, "weekday": 2.0, "holiday": 0.0, "distance": 1400.0, "seats": 180.0,
    "scheduled_minutes": 200.0, "temp": 40.0, "wind_speed": 5.0, "precip": 0.0, "visib": 10.0,
    "carrier": "UA", "origin": "EWR", "dest": "IAH",
}  # fmt: skip
"""A row that the example's model predicts."""

Write = dict[str, Any]
"""A write as the ledger keeps it: what kind it is, its id and its content."""


def request(url: str, authorization: str, method: str = "GET", body: Any = None) -> bytes:
    """Return a response's body; the body of a refusal goes into the exception."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    query = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(query, timeout=TIMEOUT) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        error.msg = f"{error.msg}: {error.read().decode(errors='replace')[:200]}"
        raise


def basic(login: str) -> str:
    """Return the value of a Basic Authorization header."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def mlflow(path: str, method: str = "GET", body: Any = None) -> bytes:
    """Return a response of MLflow."""
    known = configparser.ConfigParser(interpolation=None)
    known.read(Path.home() / ".mlflow/credentials")
    mine = known["mlflow"]
    login = basic(f"{mine['mlflow_tracking_username']}:{mine['mlflow_tracking_password']}")
    return request(f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/{path}", login, method, body)


def prefect(path: str, method: str = "GET", body: Any = None) -> Any:
    """Return a response of Prefect."""
    profiles = tomllib.loads(Path.home().joinpath(".prefect/profiles.toml").read_text())
    login = profiles["profiles"][profiles["active"]]["PREFECT_API_AUTH_STRING"]
    return json.loads(request(os.environ["PREFECT_API_URL"] + path, basic(login), method, body) or b"null")


def store() -> Any:
    """Return a client of the object store that asks once."""
    config = importlib.import_module("botocore.config").Config(
        connect_timeout=TIMEOUT, read_timeout=TIMEOUT, retries={"total_max_attempts": 1}
    )
    session = importlib.import_module("botocore.session").get_session()
    return session.create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"], config=config)


def experiment() -> str:
    """Return the id of the load's experiment, which is created at first."""
    try:
        found = json.loads(mlflow(f"mlflow/experiments/get-by-name?experiment_name={PLACE}"))
        return str(found["experiment"]["experiment_id"])
    except urllib.error.HTTPError as error:
        if error.code not in (403, 404):  # 403: the name is unknown, or is another's experiment
            raise
    return str(json.loads(mlflow("mlflow/experiments/create", "POST", {"name": PLACE}))["experiment_id"])


# -- The load


def log_run(number: int, place: str, note: Callable[[Write], None]) -> None:
    """Log a run with a parameter, a metric and a file, each noted when it is acknowledged."""
    word = uuid.uuid4().hex
    body: dict[str, Any] = {"experiment_id": place, "start_time": int(time.time() * 1000)}
    run = json.loads(mlflow("mlflow/runs/create", "POST", body))["run"]["info"]["run_id"]
    note({"kind": "run", "id": run, "status": "RUNNING"})
    metric = {"key": "number", "value": number, "timestamp": int(time.time() * 1000), "step": 0}
    body = {"run_id": run, "params": [{"key": "word", "value": word}], "metrics": [metric]}
    mlflow("mlflow/runs/log-batch", "POST", body)
    note({"kind": "facts", "id": run, "word": word, "number": number})
    content = os.urandom(2048)
    mlflow(f"mlflow-artifacts/artifacts/{place}/{run}/artifacts/noise.bin", "PUT", content)
    note({"kind": "file", "id": run, "experiment": place, "sha256": hashlib.sha256(content).hexdigest()})
    mlflow("mlflow/runs/update", "POST", {"run_id": run, "status": "FINISHED", "end_time": int(time.time() * 1000)})
    note({"kind": "run", "id": run, "status": "FINISHED"})


def push(folder: Path, note: Callable[[Write], None]) -> None:
    """Push a new file with DVC."""
    word = uuid.uuid4().hex
    (folder / "data.txt").write_text(word)
    for verb in (["add", "data.txt"], ["push"]):
        done = subprocess.run(["dvc", *verb], cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise RuntimeError(f"dvc {verb[0]}: {' '.join(done.stderr.split())[-300:]}")
    note({"kind": "data", "id": hashlib.md5(word.encode(), usedforsecurity=False).hexdigest(), "word": word})


def start_flow(deployment: str, seconds: float, note: Callable[[Write], None]) -> None:
    """Start a flow run that takes these seconds."""
    made = prefect(f"/deployments/{deployment}/create_flow_run", "POST", {"parameters": {"seconds": seconds}})
    note({"kind": "flow", "id": made["id"]})


def answered(url: str) -> Any:
    """Return the service's answer to one row."""
    token = (Path.home() / ".config/metalworks/inference_token").read_text().strip()
    return json.loads(request(f"{url}/invocations", f"Bearer {token}", "POST", {"dataframe_records": [FLIGHT]}))


def predict(url: str) -> None:
    """Ask for a prediction."""
    if not (said := answered(url))["predictions"]:
        raise RuntimeError(f"no prediction: {said}")


def tell(**line: Any) -> None:
    """Print a line for the controller; end if it no longer listens."""
    with PRINTING:
        try:
            print(json.dumps(line), flush=True)
        except OSError:
            os._exit(0)


PRINTING = threading.Lock()


def repeat(kind: str, every: float, work: Callable[[Callable[[Write], None]], None]) -> None:
    """Do this at a bounded rate for ever; print what was acknowledged at once, and each attempt."""
    while True:
        began = time.time()
        error = ""
        try:
            work(lambda write: tell(write=write))
        except Exception as problem:
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
        tell(attempt=kind, began=began, seconds=round(time.time() - began, 3), error=error)
        time.sleep(max(0.0, began + every - time.time()))


def dvc_project(folder: Path) -> None:
    """Create a DVC project whose remote is a prefix of the site's own."""
    (folder / ".dvc").mkdir(parents=True)
    remote = f"['remote \"faults\"']\n    url = remote://storage/{PLACE}/dvc\n"
    (folder / ".dvc/config").write_text(f"[core]\n    no_scm = true\n    remote = faults\n{remote}")


def load(deployment: str, prediction_url: str) -> None:
    """Work until the standard input is closed."""
    numbers = iter(range(10**9))
    # In the home: what a killed load leaves there is nobody's to read.
    folder = Path(tempfile.mkdtemp(prefix=f".{PLACE}-", dir=Path.home()))
    os.environ["DVC_SITE_CACHE_DIR"] = str(folder / ".site")
    dvc_project(folder)
    place = ""

    def runs(note: Callable[[Write], None]) -> None:
        nonlocal place
        place = place or experiment()
        log_run(next(numbers), place, note)

    works: list[tuple[str, float, Callable[[Callable[[Write], None]], None]]] = [
        ("runs", 2.0, runs),
        ("predictions", 0.5, lambda _: predict(prediction_url)),
        ("data", 10.0, lambda note: push(folder, note)),
        ("flows", 15.0, lambda note: start_flow(deployment, 8.0, note)),
    ]
    for work in works:
        threading.Thread(target=repeat, args=work, daemon=True).start()
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # threads may hang in requests


def clean() -> None:
    """Remove the project, and the folders of loads that were killed."""
    for folder in [*Path.home().glob(f".{PLACE}-*"), *Path.home().glob("toolbox")]:
        shutil.rmtree(folder)


# -- What became of the writes


def run_state(write: Write) -> str:
    """Return why a run, its facts or its file are not as acknowledged, or nothing."""
    if write["kind"] == "file":
        path = f"mlflow-artifacts/artifacts/{write['experiment']}/{write['id']}/artifacts/noise.bin"
        found = hashlib.sha256(mlflow(path)).hexdigest()
        return "" if found == write["sha256"] else "other bytes"
    run = json.loads(mlflow(f"mlflow/runs/get?run_id={write['id']}"))["run"]
    if run["info"]["lifecycle_stage"] != "active":
        return f"it is {run['info']['lifecycle_stage']}"
    if write["kind"] == "run":
        # A later update may have been done without being acknowledged.
        wanted = {"RUNNING": ("RUNNING", "FINISHED"), "FINISHED": ("FINISHED",)}[write["status"]]
        return "" if run["info"]["status"] in wanted else f"it is {run['info']['status']}"
    params = {one["key"]: one["value"] for one in run["data"].get("params", ())}
    metrics = {one["key"]: one["value"] for one in run["data"].get("metrics", ())}
    same = (params.get("word"), metrics.get("number")) == (write["word"], write["number"])
    return "" if same else f"it has {params} and {metrics}"


def data_state(client: Any, bucket: str, write: Write) -> str:
    """Return why data is not as it was pushed, or nothing."""
    key = f"{PLACE}/dvc/files/md5/{write['id'][:2]}/{write['id'][2:]}"
    found = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return "" if found == write["word"].encode() else "other bytes"


def verify(writes: list[Write], bucket: str) -> dict[str, str]:
    """Return the writes that are not there as acknowledged: number in the list → why."""
    client = store()

    def look(write: Write) -> str:
        try:
            if write["kind"] == "flow":
                prefect(f"/flow_runs/{write['id']}")
                return ""
            return data_state(client, bucket, write) if write["kind"] == "data" else run_state(write)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    with ThreadPoolExecutor(4) as pool:
        return {str(number): why for number, why in enumerate(pool.map(look, writes)) if why}


def flow_states(deployment: str) -> dict[str, str]:
    """Return the states of all flow runs of a deployment, also of those whose start was not acknowledged."""
    found: dict[str, str] = {}
    while True:
        asked = {"deployments": {"id": {"any_": [deployment]}}, "limit": 200, "offset": len(found), "sort": "ID_DESC"}
        page = prefect("/flow_runs/filter", "POST", asked)
        found |= {one["id"]: one["state_type"] for one in page}
        if len(page) < 200:
            return found


def sabotage(writes: list[Write], bucket: str) -> int:
    """Delete the newest run and the newest pushed file behind the ledger's back; return how many writes that loses."""
    run = next(one["id"] for one in reversed(writes) if one["kind"] == "run")
    mlflow("mlflow/runs/delete", "POST", {"run_id": run})
    lost = len([one for one in writes if one["id"] == run and one["kind"] in ("run", "facts")])
    data = [one for one in writes if one["kind"] == "data"]
    if data:
        digest = data[-1]["id"]
        store().delete_object(Bucket=bucket, Key=f"{PLACE}/dvc/files/md5/{digest[:2]}/{digest[2:]}")
    return lost + len(data[-1:])

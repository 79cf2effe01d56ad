"""Create data on the aging lab as a developer would. Runs on a dev host, in the developer's environment.

`scripts.tests.age` appends a call to this file, pipes both into that environment's Python and reads what it prints.
This file creates a team's data, of every kind that a smoke check might mistake for its own, and the leftovers of killed
smoke checks. No mark that only this file knows distinguishes the two.
"""

from __future__ import annotations

import base64
import json
import os
import time
import tomllib
import urllib.request
import uuid
from pathlib import Path
from typing import Any

SMOKE = "metalworks-smoke"
ENTRYPOINT = "metalworks.smoke_flow.smoke"
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def prefect(path: str, body: Any = None, method: str = "POST") -> Any:
    """Return the response of Prefect's API."""
    headers = {"Content-Type": "application/json"}
    profiles = tomllib.loads(Path.home().joinpath(".prefect/profiles.toml").read_text())
    login = profiles["profiles"][profiles["active"]]["PREFECT_API_AUTH_STRING"]
    headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    query = urllib.request.Request(os.environ["PREFECT_API_URL"] + path, data, headers, method=method)
    with urllib.request.urlopen(query, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


# -- Quiet: nothing starts by itself while the site is compared with its earlier state


def pause() -> list[list[str]]:
    """Switch all schedules off, wait for the runs in progress, and return the schedules that were on."""
    paused = []
    for deployment in prefect("/deployments/filter", {}):
        for schedule in deployment["schedules"]:
            if schedule["active"]:
                paused.append([deployment["id"], schedule["id"]])
    switch(paused, active=False)
    going = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    deadline = time.monotonic() + 300
    while prefect("/flow_runs/filter", {"flow_runs": going}):
        if time.monotonic() > deadline:
            raise TimeoutError("a flow run does not end")
        time.sleep(1)
    return paused


def switch(schedules: list[list[str]], *, active: bool) -> None:
    """Switch schedules of deployments on or off."""
    for deployment, schedule in schedules:
        prefect(f"/deployments/{deployment}/schedules/{schedule}", {"active": active}, "PATCH")


# -- MLflow


def run_in(client: Any, experiment: str, *, metal: str, tags: dict[str, str] | None = None, note: str = "") -> str:
    """Create a run with a parameter, a metric, a model and, if there is a text, a file; return its id."""
    run = client.create_run(experiment, tags=tags).info.run_id
    client.log_param(run, "metal", metal)
    client.log_metric(run, "score", 1.0)
    if note:
        client.log_text(run, note, "note.txt")
    model = client.create_logged_model(experiment, name="model", source_run_id=run)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run, [__import__("mlflow").entities.LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(run)
    return str(run)


def experiment_of(client: Any, name: str, *, hidden: bool, location: str | None = None, **run: Any) -> str:
    """Create an experiment, with a run if one is described; return its id."""
    made: str = client.create_experiment(name, artifact_location=location)
    if run:
        run_in(client, made, **run)
    if hidden:
        client.delete_experiment(made)
    return made


def smoke_name() -> str:
    """Return an experiment name as the smoke checks choose it."""
    return f"{SMOKE}-{uuid.uuid4().hex[:12]}"


def theirs_in_mlflow(word: str) -> dict[str, list[str]]:
    """Create a team's data in MLflow, deleted data included; return the experiments to make look old, and all."""
    client = __import__("mlflow").MlflowClient()
    bins = experiment_of(client, f"{word}-bins", hidden=False, metal="gold", note="theirs")
    gone = run_in(client, bins, metal="gold", note="theirs")
    client.delete_run(gone)
    model = client.create_logged_model(bins, name="hidden")
    client.delete_logged_model(model.model_id)
    client.create_registered_model(word)
    for _ in range(2):
        client.create_model_version(word, f"runs:/{gone}/note.txt", gone)
    client.delete_model_version(word, "1")
    client.set_registered_model_alias(word, "champion", "2")
    traps = [
        experiment_of(client, f"{word}-hidden", hidden=True, metal="gold", note="theirs"),
        experiment_of(client, f"{SMOKE}-{word}", hidden=True, metal="gold", note="theirs"),
        # Named like those of smoke checks, but with a user's run in it, or with files elsewhere.
        experiment_of(client, smoke_name(), hidden=True, metal="gold", note="theirs"),
        experiment_of(client, smoke_name(), hidden=True, location=f"mlflow-artifacts:/{bins}"),
    ]
    return {"old": traps, "all": [bins, *traps]}


def left_in_mlflow() -> list[str]:
    """Create leftovers in MLflow, of an earlier version of the checks and of a killed one; return their ids."""
    client, name = __import__("mlflow").MlflowClient(), smoke_name()
    place = f"mlflow-artifacts:/0/{SMOKE}/{name[-12:]}"
    return [
        # Without files: they would stay as old versions, which no key may delete there.
        experiment_of(client, smoke_name(), hidden=True, metal="iron"),
        experiment_of(client, smoke_name(), hidden=True),
        experiment_of(
            client, name, hidden=False, location=place, metal="iron", note="left", tags={"metalworks.smoke": "1"}
        ),
    ]


# -- Prefect


def flow_of(name: str, deployment: str, entrypoint: str) -> str:
    """Create a flow with a deployment and a finished run with a log line; return its id."""
    flow: str = prefect("/flows/", {"name": name})["id"]
    wanted = {"name": deployment, "flow_id": flow, "entrypoint": entrypoint, "paused": True}
    made = prefect("/deployments/", wanted)["id"]
    run = prefect(f"/deployments/{made}/create_flow_run", {"state": {"type": "COMPLETED", "name": "Completed"}})["id"]
    line = {"name": "age", "level": 20, "message": "by hand", "timestamp": "2026-01-01T00:00:00Z", "flow_run_id": run}
    prefect("/logs/", [line])
    return flow


def theirs_in_prefect(word: str) -> dict[str, list[str]]:
    """Create a team's data in Prefect; return the flows to make look old, and all."""
    flow = flow_of(word, word, "flow.py:flow")
    run = prefect("/flow_runs/filter", {"flows": {"id": {"any_": [flow]}}})[0]["id"]
    prefect("/artifacts/", {"key": word, "type": "markdown", "data": "by hand", "flow_run_id": run})
    prefect("/variables/", {"name": word.replace("-", "_"), "value": "by hand"})
    kind = prefect("/block_types/slug/secret", method="GET")["id"]
    schema = prefect("/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}})[0]["id"]
    block = {"name": word, "data": {"value": "by hand"}, "block_type_id": kind, "block_schema_id": schema}
    prefect("/block_documents/", block)
    traps = [
        flow_of(f"{SMOKE}-cpu-{word}", SMOKE, ENTRYPOINT),
        # Named like those of smoke checks, but with a user's deployment.
        flow_of(f"{SMOKE}-cpu-{uuid.uuid4().hex[:8]}", word, "flow.py:flow"),
    ]
    return {"old": traps, "all": [flow, *traps]}


def left_in_prefect() -> list[str]:
    """Create the flows of killed checks, one of them without a deployment; return their ids."""
    name = f"{SMOKE}-cpu-{uuid.uuid4().hex[:8]}"
    return [flow_of(name, SMOKE, ENTRYPOINT), prefect("/flows/", {"name": f"{name[:-8]}{uuid.uuid4().hex[:8]}"})["id"]]


def remove_theirs(word: str, flows: list[str]) -> None:
    """Remove the team's data, except experiments, which only the server can remove."""
    for flow in flows:
        for run in prefect("/flow_runs/filter", {"flows": {"id": {"any_": [flow]}}}):
            prefect(f"/flow_runs/{run['id']}", method="DELETE")
        prefect(f"/flows/{flow}", method="DELETE")
    for artifact in prefect("/artifacts/filter", {"artifacts": {"key": {"any_": [word]}}}):
        prefect(f"/artifacts/{artifact['id']}", method="DELETE")
    prefect(f"/variables/name/{word.replace('-', '_')}", method="DELETE")
    block = prefect(f"/block_types/slug/secret/block_documents/name/{word}", method="GET")["id"]
    prefect(f"/block_documents/{block}", method="DELETE")
    __import__("mlflow").MlflowClient().delete_registered_model(word)


# -- Files


def left_folder() -> str:
    """Create an old folder of a killed check; return its path."""
    folder = Path(f"/tmp/{SMOKE}-01abc_yz")  # noqa: S108 - where smoke checks create theirs
    folder.mkdir(exist_ok=True)
    (folder / "model").write_text("half a model")
    os.utime(folder, (0, 0))
    return str(folder)

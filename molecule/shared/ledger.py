"""Write runs, models and flow runs on the servers' sockets, or read all of them. Reads its orders from standard input.

Input: {"password": of MLflow's administrator, "write": how many runs, or 0, "tag": what they are named after}.
Output: what the servers know, sorted, as JSON.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import sys
from typing import Any

MLFLOW, PREFECT = "/run/mlflow/api.sock", "/run/prefect-server/api.sock"
ORDERS = json.load(sys.stdin)


class Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def connect(self) -> None:
        """Open the socket, whose path is the host's name."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)


def ask(path: str, url: str, body: Any) -> Any:
    """Return the answer to a POST."""
    login = base64.b64encode(f"metalworks-admin:{ORDERS['password']}".encode()).decode()
    headers = {"Host": "localhost", "Content-Type": "application/json", "Authorization": f"Basic {login}"}
    connection = Connection(path, timeout=60)
    connection.request("POST", url, json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status >= 300:
        sys.exit(f"{url}: {answer.status} {text}")
    return json.loads(text)


def mlflow(call: str, **body: Any) -> Any:
    """Ask MLflow."""
    return ask(MLFLOW, f"/api/2.0/mlflow/{call}", body)


def prefect(call: str, **body: Any) -> Any:
    """Ask Prefect."""
    return ask(PREFECT, f"/api/{call}", body)


def write(count: int, tag: str) -> None:
    """Write runs with a parameter, a metric and a tag each, a model, and flow runs."""
    experiment = mlflow("experiments/create", name=tag)["experiment_id"]
    for number in range(count):
        run = mlflow("runs/create", experiment_id=experiment, start_time=number + 1, run_name=f"{tag}-{number}")
        run_id = run["run"]["info"]["run_id"]
        metric = {"key": "loss", "value": number / 7, "timestamp": number, "step": number}
        mlflow("runs/log-batch", run_id=run_id, metrics=[metric], params=[{"key": "depth", "value": str(number)}])
    mlflow("registered-models/create", name=f"{tag}-model", tags=[{"key": "team", "value": tag}])
    flow = prefect("flows/", name=tag)["id"]
    for number in range(count):
        state = {"type": "COMPLETED", "name": "Completed"}
        prefect("flow_runs/", flow_id=flow, name=f"{tag}-{number}", parameters={"number": number}, state=state)


def read() -> dict[str, Any]:
    """Return everything that was written, in a form that no release changes."""
    experiments = mlflow("experiments/search", max_results=1000)["experiments"]
    runs = mlflow("runs/search", experiment_ids=[one["experiment_id"] for one in experiments], max_results=1000)
    models = mlflow_get_models()
    flows = prefect("flow_runs/filter", limit=200)
    return {
        "experiments": sorted(one["name"] for one in experiments),
        "runs": sorted(
            [
                one["info"]["run_id"],
                one["info"]["run_name"],
                one["data"].get("params", []),
                [metric["value"] for metric in one["data"].get("metrics", [])],
            ]
            for one in runs.get("runs", [])
        ),
        "models": models,
        "flow runs": sorted([one["id"], one["name"], one["parameters"], one["state_type"]] for one in flows),
    }


def mlflow_get_models() -> list[str]:
    """Return the names of the registered models."""
    connection = Connection(MLFLOW, timeout=60)
    login = base64.b64encode(f"metalworks-admin:{ORDERS['password']}".encode()).decode()
    url = "/api/2.0/mlflow/registered-models/search?max_results=100"
    connection.request("GET", url, headers={"Host": "localhost", "Authorization": f"Basic {login}"})
    return sorted(one["name"] for one in json.loads(connection.getresponse().read()).get("registered_models", []))


if ORDERS["write"]:
    write(ORDERS["write"], ORDERS["tag"])
print(json.dumps(read(), sort_keys=True))

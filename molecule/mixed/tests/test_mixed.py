"""Debian 13 beside Debian 12: what is made on one works on the other. site.yml ended with its checks."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

from scripts.common import ROOT, environment, wait_until

NEW, OLD = "mixed-13", "mixed-12"
PYTHON = {NEW: "3.13", OLD: "3.11"}
INFERENCE = "https://inference.metalworks.internal/probe"
WORKER = "prefect-worker-cpu.service"
FOLLOWED = 300.0
"""Seconds until a version is in service: its packages have to be fetched first."""
REGISTER = """
mkdir -p ~/mixed && cd ~/mixed
cat >older.py <<'END'
import mlflow

class Older(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["years"] + 1.0

mlflow.models.set_model(Older())
END
cat >register.py <<'END'
import sys, cloudpickle, mlflow, older, pandas

cloudpickle.register_pickle_by_value(older)
logged = mlflow.pyfunc.log_model(
    name="model", python_model="older.py" if sys.argv[1] == "code" else older.Older(),
    input_example=pandas.DataFrame({"years": [1.0]}), pip_requirements=["mlflow", "pandas"],
    registered_model_name="probe",
)
mlflow.MlflowClient().set_registered_model_alias("probe", "champion", logged.registered_model_version)
print(logged.registered_model_version)
END
MLFLOW_EXPERIMENT_NAME=mixed /opt/metalworks/workstation/current/bin/python register.py %s 2>register.log
"""
"""Registers a model, as its source code or as a pickle of its class, and prints the version."""


def host(name: str) -> Host:
    return testinfra.get_host(f"docker://{name}")


def as_ada(name: str, script: str) -> str:
    """Run a script in a login shell of a developer."""
    return str(host(name).check_output("su - ada -c %s", f"set -euo pipefail\n{script}"))


def asked(path: str, body: str = "") -> str:
    """Return the answer of the model in service to a developer, through the gateway."""
    options = f"--header 'Content-Type: application/json' --data '{body}'" if body else ""
    token = '"Authorization: Bearer $(cat ~/.config/metalworks/inference_token)"'
    return as_ada(OLD, f"curl --silent --header {token} {options} {INFERENCE}/{path}")


def tags(version: str) -> str:
    """Return the tags of a version in MLflow, where the follower says what became of it."""
    client = f"import mlflow; print(mlflow.MlflowClient().get_model_version('probe', '{version}').tags)"
    return as_ada(OLD, f'/opt/metalworks/workstation/current/bin/python -c "{client}"')


@pytest.mark.parametrize("name", [NEW, OLD])
def test_the_hosts_are_of_different_releases(name: str) -> None:
    assert host(name).file("/etc/debian_version").content_string.split(".")[0] == name.removeprefix("mixed-")
    assert PYTHON[name] in host(name).check_output("/opt/metalworks/workstation/current/bin/python --version")


def test_every_unit_runs_on_the_newer_release() -> None:
    """The programs of the distribution are of other versions there."""
    new = host(NEW)
    assert new.check_output("systemctl --failed --plain --no-legend") == ""
    assert new.service("postgresql@17-main").is_running
    assert new.package("libglib2.0-0t64").is_installed  # runtime_packages has its name on Debian 12


@pytest.mark.parametrize(("worker", "other"), [(NEW, OLD), (OLD, NEW)])
def test_a_worker_of_either_release_takes_flow_runs(worker: str, other: str) -> None:
    command = ["ansible-playbook", "--inventory", str(Path(__file__).parents[1] / "inventory"), "playbooks/smoke.yml"]
    verdict = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "smoke.json"
    host(other).check_output(f"systemctl stop {WORKER}")
    try:
        # The stopped unit is a failed check of its own.
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    finally:
        host(other).check_output(f"systemctl start {WORKER}")
    checks = json.loads(verdict.read_text())
    found = re.search(rf"flow run completed by [^\"]*{worker}", json.dumps(checks))
    assert found, done.stdout


@pytest.mark.parametrize(("name", "kind"), [(OLD, "code"), (NEW, "pickle")])
def test_a_model_made_on_either_release_is_served_by_the_newer(name: str, kind: str) -> None:
    version = as_ada(name, REGISTER % kind).splitlines()[-1]
    wait_until(lambda: f'"version":"{version}"' in asked("version"), f"{version} is not in service", FOLLOWED, 2)
    answer = asked("invocations", '{"dataframe_split": {"columns": ["years"], "data": [[2.0]]}}')
    assert json.loads(answer)["predictions"] == [{"years": 3.0}]


def test_a_model_that_only_the_older_python_can_load_is_refused_with_a_cure() -> None:
    version = as_ada(OLD, REGISTER % "pickle").splitlines()[-1]
    wait_until(lambda: "refused" in tags(version), f"{version} is not refused", FOLLOWED, 5)
    assert "made with Python 3.11; this host serves with 3.13" in tags(version)
    assert f'"version":"{version}"' not in asked("version")

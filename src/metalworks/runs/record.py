"""Read what the MLflow plugin recorded of a run's code, data, command and environment, in tags and files."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalworks.environments import normalize_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COMMIT = "mlflow.source.git.commit"
BRANCH = "mlflow.source.git.branch"
REMOTE = "mlflow.source.git.repoURL"
DIRTY = "git.dirty"
PUSHED = "git.pushed"
FOLDER = "git.folder"
COMMAND = "metalworks.command"
HOST = "metalworks.host"
PYTHON = "python.version"
FLOW_RUN = "prefect.flow_run"
FLOW_PARAMETERS = "prefect.parameters"
ENTRYPOINT = "prefect.entrypoint"
REPRODUCES = "metalworks.reproduces"


@dataclass(frozen=True)
class Data:
    """A DVC output as it was on disk; None means not recorded, or not known then."""

    md5: str | None
    size: int | None = None
    remote: str | None = None
    clean: bool | None = None
    pushed: bool | None = None


@dataclass(frozen=True)
class Recorded:
    """A run with everything that was recorded about its origin."""

    run: Run
    experiment: str
    requirements: str | None
    """requirements.txt of the installed packages; None: not recorded."""
    diff: str | None
    """Uncommitted changes; None: not recorded."""

    @property
    def id(self) -> str:
        """Return the run's id."""
        return str(self.run.info.run_id)

    @property
    def title(self) -> str:
        """Return its name and the beginning of its id."""
        return f"{self.run.info.run_name or 'run'} {self.id[:8]}"

    @property
    def tags(self) -> dict[str, str]:
        """Return its tags."""
        return dict(self.run.data.tags)

    @property
    def params(self) -> dict[str, str]:
        """Return its parameters."""
        return dict(self.run.data.params)

    @property
    def metrics(self) -> dict[str, float]:
        """Return the last value of each score, without MLflow's system metrics."""
        return {name: value for name, value in self.run.data.metrics.items() if not name.startswith("system/")}

    @property
    def data(self) -> dict[str, Data]:
        """Return path → version of the data; tags that are not JSON give an empty version.

        The path is the tag's name, or is in its value where MLflow does not allow the name.
        """
        found = {}
        for name, text in self.tags.items():
            if name.startswith("dvc."):
                value = _json(text)
                path = value.get("path") if isinstance(value, dict) else None
                found[path if isinstance(path, str) else name.removeprefix("dvc.")] = Data(**_fields(value))
        return dict(sorted(found.items()))

    @property
    def command(self) -> list[str] | None:
        """Return the command as it was started; None: not recorded, or not readable."""
        found = _json(self.tags.get(COMMAND))
        return found if isinstance(found, list) and found and all(isinstance(part, str) for part in found) else None

    @property
    def flow_parameters(self) -> dict[str, Any] | None:
        """Return the flow run's parameters; None: not recorded, or not readable."""
        found = _json(self.tags.get(FLOW_PARAMETERS))
        return found if isinstance(found, dict) else None

    @property
    def packages(self) -> dict[str, str] | None:
        """Return distribution → version or URL; None: not recorded."""
        return None if self.requirements is None else packages(self.requirements)


def packages(requirements: str) -> dict[str, str]:
    """Return what a requirements.txt pins: normalized name → version or URL."""
    found = {}
    for line in requirements.splitlines():
        match = re.fullmatch(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:==|@)\s*(\S+)\s*", line)
        if match:
            found[normalize_name(match[1])] = match[2]
    return found


def read(client: MlflowClient, run: Run) -> Recorded:
    """Return the run with the files of its folder versions/."""
    experiment = client.get_experiment(run.info.experiment_id).name
    there = {item.path for item in client.list_artifacts(run.info.run_id, "versions")}

    def text(name: str) -> str | None:
        path = f"versions/{name}"
        if path not in there:
            return None
        with tempfile.TemporaryDirectory() as folder:
            return Path(client.download_artifacts(run.info.run_id, path, folder)).read_text(errors="replace")

    return Recorded(run, experiment, text("requirements.txt"), text("git.diff"))


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except json.JSONDecodeError:
        return None


def _fields(value: Any) -> dict[str, Any]:
    known = value if isinstance(value, dict) else {}
    return {name: known.get(name) for name in ("md5", "size", "remote", "clean", "pushed")}

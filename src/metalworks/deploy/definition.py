"""A project's prefect.yaml, and the file generated from it that Prefect gets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metalworks.deploy.source import Source
from metalworks.errors import CommandError

FILE = "prefect.yaml"
CODE = "METALWORKS_FLOW_CODE"
REMOTE = "METALWORKS_GIT_REMOTE"
FOLDER = "METALWORKS_GIT_FOLDER"
MARK = "METALWORKS_DEPLOYMENT_SHA256"
"""Variable of a deployment: digest of everything that it was made from."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PULL = [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
"""No pull steps are needed: the worker puts the code into the folder where the run starts."""


@dataclass
class Deployment:
    """One deployment of the file."""

    raw: dict[str, Any]
    """As written, with its templates."""
    resolved: dict[str, Any]
    flow: str = ""
    """The flow's name, once loaded."""

    @property
    def name(self) -> str:
        """Return the deployment's name."""
        return str(self.resolved.get("name") or "")

    @property
    def slug(self) -> str:
        """Return the name that Prefect uses: flow/deployment."""
        return f"{self.flow or self.entrypoint.rpartition(':')[2]}/{self.name}"

    @property
    def entrypoint(self) -> str:
        """Return the location of its flow."""
        return str(self.resolved.get("entrypoint") or "")

    @property
    def pool(self) -> str:
        """Return the name of its work pool."""
        return str(self._pool.get("name") or "")

    @property
    def queue(self) -> str | None:
        """Return the name of its work queue, or None for the pool's default queue."""
        return self._pool.get("work_queue_name")

    @property
    def _pool(self) -> dict[str, Any]:
        return self.resolved.get("work_pool") or {}

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that the project sets for its runs."""
        found = (self._pool.get("job_variables") or {}).get("env") or {}
        return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}

    @property
    def parameters(self) -> dict[str, Any]:
        """Return the parameters that it sets."""
        return self.resolved.get("parameters") or {}

    @property
    def schedules(self) -> list[dict[str, Any]]:
        """Return its schedules."""
        found = self.resolved.get("schedules") or [self.resolved.get("schedule")]
        return [item for item in found if item]


@dataclass
class Definition:
    """A prefect.yaml."""

    project: str
    deployments: list[Deployment]
    problems: list[str]
    hints: list[str]


def read(code: Path, project: Path) -> Definition:
    """Read the project's prefect.yaml and resolve its templates. Raises CommandError if it cannot be read."""
    path = code / FILE
    if not path.is_file():
        raise CommandError(f"{FILE} is not in the commit: `git add {FILE}`, commit and push.")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise CommandError(f"{FILE} is not valid YAML: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("deployments"), list) or not raw["deployments"]:
        raise CommandError(f"{FILE} has no list of `deployments`: see https://docs.prefect.io (prefect.yaml).")
    raw = json.loads(json.dumps(raw, default=str))  # dates become text, as Prefect reads them
    problems = [f"{FILE}: {text}" for text in [*_unlike_prefects(raw), *_unset(raw["deployments"])]]
    if any(not isinstance(item, dict) for item in raw["deployments"]):
        raise CommandError("\n  - ".join([f"{FILE} cannot be read:", *problems]))
    name = str(raw.get("name") or _own_name(code) or project.name)
    if not NAME.fullmatch(name):
        problems.append(f"{FILE}: name: {name!r} may contain only letters, digits, dot, - and _")
    hints = []
    for where in (raw, *raw["deployments"]):
        for steps in ("build", "push"):
            if where.get(steps):
                problems.append(f"{FILE}: remove the `{steps}` steps: this command uploads the code")
        if where.get("pull") and where["pull"] != PULL:
            hints.append(f"{FILE}: its `pull` steps are ignored: workers fetch the code of the commit")
    resolved = [_resolved(item, problems) for item in raw["deployments"]]
    pairs = zip(raw["deployments"], resolved, strict=True)
    return Definition(name, [Deployment(*pair) for pair in pairs], problems, list(dict.fromkeys(hints)))


def _own_name(code: Path) -> str | None:
    from metalworks.errors import FlowRunError
    from metalworks.flow_run.lock import settings

    try:
        name: str | None = settings(code).get("project", {}).get("name")
    except FlowRunError:
        return None
    return name


def _unlike_prefects(raw: dict[str, Any]) -> list[str]:
    """Return where the file does not follow Prefect's schema."""
    from prefect.cli.deploy._models import PrefectYamlModel
    from pydantic import ValidationError

    try:
        PrefectYamlModel.model_validate(raw)
    except ValidationError as error:
        # An invalid schedule gives one error for each kind of schedule; keep the first.
        found: dict[str, str] = {}
        for problem in error.errors():
            place = [str(part) for part in problem["loc"][:3]]
            if len(place) > 1 and place[0] == "deployments":
                item = raw["deployments"][int(place[1])]
                place[1] = str(item.get("name") or f"no. {int(place[1]) + 1}") if isinstance(item, dict) else place[1]
            found.setdefault(" → ".join(place), problem["msg"])
        return [f"{place}: {text}" for place, text in found.items()]
    return []


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _unset(value: Any) -> list[str]:
    """Return which environment variables the file refers to that are not set."""
    asked = {name for text in _texts(value) for name in re.findall(r"{{\s*\$(\w+)\s*}}", text)}
    return [
        f"it refers to ${name}, which is not set here: `export {name}=…`" for name in sorted(asked - os.environ.keys())
    ]


def _resolved(item: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return a deployment with its templates resolved, except blocks, which may hold secrets."""
    from prefect.utilities.templating import apply_values, resolve_block_document_references, resolve_variables

    text = json.dumps(item)
    found: Any = item
    if "prefect.variables." in text or "prefect.blocks." in text:
        try:
            found = asyncio.run(resolve_variables(item))
            asyncio.run(resolve_block_document_references(found))
        except Exception as error:
            problems.append(f"{FILE}: {item.get('name')}: cannot read a Prefect block or variable: {error}")
    resolved: Any = apply_values(found, {}, remove_notset=False)
    return dict(resolved)


def contract(source: Source, url: str, digest: str) -> dict[str, str]:
    """Return the variables that describe the code to each run of the deployments."""
    return {
        CODE: url,
        "METALWORKS_FLOW_CODE_SHA256": digest,
        "METALWORKS_GIT_COMMIT": source.commit,
        "METALWORKS_GIT_BRANCH": source.branch,
        REMOTE: source.remote,
        "METALWORKS_GIT_DIRTY": str(source.dirty).lower(),
        FOLDER: source.folder,
    }


def _with(item: Mapping[str, Any], version: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return a deployment with the platform's version and variables added."""
    pool = dict(item.get("work_pool") or {})
    job = dict(pool.get("job_variables") or {})
    job["env"] = {**(job.get("env") or {}), **variables}
    rest = {key: value for key, value in item.items() if key not in ("pull", "build", "push")}
    return {**rest, "version": version, "work_pool": {**pool, "job_variables": job}}


def mark(deployment: Deployment, version: str, variables: Mapping[str, str]) -> str:
    """Return the digest of everything that a deployment is made from."""
    whole = _with(deployment.resolved, version, variables)
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def generated(project: str, deployments: Sequence[Deployment], version: str, variables: Mapping[str, str]) -> str:
    """Return the prefect.yaml that Prefect gets."""
    items = [_with(item.raw, version, {**variables, MARK: mark(item, version, variables)}) for item in deployments]
    return yaml.safe_dump({"name": project, "pull": PULL, "deployments": items}, sort_keys=False)

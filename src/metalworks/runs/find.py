"""Find a run by its id, the beginning of the id, its name, or a version of a registered model."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from metalworks.errors import CommandError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

HELP = "a run's id, the first six or more digits of it, a run's name, models:/NAME/VERSION or models:/NAME@ALIAS"
SHOWN = 5
"""List at most this many candidates."""


def connect() -> MlflowClient:
    """Return a client for the server in MLFLOW_TRACKING_URI. Raises CommandError if it is not set."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise CommandError("MLFLOW_TRACKING_URI is not set: set it to the URL of the MLflow server.")
    # By default, the client retries for minutes if the server is down, and draws progress bars over our output.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient()


def find(client: MlflowClient, text: str, experiment: str | None = None) -> Run:
    """Return the run that the text identifies, looking for names in one experiment or in all. Raises CommandError."""
    from mlflow.exceptions import MlflowException

    try:
        run = (
            client.get_run(_of_model(client, text))
            if text.startswith("models:/")
            else _by_text(client, text, experiment)
        )
    except MlflowException as error:
        raise CommandError(f"{text}: MLflow: {error.message}") from error
    if run.info.lifecycle_stage == "deleted":
        raise CommandError(f"{text}: run {run.info.run_id} is deleted: `mlflow runs restore --run-id` restores it.")
    return run


def _of_model(client: MlflowClient, text: str) -> str:
    """Return the id of the run that created a version of a model."""
    found = re.fullmatch(r"models:/([^/@]+)(?:/([0-9]+)|@([^/@]+))", text)
    if not found:
        raise CommandError(f"{text}: use models:/NAME/VERSION with a number, or models:/NAME@ALIAS.")
    name, number, alias = found.groups()
    version = client.get_model_version(name, number) if number else client.get_model_version_by_alias(name, alias)
    if not version.run_id:
        raise CommandError(f"{text}: version {version.version} was registered without a run.")
    return str(version.run_id)


def _by_text(client: MlflowClient, text: str, experiment: str | None) -> Run:
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return client.get_run(text)
    places = experiments(client)
    if experiment is not None:
        places = {id_: name for id_, name in places.items() if name == experiment}
        if not places:
            raise CommandError(f"no experiment {experiment!r} on {client.tracking_uri}.")
    if "'" in text and '"' in text:  # MLflow's filters cannot express it
        raise CommandError(f"{text}: cannot search for a name with both kinds of quotes: use the run's id.")
    quote = '"' if "'" in text else "'"
    conditions = [f"attributes.run_name = {quote}{text}{quote}"]
    if re.fullmatch(r"[0-9a-f]{6,31}", text):
        conditions.append(f"attributes.run_id LIKE '{text}%'")
    found = {run.info.run_id: run for condition in conditions for run in search(client, list(places), condition)}
    if len(found) == 1:
        return next(iter(found.values()))
    where = f"in experiment {experiment}" if experiment else "in any experiment"
    if not found:
        raise CommandError(f"{text}: no run {where} has this name, or an id that begins with it. RUN is {HELP}.")
    lines = [f"  {id_}  {run.info.run_name}  in {places[run.info.experiment_id]}" for id_, run in found.items()]
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    message = [f"{text} matches {len(lines)} runs; use the id of one:", *lines[:SHOWN], *more]
    raise CommandError("\n".join(message))


def experiments(client: MlflowClient) -> dict[str, str]:
    """Return id → name of all experiments that the user may see."""
    found, token = {}, None
    while True:
        page = client.search_experiments(page_token=token)
        found.update({experiment.experiment_id: experiment.name for experiment in page})
        token = page.token
        if not token:
            return found


def search(client: MlflowClient, places: list[str], condition: str) -> list[Run]:
    """Return all runs in the experiments with these ids that match the condition, newest first."""
    found: list[Run] = []
    token = None
    while places:
        page = client.search_runs(places, condition, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            break
    return found

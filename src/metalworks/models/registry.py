"""What the MLflow server knows about a model, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from metalworks.models.card import ModelCard
from metalworks.models.errors import FetchError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"


def resolve(tracking_uri: str, name: str, alias: str) -> ModelCard | None:
    """Return the card of the version that `alias` points to; None while there is no such model or alias."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        number = client.get_registered_model(name).aliases.get(alias)
        if number is None:
            return None
        version = client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code == _NOT_FOUND:
            return None
        raise FetchError(f"MLflow at {tracking_uri} does not answer for model {name}: {error.message}") from error
    return ModelCard(
        name=name,
        version=str(version.version),
        alias=alias,
        source=str(version.source),
        created=int(version.creation_timestamp),
        run_id=version.run_id or None,
        git_commit=_git_commit(client, version.run_id) if version.run_id else None,
    )


def _git_commit(client: MlflowClient, run_id: str) -> str | None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    try:
        tags = client.get_run(run_id).data.tags
    except MlflowException as error:
        if error.error_code == _NOT_FOUND:  # a version outlives its run
            return None
        raise FetchError(f"MLflow does not answer for run {run_id}: {error.message}") from error
    return tags.get(MLFLOW_GIT_COMMIT)


def download(tracking_uri: str, card: ModelCard, into: Path) -> None:
    """Bring the version's files through the server's artifact proxy into the folder `into`."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        download_artifacts(
            artifact_uri=f"models:/{card.name}/{card.version}",
            dst_path=str(into),
            tracking_uri=tracking_uri,
            registry_uri=tracking_uri,
        )
    except (MlflowException, OSError) as error:  # OSError: the connection or the disk
        raise FetchError(f"the files of model {card.name} version {card.version} cannot be fetched: {error}") from error
    if not (into / "MLmodel").is_file():
        raise FetchError(f"model {card.name} version {card.version} has no file MLmodel: it is not an MLflow model")

"""Remove for good what people deleted in MLflow some days ago: runs, logged models and experiments, with their files.

MLflow only hides what is deleted. Its own `mlflow gc` ends at the first location that it cannot read, ignores files
that the store refuses to delete, and takes the files of registered models along. Here, each item is judged by itself:

- What a version of a registered model was made from stays, and so does a run whose logged model nobody deleted.
- Only files in the bucket of MLflow are deleted, and only in a folder that is the item's own.
- The files go first and are looked for again, then the rows. So a killed or failed run loses track of nothing.

The journal says what was removed, what stays and why. Exit status 1 means that something could not be removed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from mlflow.entities import LifecycleStage
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

PROXIED = "mlflow-artifacts"
"""Scheme of locations that MLflow's server looks up in its bucket."""
DEFAULT_EXPERIMENT = 0
"""MLflow needs this experiment, even if somebody deleted it."""
DAY_MS = 24 * 60 * 60 * 1000


class Stays(Exception):
    """The item is not removed, for a reason that is no fault."""


def segments(path: str) -> list[str]:
    """Return the parts of a path."""
    return path.strip("/").split("/")


def own_folder(location: str | None, bucket: str, own: tuple[str, ...]) -> str:
    """Return the path in the bucket of a location whose last parts are the item's own; other locations stay."""
    parts = urlsplit(location or "")
    if parts.scheme == PROXIED and not parts.netloc:
        path = parts.path.strip("/")
    elif (location or "").startswith(f"{bucket}/"):
        path = (location or "").removeprefix(f"{bucket}/").strip("/")
    else:
        raise Stays(f"its files are not in {bucket} but at {location}")
    names = segments(path)
    if tuple(names[-len(own) :]) != own or {"", ".", ".."} & {*names} or re.search(r"[%?#\\]", location or ""):
        raise Stays(f"its location {location} is not a folder of its own")
    return path


def within(path: str, text: str | None) -> bool:
    """Tell whether a location or a model's source names this path, or something below it."""
    return bool(re.search(rf"(^|[/:]){re.escape(path)}(/|$)", text or ""))


def names_model(text: str | None) -> bool:
    """Tell whether a location or a model's source names a logged model."""
    return bool(re.search(r"(^|[/:])m-[0-9a-f]{32}(/|$)", text or ""))


def first_file(repository: ArtifactRepository, path: str | None = None) -> str:
    """Return the path of a file in a location; empty if there is none. MinIO lists folders whose files are deleted."""
    for found in repository.list_artifacts(path):
        if name := first_file(repository, found.path) if found.is_dir else str(found.path):
            return name
    return ""


class Collector:
    """Removes items one by one and counts."""

    def __init__(self, store: SqlAlchemyStore, bucket: str, before: int) -> None:
        """Keep the store, the URL of the bucket, and the time before which an item must have been deleted."""
        self.store, self.bucket, self.before = store, bucket.rstrip("/"), before
        self.removed = self.stay = self.failed = 0

    def attempt(self, what: str, remove: Callable[[], None]) -> bool:
        """Remove an item and say so; tell whether it is gone."""
        try:
            remove()
        except Stays as reason:
            self.stay += 1
            print(f"{what} stays: {reason}", flush=True)
            return False
        except Exception as error:  # one item must not keep the others; the next run tries again
            self.failed += 1
            print(f"{what} could not be removed: {error!r}", file=sys.stderr, flush=True)
            return False
        self.removed += 1
        print(f"{what} was removed", flush=True)
        return True

    def refuse_used(self, path: str, run: str = "") -> None:
        """Keep what a version of a registered model, or another experiment, refers to."""
        if user := self.user(path, run):
            raise Stays(user)

    # MLflow's sessions turn every exception into one of their own, so these return the reason.

    def user(self, path: str, run: str) -> str:
        """Return what refers to a path, or was made from a run; empty if nothing does."""
        with self.store.ManagedSessionMaker() as session:
            versions = session.query(SqlModelVersion).filter(SqlModelVersion.current_stage != STAGE_DELETED_INTERNAL)
            for one in versions:
                # models:/name/5 is a version, and storage_location says where its files are; models:/m-… is a model.
                places = [one.storage_location, re.sub("^models:/(?!m-).*", "", one.source or "")]
                # runs:/<id>/model may stand for a logged model of the run, and does not say which.
                made = bool(run) and one.run_id == run and (path == run or not any(map(names_model, places)))
                if made or any(within(path, place) for place in places):
                    return f"version {one.version} of the registered model {one.name} was made from it"
            for experiment in session.query(SqlExperiment):
                if within(path, experiment.artifact_location) and path != str(experiment.experiment_id):
                    return f"experiment {experiment.name} stores its files below it"
        return ""

    def wanted(self, run_id: str) -> str:
        """Return why somebody still wants a run; empty if nobody does."""
        with self.store.ManagedSessionMaker() as session:
            run = session.query(SqlRun).filter(SqlRun.run_uuid == run_id).one()
            if run.lifecycle_stage != LifecycleStage.DELETED:
                return "it was restored just now"
            if self.expired(run.experiment):
                return ""
            models = session.query(SqlLoggedModel).filter(
                SqlLoggedModel.source_run_id == run_id, SqlLoggedModel.lifecycle_stage != LifecycleStage.DELETED
            )
            model = models.first()
            return f"its logged model {model.model_id} was not deleted" if model else ""

    def delete_files(self, path: str) -> None:
        """Delete all files of a folder in the bucket; raise an error if one is still there."""
        repository = get_artifact_repository(f"{self.bucket}/{path}")
        repository.delete_artifacts()
        if left := first_file(repository):  # the store refuses single files without an error
            raise OSError(f"the object store did not delete all of its files, such as {left}")

    def models(self) -> None:
        """Remove logged models that were deleted themselves."""
        deleted = [SqlLoggedModel.lifecycle_stage == LifecycleStage.DELETED]
        with self.store.ManagedSessionMaker() as session:
            asked = session.query(SqlLoggedModel).filter(
                *deleted, SqlLoggedModel.last_updated_timestamp_ms <= self.before
            )
            found = [(one.model_id, one.artifact_location, one.source_run_id) for one in asked]
        for each in found:
            self.model(*each)

    def model(self, model_id: str, location: str, run_id: str | None) -> bool:
        """Remove a logged model."""

        def remove() -> None:
            path = own_folder(location, self.bucket, ("models", model_id, "artifacts"))
            self.refuse_used(model_id, run_id or "")
            self.delete_files(path)
            self.store._hard_delete_logged_model(model_id)

        return self.attempt(f"logged model {model_id}", remove)

    def runs(self) -> None:
        """Remove runs that were deleted, or whose experiment was."""
        with self.store.ManagedSessionMaker() as session:
            asked = session.query(SqlRun).filter(
                SqlRun.lifecycle_stage == LifecycleStage.DELETED, SqlRun.deleted_time <= self.before
            )
            found = [(one.run_uuid, one.artifact_uri) for one in asked]
        for run_id, location in found:
            self.run(run_id, location)

    def run(self, run_id: str, location: str) -> None:
        """Remove a run."""

        def remove() -> None:
            path = own_folder(location, self.bucket, (run_id, "artifacts"))
            self.refuse_used(run_id, run_id)
            if reason := self.wanted(run_id):
                raise Stays(reason)
            self.delete_files(path)
            self.store._hard_delete_run(run_id)

        self.attempt(f"run {run_id}", remove)

    def expired(self, experiment: SqlExperiment) -> bool:
        """Tell whether an experiment was deleted long enough ago, with all that is in it."""
        return bool(
            experiment.lifecycle_stage == LifecycleStage.DELETED
            and experiment.last_update_time is not None
            and experiment.last_update_time <= self.before
        )

    def experiments(self) -> None:
        """Remove deleted experiments, with the logged models in them, once no run is left there."""
        with self.store.ManagedSessionMaker() as session:
            expired = [
                one
                for one in session.query(SqlExperiment).filter(SqlExperiment.experiment_id != DEFAULT_EXPERIMENT)
                if self.expired(one)
            ]
            found = [
                (one.experiment_id, one.name, one.artifact_location,
                 [(each.model_id, each.artifact_location, each.source_run_id) for each in one.logged_models])
                for one in expired
            ]  # fmt: skip
        for number, name, location, models in found:
            gone = [self.model(*model) for model in models]
            if all(gone):
                self.experiment(number, name, location)

    def experiment(self, number: int, name: str, location: str) -> None:
        """Remove an experiment without runs and logged models."""

        def remove() -> None:
            with self.store.ManagedSessionMaker() as session:
                runs = session.query(SqlRun).filter(SqlRun.experiment_id == number).count()
            if runs:
                raise Stays(f"{runs} of its runs stay")
            # Traces and what else people uploaded there. A folder that people chose may be others' too: it stays.
            if urlsplit(location or "").path.strip("/") == str(number):
                self.refuse_used(own_folder(location, self.bucket, (str(number),)))
                self.delete_files(str(number))
            self.store._hard_delete_experiment(str(number))

        self.attempt(f"experiment {name} ({number})", remove)


def main() -> int:
    """Remove what was deleted long enough ago."""
    parser = argparse.ArgumentParser(description="Remove for good what was deleted in MLflow some days ago.")
    parser.add_argument("--days", type=float, required=True, help="days since something was deleted")
    days = parser.parse_args().days
    store = SqlAlchemyStore(os.environ["MLFLOW_BACKEND_STORE_URI"], f"{PROXIED}:/")
    before = int(time.time() * 1000 - days * DAY_MS)
    collector = Collector(store, os.environ["MLFLOW_ARTIFACTS_DESTINATION"], before)
    collector.models()
    collector.runs()
    collector.experiments()
    counts = f"{collector.removed} removed, {collector.stay} stay, {collector.failed} failed"
    print(f"Deleted {days:g} days ago or earlier: {counts}", flush=True)
    return 1 if collector.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What people deleted in MLflow is removed for good, and nothing else: MLflow's own store, and files in a bucket."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow.entities import RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from tests.unit.repository import load

DAY = 24 * 60 * 60 * 1000
OLD, YOUNG = 40, 3
DAYS = 30


class Site:
    """A tracking store with a bucket, and what people do there."""

    def __init__(self, program: ModuleType, database: str, bucket: str) -> None:
        self.program, self.bucket = program, bucket
        self.store, self.registry = SqlAlchemyStore(database, "mlflow-artifacts:/"), Registry(database)

    def place(self, location: str) -> str:
        return location.replace("mlflow-artifacts:/", f"{self.bucket}/")

    def upload(self, location: str, folder: Path) -> None:
        (folder / "model.bin").write_text("model")
        get_artifact_repository(self.place(location)).log_artifact(str(folder / "model.bin"), "model")

    def has_files(self, location: str) -> bool:
        return bool(self.program.first_file(get_artifact_repository(self.place(location))))

    def run(self, experiment: str, folder: Path) -> Any:
        tags = [RunTag("mlflow.user", "ada")]
        info = self.store.create_run(experiment, "ada", int(time.time() * 1000), tags, "run").info
        self.upload(info.artifact_uri, folder)
        return info

    def model(self, experiment: str, folder: Path, run: str | None = None) -> Any:
        model = self.store.create_logged_model(experiment, "model", run)
        self.upload(model.artifact_location, folder)
        return model

    def age(self, kind: Any, column: str, key: Any, days: float) -> None:
        """Make it look as if an item had been deleted that many days ago."""
        with self.store.ManagedSessionMaker(read_only=False) as session:
            setattr(session.get(kind, key), column, int(time.time() * 1000 - days * DAY))

    def delete_run(self, run: Any, days: float) -> None:
        self.store.delete_run(run.run_id)
        self.age(SqlRun, "deleted_time", run.run_id, days)

    def delete_model(self, model: Any, days: float) -> None:
        self.store.delete_logged_model(model.model_id)
        self.age(SqlLoggedModel, "last_updated_timestamp_ms", model.model_id, days)

    def delete_experiment(self, number: str, days: float) -> None:
        runs = [one.info.run_id for one in self.store.search_runs([number], "", 3)]
        self.store.delete_experiment(number)
        self.age(SqlExperiment, "last_update_time", int(number), days)
        for run in runs:
            self.age(SqlRun, "deleted_time", run, days)

    def count(self, kind: Any, key: Any) -> int:
        with self.store.ManagedSessionMaker() as session:
            return int(session.get(kind, key) is not None)

    def collect(self) -> Any:
        before = int(time.time() * 1000 - DAYS * DAY)
        collector = self.program.Collector(self.store, self.bucket, before)
        collector.models()
        collector.runs()
        collector.experiments()
        return collector


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a site in SQLite and a folder."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "bucket").mkdir()
    database = os.environ.get("TEST_DATABASE", f"sqlite:///{folder}/mlflow.db")
    return Site(
        load("roles/mlflow/files/collect.py"), database, os.environ.get("TEST_BUCKET", f"file://{folder}/bucket")
    )


@pytest.fixture
def experiment(site: Site, request: pytest.FixtureRequest) -> str:
    return str(site.store.create_experiment(f"{request.node.name}-{time.time()}"))


def test_only_what_was_deleted_long_ago_is_removed_with_its_files(site: Site, experiment: str, tmp_path: Path) -> None:
    old, young, kept = (site.run(experiment, tmp_path) for _ in range(3))
    model = site.model(experiment, tmp_path)
    site.delete_run(old, OLD)
    site.delete_run(young, YOUNG)
    site.delete_model(model, OLD)
    assert site.collect().failed == 0
    assert [site.count(SqlRun, one.run_id) for one in (old, young, kept)] == [0, 1, 1]
    assert [site.has_files(one.artifact_uri) for one in (old, young, kept)] == [False, True, True]
    assert site.count(SqlLoggedModel, model.model_id) == 0
    assert not site.has_files(model.artifact_location)
    assert site.collect().removed == 0


def test_what_a_registered_model_was_made_from_stays(
    site: Site, experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"delay-{experiment}"
    site.registry.create_registered_model(name)
    source, lineage, withdrawn = (site.run(experiment, tmp_path) for _ in range(3))
    model, unclear = site.model(experiment, tmp_path), site.model(experiment, tmp_path, lineage.run_id)
    site.registry.create_model_version(name, f"{source.artifact_uri}/model")
    site.registry.create_model_version(name, "s3://elsewhere/model", lineage.run_id)
    site.registry.create_model_version(name, model.artifact_location)
    gone = site.registry.create_model_version(name, f"runs:/{withdrawn.run_id}/model", withdrawn.run_id)
    site.registry.delete_model_version(name, gone.version)
    for run in (source, lineage, withdrawn):
        site.delete_run(run, OLD)
    site.delete_model(model, OLD)
    site.delete_model(unclear, OLD)
    assert site.collect().failed == 0
    assert site.count(SqlLoggedModel, unclear.model_id) == 1
    assert [site.count(SqlRun, one.run_id) for one in (source, lineage, withdrawn)] == [1, 1, 0]
    assert [site.has_files(one.artifact_uri) for one in (source, lineage, withdrawn)] == [True, True, False]
    assert site.count(SqlLoggedModel, model.model_id) == 1
    assert site.has_files(model.artifact_location)
    said = capsys.readouterr().out
    assert f"run {source.run_id} stays: version 1 of the registered model {name} was made from it" in said
    assert f"run {lineage.run_id} stays: version 2" in said
    assert f"logged model {model.model_id} stays: version 3" in said
    site.delete_experiment(experiment, OLD)
    assert site.collect().failed == 0
    assert site.count(SqlExperiment, int(experiment)) == 1


def test_a_run_stays_until_its_logged_model_is_deleted_too(site: Site, experiment: str, tmp_path: Path) -> None:
    run = site.run(experiment, tmp_path)
    model = site.model(experiment, tmp_path, run.run_id)
    site.delete_run(run, OLD)
    assert site.collect().failed == 0
    assert site.count(SqlRun, run.run_id) == 1
    site.delete_model(model, OLD)
    assert site.collect().failed == 0
    assert (site.count(SqlLoggedModel, model.model_id), site.count(SqlRun, run.run_id)) == (0, 0)


def test_an_experiment_goes_with_all_that_is_in_it(site: Site, experiment: str, tmp_path: Path) -> None:
    run = site.run(experiment, tmp_path)
    model = site.model(experiment, tmp_path, run.run_id)
    location = site.store.get_experiment(experiment).artifact_location
    site.upload(f"{location}/traces/tr-1/artifacts", tmp_path)
    site.delete_experiment(experiment, YOUNG)
    assert site.collect().failed == 0
    assert site.count(SqlExperiment, int(experiment)) == 1
    site.age(SqlExperiment, "last_update_time", int(experiment), OLD)
    site.age(SqlRun, "deleted_time", run.run_id, OLD)
    assert site.collect().failed == 0
    assert site.count(SqlExperiment, int(experiment)) == 0
    assert (site.count(SqlRun, run.run_id), site.count(SqlLoggedModel, model.model_id)) == (0, 0)
    assert not site.has_files(location)


@pytest.mark.parametrize(
    "odd",
    ["file:///etc/{run}/artifacts", "mlflow-artifacts:/1/../{run}/artifacts", "mlflow-artifacts:/1", "",
     "mlflow-artifacts://host/1/{run}/artifacts", "mlflow-artifacts:/1/%2e%2e/{run}/artifacts"],
)  # fmt: skip
def test_an_odd_location_is_left_alone_and_does_not_stop_the_rest(
    site: Site, experiment: str, tmp_path: Path, odd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    strange, plain = (site.run(experiment, tmp_path) for _ in range(2))
    with site.store.ManagedSessionMaker(read_only=False) as session:
        session.get(SqlRun, strange.run_id).artifact_uri = odd.format(run=strange.run_id)
    site.delete_run(strange, OLD)
    site.delete_run(plain, OLD)
    assert site.collect().failed == 0
    assert [site.count(SqlRun, one.run_id) for one in (strange, plain)] == [1, 0]
    assert f"run {strange.run_id} stays: its " in capsys.readouterr().out
    assert site.has_files(strange.artifact_uri)


def test_what_another_experiment_stores_below_a_run_is_not_deleted_with_it(
    site: Site, experiment: str, tmp_path: Path
) -> None:
    outer = site.run(experiment, tmp_path)
    inner = site.store.create_experiment(f"inner-{experiment}", f"{outer.artifact_uri}/more")
    run = site.run(inner, tmp_path)
    site.delete_run(outer, OLD)
    assert site.collect().failed == 0
    assert site.count(SqlRun, outer.run_id) == 1
    assert site.has_files(run.artifact_uri)


def test_rows_stay_until_the_files_are_gone(
    site: Site, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = (site.run(experiment, tmp_path) for _ in range(2))
    site.delete_run(run, OLD)
    site.delete_run(other, OLD)
    repository = site.program.get_artifact_repository

    class Refuses:
        """A store that refuses to delete files, as S3 does: without an error."""

        def __init__(self, location: str) -> None:
            self.real = repository(location)
            self.list_artifacts = self.real.list_artifacts

        def delete_artifacts(self) -> None:
            """Delete nothing of the first run."""
            if run.run_id not in self.real.artifact_uri:
                self.real.delete_artifacts()

    monkeypatch.setattr(site.program, "get_artifact_repository", Refuses)
    assert site.collect().failed == 1
    assert [site.count(SqlRun, one.run_id) for one in (run, other)] == [1, 0]
    monkeypatch.undo()
    assert site.collect().failed == 0
    assert site.count(SqlRun, run.run_id) == 0

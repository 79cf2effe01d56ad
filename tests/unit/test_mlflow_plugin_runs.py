"""Programs that create runs with the plugin, started as a user does."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from metalworks.runs import record
from mlflow_plugin.metalworks_mlflow import context, later, provider
from mlflow_plugin.metalworks_mlflow.deadline import Deadline
from scripts.common import environment
from tests.unit.test_mlflow_plugin import PLUGIN, commit, head, made_pipeline, pipeline, settings

__all__ = ["made_pipeline", "pipeline", "settings"]

PROGRAM = """
import mlflow
with mlflow.start_run() as run:
    pass
print(run.info.run_id)
"""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create MLflow's database once, because it takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    with contextlib.chdir(file.parent):  # its first experiment keeps files below the folder where it is created
        MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def start(
    code: str, folder: Path, store: str, *arguments: str, expect: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program with the plugin, which must not print anything."""
    (folder / "train.py").write_text(code)
    own = environment({"PYTHONPATH": str(PLUGIN), "MLFLOW_TRACKING_URI": store, **variables})
    line = [sys.executable, "train.py", *arguments]
    done = subprocess.run(line, cwd=folder, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == expect, done.stderr
    assert "metalworks_mlflow" not in done.stderr  # the plugin; the clone may have the product's name
    return done


def recorded(store: str, run: str) -> record.Recorded:
    client = MlflowClient(store)
    return record.read(client, client.get_run(run))


def runs(store: str) -> list[Run]:
    return list(MlflowClient(store).search_runs(["0"]))


def test_a_short_program_records_everything_to_reproduce_its_run(pipeline: Path, store: str) -> None:
    (pipeline / "train.py").write_text(PROGRAM)
    (pipeline / ".gitignore").write_text("mlruns\n__pycache__\n")
    commit(pipeline)
    run = start(PROGRAM, pipeline, store, "--password", "hunter2", METALWORKS_REPRODUCES="abc").stdout.split()[-1]
    found = recorded(store, run)
    tags = found.tags
    assert tags[record.COMMIT] == head(pipeline)
    assert (tags[record.BRANCH], tags[record.DIRTY], tags[record.PUSHED]) == ("main", "false", "false")
    assert (tags[record.FOLDER], tags[record.REPRODUCES]) == ("", "abc")
    assert found.command == [sys.executable, "train.py", "--password", "***"]
    assert "hunter2" not in json.dumps(tags)
    assert found.packages is not None
    assert found.packages["pytest"] == pytest.__version__
    assert found.diff is None
    out = found.data["out"]
    assert (out.clean, out.pushed, out.size) == (True, True, 4)
    assert (found.data["raw/one"].clean, found.data["raw/one"].pushed) == (True, False)
    assert "metalworks.missing" not in tags


def test_all_of_many_runs_are_completed(pipeline: Path, store: str) -> None:
    code = "import mlflow\nfor number in range(3):\n    with mlflow.start_run():\n        pass\n"
    start(code, pipeline, store)
    found = [recorded(store, run.info.run_id) for run in runs(store)]
    assert len({run.tags["metalworks.context"] for run in found}) == 3
    for run in found:
        assert run.data["out"].pushed is True
        assert run.tags[record.DIRTY] == "true"
        assert run.diff is not None
        assert "+for number in range(3):" in run.diff


TOO_LONG = {"metalworks.command": "x" * 5001}
NAMED = ["metalworks.command: longer than 5000 characters"]


def test_all_of_much_data_is_on_the_run_and_what_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[str]] = []

    class Client:
        def log_batch(self, run: str, tags: list[Any]) -> None:
            sent.append([tag.key for tag in tags])

    monkeypatch.setattr(later.Pending, "client", lambda _: Client())
    run = later.Pending("context", "", {"dvc.0": "{}"}, cast(context.Look, None), "run")
    run.add({f"dvc.{number}": "{}" for number in range(121)} | TOO_LONG)
    assert [len(part) for part in sent] == [100, 20]  # MLflow takes no more at a time
    assert {name for part in sent for name in part} == {f"dvc.{number}" for number in range(1, 121)}
    assert run.failures == NAMED


def test_what_is_too_long_when_a_run_is_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[later.Pending] = []
    look = SimpleNamespace(at_once=lambda _: TOO_LONG, failures=[])
    monkeypatch.setattr(context, "Look", lambda *_: look)
    monkeypatch.setattr(later, "add", made.append)
    assert list(context.tags(Deadline())) == ["metalworks.context"]
    assert made[0].look.failures == NAMED


def test_outside_a_clone_the_deployment_provides_the_commit(tmp_path: Path, store: str) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    given = {
        "METALWORKS_GIT_COMMIT": "a" * 40,
        "METALWORKS_GIT_REMOTE": "https://u:x@git/a",
        "METALWORKS_GIT_FOLDER": "",
    }
    run = start(PROGRAM, folder, store, **given).stdout.split()[-1]
    tags = recorded(store, run).tags
    assert (tags[record.COMMIT], tags[record.REMOTE], tags[record.PUSHED]) == ("a" * 40, "https://git/a", "unknown")


def test_a_run_that_is_not_created_does_not_delay_the_exit(pipeline: Path, store: str) -> None:
    code = """
import mlflow
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
def refuse(*given, **named): raise RuntimeError("refused")
SqlAlchemyStore.create_run = refuse
mlflow.start_run()
"""
    done = start(code, pipeline, store, expect=1)
    assert "refused" in done.stderr
    assert runs(store) == []


def test_a_fork_waits_for_a_call_of_mlflow_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, the database driver's locks stay locked in the new process."""
    with later._calling:
        began = time.monotonic()
        threading.Timer(0.3, later._calling.release).start()
        later._before_fork()
        assert time.monotonic() - began >= 0.25
        assert later._calling.locked()
    monkeypatch.setattr(later, "FORK_SECONDS", 0.1)
    later._calling.acquire()
    later._before_fork()
    later._after_fork()
    assert later._calling.locked(), "the call that took longer holds it"
    later._calling.release()
    later._before_fork()
    later._after_fork()
    assert not later._calling.locked()


def test_runs_of_a_forked_process_are_completed(pipeline: Path, store: str) -> None:
    code = """
import os, sys
import mlflow
with mlflow.start_run():
    pass
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with mlflow.start_run():
    pass
"""
    start(code, pipeline, store)
    assert ["git.dirty" in run.data.tags for run in runs(store)] == [True, True]
    assert all(json.loads(run.data.tags["dvc.out"])["clean"] for run in runs(store))


def test_runs_of_other_libraries_get_tags_and_data_sets_do_not(pipeline: Path, store: str) -> None:
    code = """
import threading
import mlflow, pandas
from mlflow.tracking.context.registry import resolve_tags
mlflow.data.from_pandas(pandas.DataFrame({"a": [1]}))
mlflow.create_external_model(name="m")
assert "metalworks-mlflow" not in [thread.name for thread in threading.enumerate()]
mlflow.MlflowClient().create_run("0", tags=resolve_tags())
"""
    start(code, pipeline, store)
    assert json.loads(runs(store)[0].data.tags["dvc.out"])["pushed"] is True


def test_runs_created_by_the_server_get_no_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", "sqlite:///mlflow.db")
    assert provider.MetalworksContext().tags() == {}


def test_a_program_started_elsewhere_is_found_by_its_file(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(pipeline / "train.py"), raising=False)
    made: list[later.Pending] = []
    monkeypatch.setattr(later, "add", made.append)
    tags = context.tags(Deadline(60))
    assert tags[record.COMMIT] == head(pipeline)
    assert tags["metalworks.context"] == made[0].context
    assert json.loads(tags["dvc.raw/one"])["recorded"] == "5bbf5a52328e7439ae6e719dfe712200"


def test_late_facts_are_added_by_the_thread(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pipeline)
    made: list[later.Pending] = []
    monkeypatch.setattr(later, "add", made.append)
    tags = context.tags(Deadline(-1))
    assert set(tags) == {"metalworks.context", record.COMMAND, record.HOST, record.PYTHON}
    rest = made[0].look.rest()
    assert (rest[record.COMMIT], rest[record.DIRTY], "dvc.out" in rest) == (head(pipeline), "false", True)


def test_a_failure_of_the_plugin_is_recorded_in_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk")

    monkeypatch.setattr("mlflow_plugin.metalworks_mlflow.context.tags", fail)
    assert provider.MetalworksContext().tags() == {"metalworks.context": "failed: OSError: disk"}


def test_a_failed_step_is_recorded_and_does_not_stop_others(pipeline: Path, store: str) -> None:
    code = f"""
import mlflow
mlflow.MlflowClient.log_artifact = lambda *given, **named: 1 / 0
{PROGRAM}"""
    run = start(code, pipeline, store).stdout.split()[-1]
    tags = recorded(store, run).tags
    assert re.match("ZeroDivisionError", tags["metalworks.missing"])
    assert json.loads(tags["dvc.out"])["pushed"] is True

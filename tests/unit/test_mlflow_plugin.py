from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mlflow_plugin.metalworks_mlflow import data, flow, git, masking, packages, tagging
from mlflow_plugin.metalworks_mlflow.deadline import Deadline, Late
from scripts.common import ROOT, environment

PLUGIN = ROOT / "src/mlflow_plugin"
PIPELINE = """
stages:
  make:
    cmd: mkdir -p out && echo 1 > out/a && echo 2 > out/b && echo 3 > scores.txt
    outs: [out]
    metrics:
      - scores.txt:
          cache: false
"""


def call(*line: str, folder: Path) -> None:
    subprocess.run(line, cwd=folder, env=environment(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Isolate the tests from the user's settings of Git and DVC, and from deployment variables."""
    file = tmp_path_factory.mktemp("settings") / "gitconfig"
    file.write_text("[user]\nname = Anna\nemail = anna@example.com\n[init]\ndefaultBranch = main\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(file))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("DVC_NO_ANALYTICS", "1")
        for name in [name for name in os.environ if name.startswith(("METALWORKS_", "GIT_DIR", "PREFECT_", "MLFLOW_"))]:
            patch.delenv(name)
        yield patch


def make_clone(place: Path) -> Path:
    """Create a clone with one pushed commit."""
    call("git", "init", "--bare", str(place / "origin.git"), folder=place)
    folder = place / "clone"
    folder.mkdir()
    call("git", "init", folder=folder)
    call("git", "remote", "add", "origin", str(place / "origin.git"), folder=folder)
    (folder / "train.py").write_text("1\n")
    (folder / ".gitignore").write_text("__pycache__\n")
    commit(folder)
    call("git", "push", "origin", "main", folder=folder)
    return folder


@pytest.fixture
def clone(settings: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return make_clone(tmp_path)


@pytest.fixture(scope="module")
def made_pipeline(settings: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Add DVC data to the clone: a pushed folder from a stage, and a single file that is not pushed."""
    clone = make_clone(tmp_path_factory.mktemp("pipeline"))
    call("dvc", "init", folder=clone)
    call("dvc", "remote", "add", "--default", "storage", "../storage", folder=clone)
    (clone / "dvc.yaml").write_text(PIPELINE)
    (clone / "raw").mkdir()
    (clone / "raw/one").write_text("one\n")
    call("dvc", "repro", folder=clone)
    call("dvc", "push", folder=clone)
    call("dvc", "add", "raw/one", folder=clone)
    commit(clone)
    call("git", "push", "origin", "main", folder=clone)
    return clone


@pytest.fixture
def pipeline(made_pipeline: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_pipeline.parent, tmp_path / "copy")
    return tmp_path / "copy/clone"


def commit(folder: Path) -> None:
    call("git", "add", "--all", folder=folder)
    call("git", "commit", "--message", "work", folder=folder)


def head(folder: Path) -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()


def tags_of(folder: Path) -> dict[str, str]:
    repository = git.repository(folder, Deadline())
    assert repository is not None
    return repository.tags(Deadline())


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (["python", "t.py", "--password", "x", "--rows", "3"], ["python", "t.py", "--password", "***", "--rows", "3"]),
        (["t.py", "--db-password=x", "--api-key", "k"], ["t.py", "--db-password=***", "--api-key", "***"]),
        (["t.py", "--max-tokens", "5", "--key-column", "id"], ["t.py", "--max-tokens", "5", "--key-column", "id"]),
        (["t.py", "postgresql://ml:x@db/raw"], ["t.py", "postgresql://ml:***@db/raw"]),
        (["t.py", "--token", "--fast"], ["t.py", "--token", "--fast"]),
    ],
)
def test_secrets_in_commands_are_masked(line: list[str], shown: list[str]) -> None:
    assert masking.command(line) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://anna:x@git.example.com/a.git?token=y", "https://git.example.com/a.git"),
        ("ssh://git:x@git.example.com:2222/a.git", "ssh://git@git.example.com:2222/a.git"),
        ("git@git.example.com:a.git", "git@git.example.com:a.git"),
        ("s3://training-data/flights", "s3://training-data/flights"),
    ],
)
def test_secrets_in_urls_are_masked(url: str, shown: str) -> None:
    assert masking.address(url) == shown


def test_secrets_in_parameters_are_masked() -> None:
    given = {"token": "x", "url": "https://a:b@c", "deep": [{"password": "y", "rows": 3}], "secret": None}
    shown = {"token": "***", "url": "https://a:***@c", "deep": [{"password": "***", "rows": 3}], "secret": None}
    assert masking.parameters(given) == shown


def test_a_clean_and_pushed_clone(clone: Path) -> None:
    assert tags_of(clone) == {
        git.COMMIT: head(clone),
        git.BRANCH: "main",
        git.REMOTE: str(clone.parent / "origin.git"),
        git.DIRTY: "false",
        git.PUSHED: "true",
        git.FOLDER: "",
    }


def untracked(clone: Path) -> None:
    (clone / "new.py").touch()


def changed(clone: Path) -> None:
    (clone / "train.py").write_text("2\n")


def staged(clone: Path) -> None:
    changed(clone)
    call("git", "add", "--all", folder=clone)


def unpushed(clone: Path) -> None:
    changed(clone)
    commit(clone)


def never_fetched(clone: Path) -> None:
    call("git", "update-ref", "-d", "refs/remotes/origin/main", folder=clone)


def without_remote(clone: Path) -> None:
    call("git", "remote", "remove", "origin", folder=clone)


def detached(clone: Path) -> None:
    call("git", "checkout", "--detach", folder=clone)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (untracked, {git.DIRTY: "true", git.PUSHED: "true"}),
        (changed, {git.DIRTY: "true", git.PUSHED: "true"}),
        (staged, {git.DIRTY: "true"}),
        (unpushed, {git.DIRTY: "false", git.PUSHED: "false"}),
        (never_fetched, {git.PUSHED: "unknown"}),
        (without_remote, {git.PUSHED: "false", git.REMOTE: None}),
        (detached, {git.BRANCH: None, git.PUSHED: "true"}),
    ],
)
def test_clones_in_other_states(clone: Path, change: Callable[[Path], None], told: dict[str, str | None]) -> None:
    change(clone)
    found = tags_of(clone)
    assert {name: found.get(name) for name in told} == told


def test_the_project_is_the_nearest_folder_with_its_files(clone: Path) -> None:
    (clone / "ml/steps").mkdir(parents=True)
    (clone / "ml/pyproject.toml").touch()
    assert tags_of(clone / "ml/steps")[git.FOLDER] == "ml"


def test_the_diff_restores_the_tree(clone: Path) -> None:
    untracked(clone)
    changed(clone)
    (clone / "picture").write_bytes(bytes(range(256)))
    call("git", "add", "picture", folder=clone)
    repository = git.repository(clone, Deadline())
    assert repository is not None
    difference = clone.parent / "git.diff"
    difference.write_bytes(repository.diff())
    assert b"#   new.py" in difference.read_bytes()
    other = clone.parent / "other"
    call("git", "clone", str(clone.parent / "origin.git"), str(other), folder=clone)
    call("git", "apply", str(difference), folder=other)
    assert (other / "train.py").read_text() == "2\n"
    assert (other / "picture").read_bytes() == bytes(range(256))


def test_a_clean_clone_has_no_diff(clone: Path) -> None:
    repository = git.repository(clone, Deadline())
    assert repository is not None
    assert repository.diff() == b""


def test_deployed_code_gets_its_commit_from_variables() -> None:
    found = git.given(
        {
            "METALWORKS_GIT_COMMIT": "a" * 40,
            "METALWORKS_GIT_BRANCH": "main",
            "METALWORKS_GIT_REMOTE": "https://anna:x@git/a",
            "METALWORKS_GIT_DIRTY": "false",
            "METALWORKS_GIT_FOLDER": "ml",
        }
    )
    assert found == {
        git.COMMIT: "a" * 40,
        git.BRANCH: "main",
        git.REMOTE: "https://git/a",
        git.DIRTY: "false",
        git.PUSHED: "unknown",
        git.FOLDER: "ml",
    }
    assert git.given({}) == {}


def recorded(project: Path, in_clone: bool) -> dict[str, Any]:
    found = data.recorded(project, in_clone, Deadline())
    return {name: json.loads(value)["recorded"] for name, value in found.items()}


@pytest.mark.parametrize("in_clone", [True, False])
def test_recorded_hashes_are_those_of_cached_outputs(pipeline: Path, in_clone: bool) -> None:
    found = recorded(pipeline, in_clone)
    assert set(found) == {"dvc.out", "dvc.raw/one"}  # scores.txt is kept by Git
    assert found["dvc.out"].endswith(".dir")
    assert found["dvc.raw/one"] == "5bbf5a52328e7439ae6e719dfe712200"


def test_paths_are_relative_to_the_folder_of_their_stage(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  a: {wdir: steps, outs: [../out]}\n  b: {outs: ['${place}']}\n  gone: {outs: [x]}\n"
    )
    outs = [{"path": "../out", "md5": "1"}], [{"path": "elsewhere", "md5": "2"}]
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"a": {"outs": outs[0]}, "b": {"outs": outs[1]}}}))
    assert recorded(tmp_path, False) == {"dvc.out": "1"}


def test_a_large_file_is_not_read_before_the_run_starts(pipeline: Path) -> None:
    with (pipeline / "dvc.lock").open("a") as file:
        file.write("#" * 300_000)
    with pytest.raises(Late):
        data.recorded(pipeline, False, Deadline(100))
    assert "dvc.out" in data.recorded(pipeline, False, Deadline())


def facts(project: Path) -> dict[str, dict[str, Any]]:
    asked = data.Dvc(project)
    last = list(asked.facts())[-1]
    assert asked.failure == ""
    return {name: json.loads(value) for name, value in last.items()}


def test_dvc_reports_what_is_on_disk_and_in_the_remote(pipeline: Path) -> None:
    found = facts(pipeline)
    assert set(found) == {"dvc.out", "dvc.raw/one"}
    out, one = found["dvc.out"], found["dvc.raw/one"]
    assert out["md5"] == out["recorded"] == recorded(pipeline, True)["dvc.out"]
    assert (out["clean"], out["pushed"], out["size"]) == (True, True, 4)
    assert out["remote"] == str(pipeline.parent / "storage")
    assert (one["md5"], one["clean"], one["pushed"]) == ("5bbf5a52328e7439ae6e719dfe712200", True, False)


def test_changed_and_missing_data_are_told_apart(pipeline: Path) -> None:
    (pipeline / "out/a").unlink()
    (pipeline / "out/a").write_text("other\n")
    (pipeline / "raw/one").unlink()
    found = facts(pipeline)
    out, one = found["dvc.out"], found["dvc.raw/one"]
    assert out["clean"] is False
    assert out["md5"].endswith(".dir")
    assert out["md5"] != out["recorded"]
    assert (out["pushed"], out["size"]) == (False, 8)
    assert (one["md5"], one["clean"], one["pushed"], one["recorded"]) == (
        None,
        None,
        None,
        "5bbf5a52328e7439ae6e719dfe712200",
    )


def test_an_unreachable_remote_gives_unknown(pipeline: Path) -> None:
    call("dvc", "remote", "add", "--force", "--default", "storage", "http://127.0.0.1:9/x", folder=pipeline)
    found = facts(pipeline)["dvc.out"]
    assert (found["clean"], found["pushed"], found["remote"]) == (True, None, "http://127.0.0.1:9/x")


def test_an_archive_works_without_a_clone(pipeline: Path) -> None:
    (pipeline / ".git").rename(pipeline.parent / "gone")
    assert facts(pipeline)["dvc.out"]["clean"] is True


def test_the_next_python_is_tried_if_one_has_no_dvc(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = pipeline.parent / "bare"
    call(sys.executable, "-m", "venv", "--without-pip", str(bare), folder=pipeline)
    monkeypatch.setenv("METALWORKS_PYTHON", str(bare / "bin/python"))
    assert facts(pipeline)["dvc.out"]["clean"] is True
    monkeypatch.setattr(data, "pythons", lambda: iter([str(bare / "bin/python")]))
    asked = data.Dvc(pipeline)
    assert list(asked.facts()) in ([], [{}])
    assert "No module named 'dvc'" in asked.failure


def test_a_machine_without_dvc_is_reported(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "pythons", lambda: iter(["/nonexistent"]))
    asked = data.Dvc(pipeline)
    assert list(asked.facts()) == []
    assert "DVC: not found" in asked.failure


def test_a_project_without_data_starts_no_process(clone: Path) -> None:
    asked = data.Dvc(clone)
    assert (list(asked.facts()), asked.failure) == ([], "")


ODD = ["year=2024.csv", "Q1 (final).csv", "a+b.csv", "x,y.csv", "a:b.csv", "100%.csv", "donne\u0301es.csv", "n" * 240]
"""Names of everyday life that MLflow does not allow in a tag's name, and one that is too long for it."""


def test_data_with_any_name_has_a_tag(tmp_path: Path) -> None:
    from mlflow.utils.validation import _validate_tag

    (tmp_path / ".dvc").mkdir()
    (tmp_path / "raw").mkdir()
    for name in [*ODD, "donn\u00e9es.csv"]:
        (tmp_path / "raw" / f"{name}.dvc").write_text(json.dumps({"outs": [{"path": name, "md5": "1"}]}))
    found = data.recorded(tmp_path, False, Deadline())
    for name, value in found.items():
        _validate_tag(name, value)
    paths = {name: json.loads(value).get("path", name.removeprefix("dvc.")) for name, value in found.items()}
    assert set(paths.values()) == {"raw/donn\u00e9es.csv", *(f"raw/{name}" for name in ODD)}
    assert paths["dvc.raw/donn\u00e9es.csv"] == "raw/donn\u00e9es.csv"
    assert tagging.key("dvc.raw/year=2024.csv").startswith("dvc.raw/year_2024.csv-")
    # Two that look alike stay two.
    assert tagging.key("dvc.a=b") != tagging.key("dvc.a+b")
    assert tagging.fit(found) == found
    assert tagging.left_out(found) == []


def test_tags_that_mlflow_refuses_are_left_out() -> None:
    found = {
        "dvc.a/b": "x",
        "dvc.a@b": "x",
        "dvc./b": "x",
        "dvc.../b": "x",
        "a//b": "x",
        "k" * 251: "x",
        "l": "x" * 5001,
    }
    assert tagging.fit(found) == {"dvc.a/b": "x", "dvc./b": "x", "dvc.../b": "x"}
    assert tagging.left_out(found) == [
        "dvc.a@b: MLflow does not allow this name",
        "a//b: MLflow does not allow this name",
        f"{'k' * 251}: MLflow does not allow this name",
        "l: longer than 5000 characters",
    ]


def test_requirements_are_what_is_installed() -> None:
    lines = packages.requirements().splitlines()
    assert f"pytest=={pytest.__version__}" in lines
    assert not any("metalworks-mlflow" in line or "metalworks_mlflow" in line for line in lines)


def test_flow_parameters_are_recorded_without_secrets(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "flows").mkdir()
    (clone / "flows/train.py").write_text("def train(): ...\n")
    function: dict[str, Any] = {}
    exec(compile((clone / "flows/train.py").read_text(), str(clone / "flows/train.py"), "exec"), function)
    run = SimpleNamespace(id="1-2", parameters={"months": 3, "token": "x"}, deployment_id="9")
    current = SimpleNamespace(flow_run=run, flow=SimpleNamespace(name="train", fn=function["train"]), parameters={})
    module = ModuleType("prefect.context")
    module.FlowRunContext = SimpleNamespace(get=lambda: current)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prefect.context", module)
    monkeypatch.setenv("PREFECT__DEPLOYMENT_NAME", "daily")
    assert flow.tags(clone) == {
        "prefect.flow_run": "1-2",
        "prefect.flow": "train",
        "prefect.deployment": "train/daily",
        "prefect.parameters": '{"months": 3, "token": "***"}',
        "prefect.entrypoint": "flows/train.py:train",
    }

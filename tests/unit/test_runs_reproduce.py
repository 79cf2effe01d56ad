"""`metalworks reproduce` with a real Git remote, real DVC and a real MLflow server."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from inference_wheels import Serve, add_wheel

from metalworks import cli
from metalworks.errors import CommandError
from metalworks.requirement_files import Index
from metalworks.runs import environment, start

if TYPE_CHECKING:
    from mlflow import MlflowClient

BIN = Path(sys.executable).parent
# The part of MLflow that the tests need, without its slow import; the plugin would set the tag.
TRAIN = """
import json, os, sys, time, urllib.request
from pathlib import Path
try:
    import tiny
except ImportError:
    tiny = None

def call(what, **body):
    url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/" + what
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))

def main(factor=1.0):
    if os.environ.get("FAIL"):
        sys.exit("no luck")
    rows = [float(path.read_text()) for path in sorted(Path("data").glob("*"))] or [1.0, 2.0, 5.0]
    now = int(time.time() * 1000)
    for name, weight in (("mean", 1), ("double", 2)):
        tags = [{"key": "metalworks.reproduces", "value": os.environ["METALWORKS_REPRODUCES"]}]
        experiment = os.environ["MLFLOW_EXPERIMENT_ID"]
        created = call("create", experiment_id=experiment, run_name=name, start_time=now, tags=tags)
        run = created["run"]["info"]["run_id"]
        call("log-parameter", run_id=run, key="weight", value=str(weight))
        noise = 1 + float(os.environ.get("NOISE", 0))
        call("log-metric", run_id=run, key="rmse", value=sum(rows) * weight * factor / 3 * noise, timestamp=now)
        call("update", run_id=run, status="FINISHED", end_time=now)
    saw = {"prefix": sys.prefix, "cwd": os.getcwd(), "tiny": bool(tiny), "arguments": sys.argv[1:]}
    Path(os.environ["SAW"]).write_text(json.dumps(saw))

if __name__ == "__main__":
    main()
"""
FLOW = """
from prefect import flow
import train

@flow
def retrain(factor: float) -> None:
    train.main(factor)
"""
HOME = "/home/anna/project/ml"
COMMAND = [f"{HOME}/.venv/bin/python3", "-u", f"{HOME}/train.py", "--rows", "3"]
REQUIREMENTS = f"# made by the plugin\n-e {HOME}\nml @ file://{HOME}\nmetalworks_mlflow==0.1.0\ntiny==1.0\n"
RMSE = {"mean": (1.0 + 2.0 + 5.0) / 3, "double": (1.0 + 2.0 + 5.0) * 2 / 3}


@dataclass(frozen=True)
class World:
    """A developer's clone, its remotes, and the MLflow server."""

    base: Path
    work: Path
    commit: str
    hashes: dict[str, str]
    uri: str


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def serving(line: list[str], url: str, log: Path) -> Iterator[Callable[[], None]]:
    """Start a server; yield a function that waits until it answers."""
    with log.open("w") as told:
        server = subprocess.Popen(line, stdout=told, stderr=subprocess.STDOUT, cwd=log.parent)

    def wait() -> None:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                return
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    try:
        yield wait
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module", autouse=True)
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep all programs offline and away from this machine's own configuration."""
    base = tmp_path_factory.mktemp("reproduce")
    (base / "gitconfig").write_text("[user]\nname = Anna\nemail = anna@example.org\n[init]\ndefaultBranch = main\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": str(base / "gitconfig"),
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(base / "dvc"),
            "DVC_GLOBAL_CONFIG_DIR": str(base / "dvc-global"),
            "DVC_SYSTEM_CONFIG_DIR": str(base / "dvc-system"),
            "UV_OFFLINE": "1",
            "UV_FIND_LINKS": str(base / "wheels"),
            "XDG_CACHE_HOME": str(base / "cache"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_HOME": str(base / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "COLUMNS": "160",
            "SAW": str(base / "saw.json"),
        }.items():
            patch.setenv(name, value)
        for name in ("VIRTUAL_ENV", "PYTHONPATH", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "GIT_DIR"):
            patch.delenv(name, raising=False)
        yield base


@pytest.fixture(scope="module")
def prefect(variables: Path) -> Iterator[Callable[[], str]]:
    """Start a Prefect server in the background; return a function that waits for its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    line = [str(BIN / "prefect"), "server", "start", "--port", str(port), "--no-services"]
    with serving(line, f"{url}/health", variables / "prefect.log") as wait:

        def ready() -> str:
            wait()
            return url

        yield ready


@pytest.fixture(scope="module")
def world(variables: Path, prefect: object) -> Iterator[World]:
    """Create a project with two pushed versions of its data; the commit names the first one."""
    base = variables
    git(base, "init", "--quiet", "--bare", "remote.git")
    git(base, "clone", "--quiet", str(base / "remote.git"), "work")
    commit, hashes = project(base, base / "work")
    wheel(base / "wheels")
    with mlflow_server(base) as uri:
        yield World(base, base / "work", commit, hashes, uri)


@contextlib.contextmanager
def mlflow_server(base: Path) -> Iterator[str]:
    """Serve MLflow's application in this process, because a separate one takes ten seconds to start."""
    from mlflow import MlflowClient, server, set_registry_uri, set_tracking_uri
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log_request(self, *arguments: object) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(server.BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{base}/mlflow.db")
        patch.setenv(server.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
        patch.setenv(server.ARTIFACTS_DESTINATION_ENV_VAR, str(base / "artifacts"))
        patch.setenv(server.SERVE_ARTIFACTS_ENV_VAR, "true")
        made = make_server("127.0.0.1", 0, server.app, threaded=True, request_handler=Silent)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            uri = f"http://127.0.0.1:{made.port}"
            MlflowClient(uri, uri).search_experiments()
            # With its first request, the application replaces the whole process's store.
            set_tracking_uri(None)
            set_registry_uri(None)
            yield uri
        finally:
            made.shutdown()
            thread.join()


def project(base: Path, work: Path) -> tuple[str, dict[str, str]]:
    """Fill the clone, push it, and return its commit and the hashes of the versions of its data."""
    from dvc.repo import Repo

    folder = work / "ml"
    (folder / "data").mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN)
    (folder / "flow.py").write_text(FLOW)
    hashes = {}
    with Repo.init(str(work)) as dvc:
        (work / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {base}/store\n")
        for version, third in {"pushed": "5", "unpushed": "4", "committed": "3"}.items():
            for name, text in {"a": "1", "b": "2", "c": third}.items():
                (folder / "data" / name).write_text(text)
            (stage,) = dvc.add([str(folder / "data")])
            hashes[version] = stage.outs[0].hash_info.value
            if version != "unpushed":
                dvc.push()
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", "first")
    git(work, "push", "--quiet")
    return git(work, "rev-parse", "HEAD"), hashes


def wheel(folder: Path) -> None:
    """Create the only package in the index of these tests."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as packed:
        packed.writestr("tiny.py", "")
        packed.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        packed.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr("tiny-1.0.dist-info/RECORD", "")


@pytest.fixture
def client(world: World, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    monkeypatch.chdir(world.work)
    from mlflow import MlflowClient

    return MlflowClient()


Recorder = Callable[..., str]


@pytest.fixture
def recorded(client: MlflowClient, world: World) -> Recorder:
    """Return a function that records a run as the plugin would, with changed tags; None leaves a tag out."""

    def record(
        tags: Mapping[str, str | None] | None = None,
        *,
        data: str | None = None,
        name: str = "mean",
        status: str = "FINISHED",
        requirements: str | None = REQUIREMENTS,
        diff: str | None = None,
        score: float | None = None,
    ) -> str:
        usual: dict[str, str | None] = {
            "mlflow.source.git.commit": world.commit,
            "mlflow.source.git.repoURL": str(world.base / "remote.git"),
            "git.dirty": "false",
            "git.folder": "ml",
            "metalworks.command": json.dumps(COMMAND),
            "python.version": platform.python_version(),
        }
        if data:
            value = {"md5": world.hashes[data], "size": 3, "remote": f"{world.base}/store", "clean": False}
            usual["dvc.data"] = json.dumps(value | {"pushed": data != "unpushed"})
        given = {key: value for key, value in (usual | dict(tags or {})).items() if value is not None}
        experiment = client.get_experiment_by_name("tiny")
        place = experiment.experiment_id if experiment else client.create_experiment("tiny")
        run = str(client.create_run(place, run_name=name, tags=given).info.run_id)
        client.log_param(run, "weight", "1" if name == "mean" else "2")
        client.log_metric(run, "rmse", RMSE[name] if score is None else score)
        for file, text in {"requirements.txt": requirements, "git.diff": diff}.items():
            if text is not None:
                client.log_text(run, text, f"versions/{file}")
        client.set_terminated(run, status)
        return run

    return record


def made_from(client: MlflowClient, run: str) -> list[Any]:
    experiment = client.get_experiment_by_name("tiny")
    return list(client.search_runs([experiment.experiment_id], f"tags.`metalworks.reproduces` = '{run}'"))


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return a snapshot that shows changes in a folder."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def scratch(world: World) -> list[Path]:
    return list((world.base / "cache/metalworks/reproduce").glob("*"))


def test_a_run_is_reproduced_to_the_last_digit(
    client: MlflowClient, world: World, recorded: Recorder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also with data that the commit does not name, and in a rebuilt environment with the nearest Python."""
    minor = ".".join(platform.python_version_tuple()[:2])
    run = recorded({"python.version": f"{minor}.999"}, data="pushed", name="double")
    before = contents(world.work)
    assert cli.main(["reproduce", run[:8]]) == 0, capfd.readouterr()
    told = capfd.readouterr().out
    saw = json.loads((world.base / "saw.json").read_text())
    assert "Equal to the last digit." in told
    assert f"because this machine does not have {minor}.999" in told
    assert repr(RMSE["double"]) in told
    assert Path(saw["prefix"]).parent == world.base / "cache/metalworks/environments"
    assert saw["tiny"] is True
    assert saw["cwd"].endswith("/code/ml")
    assert saw["arguments"] == ["--rows", "3"]
    assert {made.info.run_name for made in made_from(client, run)} == {"mean", "double"}
    assert scratch(world) == []
    assert contents(world.work) == before


def test_a_changed_score_is_found(
    client: MlflowClient,
    world: World,
    recorded: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = recorded()
    monkeypatch.setenv("NOISE", "1e-9")
    line = ["reproduce", run, "--environment", "current", "--directory"]
    assert cli.main([*line, str(tmp_path / "first")]) == 1
    told = capfd.readouterr().out
    assert "Different: rmse." in told
    assert "Packages that differ: tiny absent (run: 1.0)." in told
    assert (tmp_path / "first/code/ml/train.py").exists()
    assert not (tmp_path / "first/code/.git/objects/info/alternates").exists()  # it must outlive the other clone

    assert cli.main([*line, str(tmp_path / "second"), "--tolerance", "1e-8"]) == 0
    assert "Equal within a relative tolerance of 1e-08" in capfd.readouterr().out
    saw = json.loads((world.base / "saw.json").read_text())
    assert saw["prefix"] == sys.prefix

    assert cli.main([*line, str(tmp_path / "second")]) == 1
    assert "is not an empty folder" in capfd.readouterr().err


def test_a_failed_command_keeps_its_folder(
    world: World, recorded: Recorder, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "1")
    assert cli.main(["reproduce", recorded(), "--environment", "current"]) == 1
    told = capfd.readouterr().err
    (left,) = scratch(world)
    assert "no luck" in told
    assert f"exited with 1: see its output above.\nCode and data are kept in {left}" in told
    shutil.rmtree(left)


def test_a_flow_run_is_reproduced_by_calling_its_function(
    client: MlflowClient,
    world: World,
    recorded: Recorder,
    prefect: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect())
    tags = {
        "prefect.flow_run": "0b0b",
        "prefect.deployment": "retrain/monthly",
        "prefect.entrypoint": "flow.py:retrain",
        "prefect.parameters": '{"factor": 0.5}',
        "metalworks.command": '["/var/lib/env/bin/python", "-m", "prefect.engine"]',
    }
    run = recorded(tags, score=RMSE["mean"] / 2)
    assert cli.main(["reproduce", run, "--environment", "current"]) == 0, capfd.readouterr()
    assert "Equal to the last digit." in capfd.readouterr().out
    assert scratch(world) == []


UNREADABLE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "dirty": (
        {"tags": {"git.dirty": "true"}, "diff": "diff --git a/ml/train.py b/ml/train.py\n"},
        ["there were uncommitted changes", "versions/git.diff (ml/train.py)"],
    ),
    "without the plugin": (
        {"tags": dict.fromkeys(["mlflow.source.git.repoURL", "git.dirty", "git.folder", "metalworks.command"])},
        [
            "no remote is recorded",
            "it is not recorded whether there were uncommitted changes",
            "command: it is not recorded",
        ],
    ),
    "an option for Git": ({"tags": {"mlflow.source.git.commit": "--upload-pack=x"}}, ["no commit is recorded"]),
    "a folder outside": ({"tags": {"git.folder": "../.."}}, ["is not inside a repository"]),
    "no such folder": ({"tags": {"git.folder": "other"}}, ["the commit has no folder other"]),
    "remote gone": ({"tags": {"mlflow.source.git.repoURL": "/nowhere.git"}}, ["cannot clone /nowhere.git"]),
    "vanished": ({"tags": {"mlflow.source.git.commit": "0" * 39 + "1"}}, ["0001 is not in ", "removed by a rebase"]),
    "data not pushed": ({"data": "unpushed"}, ["data: data (", ".dir) is not in ", "`dvc push` it"]),
    "data unknown": (
        {"tags": {"dvc.other": '{"md5": "ab", "pushed": true}'}},
        ["other is in no dvc.lock or .dvc file of the commit"],
    ),
    "text": (
        {"tags": {"metalworks.command": '["python", "-c", "import train"]'}},
        ["its code was an argument (`python -c`)"],
    ),
    "notebook": (
        {"tags": {"metalworks.command": '["python", "-m", "ipykernel_launcher", "-f", "kernel.json"]'}},
        ["it was an interactive session (ipykernel_launcher)"],
    ),
    "no such script": (
        {"tags": {"metalworks.command": '["python", "/home/anna/scratch/try.py"]'}},
        ["/home/anna/scratch/try.py is not in the repository"],
    ),
    "secret": (
        {"tags": {"metalworks.command": '["python", "train.py", "--token=***"]'}},
        ["a secret in it was masked: python train.py --token=***"],
    ),
    "Python": ({"tags": {"python.version": "3.4.10"}}, ["this machine has no Python 3.4.10"]),
    "packages": ({"requirements": None}, ["no file versions/requirements.txt"]),
    "a wheel of another machine": (
        {"requirements": "gone @ file:///home/anna/gone-1.0-py3-none-any.whl\n"},
        ["gone-1.0-py3-none-any.whl was installed from a local file"],
    ),
    "flow parameters": (
        {"tags": {"prefect.flow_run": "0b", "prefect.entrypoint": "flow.py:retrain", "prefect.parameters": '{"fac'}},
        ["the flow run's parameters are not recorded, or not readable"],
    ),
    "flow file": (
        {"tags": {"prefect.flow_run": "0b", "prefect.entrypoint": "gone.py:f", "prefect.parameters": "{}"}},
        ["does not contain the flow's file gone.py"],
    ),
    "failed": ({"status": "FAILED"}, ["did not finish; its state is FAILED"]),
    # All at once, so that users can fix everything before the next try.
    "everything": (
        {
            "tags": {
                "git.dirty": "true",
                "mlflow.source.git.repoURL": "/nowhere.git",
                "metalworks.command": '["ipython"]',
                "python.version": "3.4.10",
            },
            "data": "unpushed",
            "requirements": None,
        },
        [
            "uncommitted changes",
            "cannot clone",
            "an interactive session",
            "3.4.10",
            "was not pushed",
            "versions/requirements.txt",
        ],
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_missing_parts_are_named_before_anything_starts(
    case: str, world: World, recorded: Recorder, capfd: pytest.CaptureFixture[str]
) -> None:
    given, messages = UNREADABLE[case]
    environments = sorted((world.base / "cache/metalworks/environments").glob("*"))
    assert cli.main(["reproduce", recorded(**given)]) == 1
    out, err = capfd.readouterr()
    assert [message for message in messages if message not in err] == [], err
    assert "Starting" not in out
    assert scratch(world) == []
    assert sorted((world.base / "cache/metalworks/environments").glob("*")) == environments


def test_data_comes_from_a_remote_that_the_commit_does_not_configure(
    world: World, recorded: Recorder, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    aside = tmp_path / "aside"
    shutil.copytree(world.base / "store", aside)
    value = {"md5": world.hashes["pushed"], "size": 3, "remote": str(aside), "clean": True, "pushed": True}
    run = recorded({"dvc.data": json.dumps(value)})
    assert cli.main(["reproduce", run]) == 0, capfd.readouterr()
    assert "Equal to the last digit." in capfd.readouterr().out
    shutil.rmtree(aside)
    aside.mkdir()
    assert cli.main(["reproduce", run]) == 1
    out, err = capfd.readouterr()
    assert f"is not in {aside}, or that does not respond" in err
    assert "Starting" not in out


def test_a_commit_only_in_the_local_clone_is_refused(
    world: World, recorded: Recorder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Objects are borrowed from this clone, so finding the commit is not enough."""
    tree = git(world.work, "rev-parse", "HEAD^{tree}")
    commit = git(world.work, "commit-tree", tree, "-p", "HEAD", "-m", "local")
    assert cli.main(["reproduce", recorded({"mlflow.source.git.commit": commit})]) == 1
    assert f"commit {commit} is not in {world.base}/remote.git" in capfd.readouterr().err


def test_a_commit_without_a_branch_is_used_if_the_remote_still_has_it(
    client: MlflowClient, world: World, recorded: Recorder, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = git(world.work, "rev-parse", "HEAD^{tree}")
    commit = git(world.work, "commit-tree", tree, "-p", "HEAD", "-m", "amended later")
    git(world.work, "push", "--quiet", "origin", f"{commit}:refs/heads/short")
    git(world.work, "push", "--quiet", "origin", ":refs/heads/short")
    run = recorded({"mlflow.source.git.commit": commit})
    assert cli.main(["reproduce", run, "--environment", "current"]) == 0, capfd.readouterr()


def test_the_name_must_match_one_run(recorded: Recorder, capfd: pytest.CaptureFixture[str]) -> None:
    recorded()
    recorded()
    assert cli.main(["reproduce", "mean", "--experiment", "tiny"]) == 1
    assert "use the id of one" in capfd.readouterr().err
    assert cli.main(["reproduce", "mean", "--experiment", "other"]) == 1
    assert "no experiment 'other'" in capfd.readouterr().err


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in (
        "ml/train.py",
        "ml/scripts/fit.py",
        "tools/all.py",
        "libs/extra/pyproject.toml",
        "libs/extra/src/x.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "again"),
    [
        ("python train.py a", "python train.py a"),
        ("/x/bin/python3.11 -u -W ignore -X dev -m flights train", "python -u -W ignore -X dev -m flights train"),
        ("python -um flights", "python -u -m flights"),
        ("python -Wignore -mflights", "python -Wignore -m flights"),
        ("/srv/p/.venv/bin/python /srv/p/.venv/bin/pytest -q", "python pytest -q"),
        ("/usr/bin/python3 /usr/local/bin/mlflow run .", "python mlflow run ."),
        ("mlflow run .", "python mlflow run ."),
        ("python /srv/p/ml/scripts/fit.py", "python scripts/fit.py"),
        ("python /srv/p/tools/all.py -c 1", "python ../tools/all.py -c 1"),
        ("python tools/all.py", "python ../tools/all.py"),
    ],
)
def test_commands_are_parsed_and_repeated(line: str, again: str, clone: Path) -> None:
    assert " ".join(start.parse(line.split(), clone / "ml", clone).shown) == again


@pytest.mark.parametrize(
    "line",
    [
        "python",
        "python -i",
        "python -",
        "python -Wignore -c x",
        "python -m IPython",
        "python -m ipykernel_launcher -f x",
        "/usr/bin/python3 /usr/local/bin/jupyter-lab",
        "ipython",
        "python gone.py",
        "python ../outside.py",
    ],
)
def test_unrepeatable_commands_are_refused(line: str, clone: Path) -> None:
    with pytest.raises(start.NotAgain):
        start.parse(line.split(), clone / "ml", clone)


def test_a_program_that_no_package_provides_is_named(clone: Path) -> None:
    with pytest.raises(CommandError, match="no program gone"):
        start.parse(["gone"], clone / "ml", clone).line(clone)


def test_local_packages_are_those_of_the_repository(clone: Path) -> None:
    (clone / "pyproject.toml").write_text('[project]\nname = "all"\n')
    lines = [
        "extra @ file:///home/anna/project/libs/extra",
        "-e /home/anna/project/ml",
        "all @ file:///home/anna/project",
        "metalworks==0.1.0",
        "a==1",
        "b @ https://index/b.whl",
        "-e git+https://host/c.git@main",
        "other @ file:///home/anna/other",
    ]
    found = environment.sort_out("\n".join(lines), clone / "ml", clone)
    assert found.lines == ["a==1", "b @ https://index/b.whl", "git+https://host/c.git@main"]
    assert found.folders == [clone / "libs/extra"]
    assert found.missing == ["environment: other was installed from /home/anna/other, which is not in the repository"]
    path = environment.python_path(clone / "ml", found.folders, "/plugin").split(":")
    assert path[:4] == [f"{clone}/ml", f"{clone}/libs/extra", f"{clone}/libs/extra/src", "/plugin"]


def test_packages_in_development_are_those_of_the_repository(clone: Path) -> None:
    """As `uv sync` installs the project and the members of its workspace, and as the plugin records them."""
    (clone / "pyproject.toml").write_text('[project]\nname = "all"\n')
    lines = [
        "# in development: all==0 from file:///home/anna/project",
        "# in development: extra==0.1 from file:///home/anna/project/libs/extra",
        "# in development: metalworks_mlflow==0.1 from file:///opt/plugin",
        "# in development: other==1.0 from file:///home/anna/my%20libs/other",
        "# a remark",
    ]
    found = environment.sort_out("\n".join(lines), clone, clone)
    assert (found.lines, found.folders) == ([], [clone / "libs/extra"])
    assert found.missing == [
        "environment: other was installed from /home/anna/my libs/other, which is not in the repository"
    ]


def test_an_environment_is_built_once(world: World) -> None:
    told: list[str] = []
    first = environment.build(Path(sys.executable), ["tiny==1.0"], told.append)
    told.clear()
    assert environment.build(Path(sys.executable), ["tiny==1.0"], told.append) == first
    assert told == []
    assert environment.build(Path(sys.executable), [], told.append) != first


def test_a_package_comes_from_the_index_that_the_project_names(world: World, tmp_path: Path) -> None:
    """As a build of PyTorch for another accelerator, whose version no other index has."""
    (tmp_path / "own").mkdir()
    add_wheel(tmp_path / "own", "acmescale", "1.0+cpu")
    (tmp_path / "pyproject.toml").write_text(
        "[project]\nname = 'lv'\nversion = '0'\n"
        f"[[tool.uv.index]]\nname = 'own'\nurl = '{tmp_path / 'own'}'\nformat = 'flat'\nexplicit = true\n"
        "[tool.uv.sources]\nacmescale = {index = 'own'}\nnear = {path = 'near'}\n"
    )
    lines = ["acmescale==1.0+cpu", "tiny==1.0"]
    with pytest.raises(CommandError, match="acmescale"):
        environment.build(Path(sys.executable), lines, print)
    built = environment.build(Path(sys.executable), lines, print, environment.indexes(tmp_path / "none", tmp_path))
    assert list(built.glob("lib/*/site-packages/acmescale-1.0+cpu.dist-info"))
    assert list(built.glob("lib/*/site-packages/tiny-1.0.dist-info"))


def test_packages_come_from_the_index_that_requirements_txt_names(
    world: World, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = serve(tmp_path / "own")
    add_wheel(tmp_path / "own", "acmescale", "1.0+cpu")
    add_wheel(tmp_path / "own", "other", "0.5")  # an old copy
    monkeypatch.setenv("UV_DEFAULT_INDEX", serve(tmp_path / "public"))
    add_wheel(tmp_path / "public", "other", "1.0")
    monkeypatch.delenv("UV_OFFLINE")
    (tmp_path / "requirements.txt").write_text(f"--extra-index-url {own}\nacmescale\n")
    sources = environment.sources(tmp_path / "none", tmp_path)
    built = environment.build(Path(sys.executable), ["acmescale==1.0+cpu", "other==1.0"], print, "", sources)
    assert list(built.glob("lib/*/site-packages/acmescale-1.0+cpu.dist-info"))
    assert list(built.glob("lib/*/site-packages/other-1.0.dist-info"))


def test_packages_come_from_the_folder_that_requirements_txt_names(tmp_path: Path) -> None:
    for version, wheels in {1: tmp_path / "first/wheels", 2: tmp_path / "second/wheels"}.items():
        wheels.mkdir(parents=True)
        add_wheel(wheels, "acmelinked", "1.0", files={"acmelinked.py": f"FACTOR = {version}\n"})
        (wheels.parent / "requirements.txt").write_text("--find-links wheels\nacmelinked\n")
        sources = environment.sources(wheels.parent)
        built = environment.build(Path(sys.executable), ["acmelinked==1.0"], print, "", sources)
        (module,) = built.glob("lib/*/site-packages/acmelinked.py")
        assert module.read_text() == f"FACTOR = {version}\n"


def test_a_package_of_the_sites_index_comes_from_it_alone(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = serve(tmp_path / "own")
    add_wheel(tmp_path / "own", "acmesite", "1.0")
    monkeypatch.setenv("UV_DEFAULT_INDEX", serve(tmp_path / "public"))
    for version in ("1.0", "99.0"):  # a stranger's
        add_wheel(tmp_path / "public", "acmesite", version, files={"acmesite.py": "raise SystemExit\n"})
    for name in ("UV_OFFLINE", "UV_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "site_indexes", lambda: [Index(own, ("acme*",))])
    built = environment.build(Path(sys.executable), ["acmesite==1.0"], print)
    assert not list(built.glob("lib/*/site-packages/acmesite.py"))
    with pytest.raises(CommandError, match=r"acmesite 99\.0 would come from .* alone"):
        environment.build(Path(sys.executable), ["acmesite==99.0"], print)


def test_a_build_for_an_accelerator_that_no_index_has_is_explained(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", serve(tmp_path / "public"))
    add_wheel(tmp_path / "public", "acmelocal", "2.0")
    for name in ("UV_OFFLINE", "UV_FIND_LINKS"):
        monkeypatch.delenv(name)
    with pytest.raises(CommandError, match=r"acmelocal==2\.0\+cpu is a build that .*--extra-index-url"):
        environment.build(Path(sys.executable), ["acmelocal==2.0+cpu"], print)


def test_a_wheel_in_the_repository_is_found(clone: Path) -> None:
    (clone / "wheels").mkdir()
    add_wheel(clone / "wheels", "acmescale", "1.0")
    name = "acmescale-1.0-py3-none-any.whl"
    found = environment.sort_out(f"acmescale @ file:///home/anna/project/wheels/{name}", clone / "ml", clone)
    assert (found.lines, found.missing) == ([f"acmescale @ {(clone / 'wheels' / name).resolve().as_uri()}"], [])


def test_an_environment_that_cannot_be_built_leaves_nothing(variables: Path) -> None:
    folder = variables / "cache/metalworks/environments"
    before = {path for path in folder.glob("*") if path.is_dir()}
    with pytest.raises(CommandError, match="cannot build the recorded environment"):
        environment.build(Path(sys.executable), ["absent==9.9"], print)
    assert {path for path in folder.glob("*") if path.is_dir()} == before

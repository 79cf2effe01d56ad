"""A flow run gets its project's code and locked environment, or an error that says why not."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from host_processes import gone

from metalworks import flow_run
from metalworks.errors import FlowRunError

# A fake engine that prints what a flow would see. It is a local package, so the tests work offline.
ENGINE = """
import json, os, sys
import demo
print(json.dumps({"cwd": os.getcwd(), "demo": demo.WHAT, "python": sys.prefix, "mark": os.environ.get("MARK")}))
"""
PROJECT = """
[project]
name = "demo"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["prefect"]
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.uv.sources]
prefect = {path = "local/prefect", editable = true}
"""
PREFECT = """
[project]
name = "prefect"
version = "3.0.0"
requires-python = ">=3.11"
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
"""
URL = "s3://flow-code/demo/0123abc.tar.gz"


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find uv as a worker does, work offline, and pretend that this interpreter has a Prefect."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.delenv(flow_run.run.RUN_ID, raising=False)
    monkeypatch.setattr(metadata, "version", {"prefect": "3.0.0"}.__getitem__)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a flow project, locked."""
    files = {
        "pyproject.toml": PROJECT,
        "src/demo/__init__.py": "WHAT = 'first'\n",
        "local/prefect/pyproject.toml": PREFECT,
        "local/prefect/prefect/__init__.py": "",
        "local/prefect/prefect/engine.py": ENGINE,
    }
    for name, text in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["uv", "lock", "--quiet"], cwd=tmp_path / "project", check=True)
    return tmp_path / "project"


def pack(folder: Path) -> bytes:
    """Pack the folder as the archive of a deployment."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return packed.getvalue()


class Store:
    """A fake object store."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []

    def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        return self.objects[url]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setattr(flow_run.code, "fetch", found.fetch)
    return found


Start = Callable[..., tuple[dict[str, object], list[str]]]


@pytest.fixture
def start(tmp_path: Path, store: Store) -> Start:
    """Return a function that runs an archive as a worker would; it returns what the flow saw, and the log."""

    def run(archive: bytes, **variables: str) -> tuple[dict[str, object], list[str]]:
        store.objects[URL] = archive
        code = tmp_path / f"run-{time.monotonic_ns()}"
        code.mkdir()
        told: list[str] = []
        given = {**os.environ, "METALWORKS_FLOW_CODE": URL, "METALWORKS_FLOW_CACHE": str(tmp_path / "cache")}
        line, environment = flow_run.run.command(code, given | variables, told.append)
        done = subprocess.run(line, cwd=code, env=environment, check=True, capture_output=True, text=True)
        saw = json.loads(done.stdout)
        assert saw["cwd"] == str(code)
        return saw, told

    return run


def environments(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache/environments").iterdir() if path.is_dir()]


def test_without_code_the_workers_own_engine_runs() -> None:
    line, environment = flow_run.run.command(Path("/nowhere"), {"MARK": "kept"}, print)
    assert line == [sys.executable, "-m", "prefect.engine"]
    assert environment == {"MARK": "kept"}


def test_a_flow_runs_in_its_own_code_and_environment(start: Start, project: Path, tmp_path: Path) -> None:
    saw, told = start(pack(project), MARK="kept")
    (environment,) = environments(tmp_path)
    assert saw["demo"] == "first"
    assert saw["python"] == str(environment)
    assert saw["mark"] == "kept"
    assert ["Installing" in told[0], "Installed" in told[1]] == [True, True]


def test_commits_with_one_lock_share_an_environment(start: Start, project: Path, tmp_path: Path) -> None:
    first = pack(project)
    start(first)
    (project / "src/demo/__init__.py").write_text("WHAT = 'second'\n")
    saw, told = start(pack(project))
    assert saw["demo"] == "second"
    assert told == []
    assert start(first)[0]["demo"] == "first"
    assert len(environments(tmp_path)) == 1


def test_another_lock_gives_another_environment(start: Start, project: Path, tmp_path: Path) -> None:
    start(pack(project))
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace(">=3.11", ">=3.11,<4"))
    subprocess.run(["uv", "lock", "--quiet"], cwd=project, check=True)
    start(pack(project))
    assert len(environments(tmp_path)) == 2


def test_a_security_update_of_python_keeps_environments(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = flow_run.environment.identity(project)
    monkeypatch.setattr(sys, "version", "3.11.2 (main, another day) [GCC]")
    assert flow_run.environment.identity(project) == before
    monkeypatch.setattr(flow_run.environment.sysconfig, "get_config_var", lambda name: "cpython-399-x86_64-linux-gnu")
    assert flow_run.environment.identity(project) != before


def test_uv_in_a_flow_takes_the_flows_environment_and_cannot_change_it(
    start: Start, store: Store, project: Path, tmp_path: Path
) -> None:
    start(pack(project))
    (environment,) = environments(tmp_path)
    code = tmp_path / "run"
    code.mkdir()
    variables = {**os.environ, "METALWORKS_FLOW_CODE": URL, "METALWORKS_FLOW_CACHE": str(tmp_path / "cache")}
    _, given = flow_run.run.command(code, variables, print)
    line = ["uv", "run", "python", "-c", "import sys; print(sys.prefix)"]
    done = subprocess.run(line, cwd=code, env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(environment)
    assert not (code / ".venv").exists()
    (packages,) = environment.glob("lib/python*/site-packages")
    assert {packages.stat().st_mode & 0o222, (environment / "bin").stat().st_mode & 0o222} == {0}
    flow_run.environment.remove(environment)
    assert not environment.exists()


def test_a_half_built_environment_is_built_anew(start: Start, project: Path, tmp_path: Path) -> None:
    start(pack(project))
    (environment,) = environments(tmp_path)
    flow_run.environment.unprotect(environment)
    (environment / flow_run.environment.MARKER).unlink()
    (environment / "bin/python").unlink()
    saw, told = start(pack(project))
    assert saw["python"] == str(environment)
    assert len(told) == 2


def test_a_second_run_waits_for_the_environment(project: Path, tmp_path: Path) -> None:
    """While the lock is held, no other run builds; afterwards, the finished environment is used."""
    cache = tmp_path / "cache"
    target = cache / "environments" / flow_run.environment.identity(project)
    target.mkdir(parents=True)
    script = """
import pathlib, sys
from metalworks import flow_run
print(flow_run.environment.environment_of(*map(pathlib.Path, sys.argv[1:]), print))
"""
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen([sys.executable, "-c", script, project, cache], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        (target / flow_run.environment.MARKER).touch()
    assert waiting.communicate(timeout=20)[0].strip() == str(target)


def test_a_digest_saves_the_download(start: Start, store: Store, project: Path) -> None:
    archive = pack(project)
    digest = hashlib.sha256(archive).hexdigest()
    start(archive, METALWORKS_FLOW_CODE_SHA256=digest)
    start(archive, METALWORKS_FLOW_CODE_SHA256=digest)
    assert store.asked == [URL]
    start(archive)
    assert store.asked == [URL, URL]


def test_code_with_another_digest_is_refused(start: Start, project: Path) -> None:
    with pytest.raises(FlowRunError, match="Deploy again"):
        start(pack(project), METALWORKS_FLOW_CODE_SHA256="0" * 64)


def spoil_lock(project: Path) -> None:
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace('["prefect"]', '["prefect", "another"]'))


def remove_lock(project: Path) -> None:
    (project / "uv.lock").unlink()


def without_prefect(project: Path) -> None:
    (project / "pyproject.toml").write_text(textwrap.dedent(PROJECT).replace('["prefect"]', "[]").partition("[tool")[0])
    subprocess.run(["uv", "lock", "--quiet"], cwd=project, check=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_lock, "Cannot install the flow's environment from its uv.lock"),
        (remove_lock, "has neither uv.lock nor requirements.txt at its root"),
        (without_prefect, "uv add prefect==3.0.0"),
    ],
)
def test_a_project_that_cannot_run_is_refused(
    spoil: Callable[[Path], None], words: str, start: Start, project: Path, tmp_path: Path
) -> None:
    spoil(project)
    with pytest.raises(FlowRunError, match=words):
        start(pack(project))
    assert not list(tmp_path.glob("cache/environments/*/*"))


def test_a_flow_is_not_told_where_the_indexes_logins_are(store: Store, project: Path, tmp_path: Path) -> None:
    store.objects[URL] = pack(project)
    (tmp_path / "run").mkdir()
    given = {"METALWORKS_FLOW_CODE": URL, "METALWORKS_FLOW_CACHE": str(tmp_path / "cache"), "NETRC": "/etc/x.netrc"}
    variables = flow_run.run.command(tmp_path / "run", os.environ | given, print)[1]
    assert "NETRC" not in variables
    assert variables["METALWORKS_FLOW_CODE"] == URL


def test_an_invalid_archive_is_refused(start: Start) -> None:
    with pytest.raises(FlowRunError, match="Cannot unpack the flow's code"):
        start(b"<html>gone</html>")


def test_gits_global_settings_are_the_platforms_and_the_runs_own(tmp_path: Path) -> None:
    platforms = tmp_path / "platform"
    platforms.write_text("[user]\n\tname = Metalworks\n\temail = flows@example.org\n")
    found = flow_run.run.git_settings(tmp_path, {"GIT_CONFIG_GLOBAL": str(platforms)})

    def git(*arguments: str) -> str:
        line = ["git", "config", "--global", *arguments]
        return subprocess.run(line, env={**os.environ, **found}, check=True, capture_output=True, text=True).stdout

    git("user.name", "ada")
    assert git("--includes", "--get", "user.name").strip() == "ada"
    assert git("--includes", "--get", "user.email").strip() == "flows@example.org"
    assert "ada" not in platforms.read_text()
    assert flow_run.run.git_settings(tmp_path, {}) == {}


def test_a_clone_in_the_runs_folder_is_clean(tmp_path: Path) -> None:
    """Runs of unclean clones are not promoted."""
    (tmp_path / "platform").write_text("")
    code = tmp_path / "code"
    code.mkdir()
    found = flow_run.run.git_settings(code, {"GIT_CONFIG_GLOBAL": str(tmp_path / "platform")})
    git = {"cwd": code, "env": {**os.environ, **found}, "check": True, "capture_output": True, "text": True}
    subprocess.run(["git", "init", "--quiet"], **git)
    (code / "new.py").write_text("")
    assert subprocess.run(["git", "status", "--porcelain"], **git).stdout == "?? new.py\n"


def test_dvc_works_in_a_runs_folder_which_is_no_git_repository(project: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    dvc = [sys.executable, "-m", "dvc"]
    variables = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    subprocess.run([*dvc, "init", "-q"], cwd=project, env=variables, check=True)
    (project / ".git").rename(tmp_path / "git")
    packed, code = tmp_path / "code.tar.gz", tmp_path / "code"
    packed.write_bytes(pack(project))
    code.mkdir()
    flow_run.code.unpack(packed, code)
    done = subprocess.run([*dvc, "status"], cwd=code, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("url", ["/srv/flows", "https://store/flows.tar.gz", "s3://flow-code", "s3:///key"])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(FlowRunError, match="must look like s3://"):
        flow_run.code.bucket_and_key(url)


def test_another_prefect_version_gives_a_warning(start: Start, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", {"prefect": "3.9.9"}.__getitem__)
    assert "has prefect 3.0.0, but this platform runs 3.9.9" in start(pack(project))[1][0]


def test_unused_archives_and_environments_are_removed(start: Start, project: Path, tmp_path: Path) -> None:
    start(pack(project))
    (environment,) = environments(tmp_path)
    (archive,) = (tmp_path / "cache/code").iterdir()
    flow_run.environment.prune(tmp_path / "cache")
    assert environment.exists()
    assert archive.exists()
    long_ago = time.time() - flow_run.environment.KEEP_SECONDS - 1
    for path in (environment / flow_run.environment.MARKER, archive):
        os.utime(path, (long_ago, long_ago))
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        flow_run.environment.prune(tmp_path / "cache")
        assert environment.exists(), "a run is just taking it"
    flow_run.environment.unprotect(environment)
    (environment / "lib/python3/site-packages/demo_kit-1.0.dist-info").mkdir(parents=True)
    assert "demo_kit-1.0" in flow_run.environment.prune(tmp_path / "cache")
    assert not environment.exists()
    assert not archive.exists()


def test_packages_leave_uvs_cache_with_their_last_environment(
    start: Start, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(environment: Path, *packages: str) -> None:
        for package in packages:
            (environment / f"lib/python3/site-packages/{package}.dist-info").mkdir(parents=True, exist_ok=True)

    start(pack(project))
    (environment,) = environments(tmp_path)
    old = environment.with_name("0" * 16)
    installed(old, "gone-1.0", "newer-1.0", "shared-2.0")
    (old / flow_run.environment.MARKER).touch()
    os.utime(old / flow_run.environment.MARKER, (0, 0))
    flow_run.environment.unprotect(environment)
    installed(environment, "newer-2.0", "shared-2.0")
    cleaned: list[list[str]] = []
    run = subprocess.run

    def noted(line: list[str], **options: object) -> object:
        if line[:3] == ["uv", "cache", "clean"]:
            cleaned.append(line)
        return run(line, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", noted)
    (project / "uv.lock").write_text((project / "uv.lock").read_text() + "\n")
    start(pack(project))
    assert not old.exists()
    ((*_, first, second),) = cleaned
    assert (first, second) == ("gone", "newer")
    assert str(tmp_path / "cache" / "uv") in cleaned[0]


def test_a_run_marks_its_environment_as_used(start: Start, project: Path, tmp_path: Path) -> None:
    start(pack(project))
    marker = environments(tmp_path)[0] / flow_run.environment.MARKER
    os.utime(marker, (0, 0))
    start(pack(project))
    assert time.time() - marker.stat().st_mtime < 60


def test_main_prints_the_reason_and_fails(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("METALWORKS_FLOW_CODE", "nowhere")
    monkeypatch.setenv("METALWORKS_FLOW_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        flow_run.main()
    assert ended.value.code == 1
    assert "METALWORKS_FLOW_CODE is 'nowhere'" in capfd.readouterr().err


# A worker that starts one flow run, which reports that it is ready and then runs until it is killed.
WORKER = """
import os, pathlib, subprocess, sys, time
from metalworks import flow_run
said = pathlib.Path(sys.argv[1])
flow_run.end.REPORT_SECONDS = 1.0
flow_run.end.end = lambda api, run, message: said.write_text(f"{run}: {message}")
if not os.fork():
    group = flow_run.group.RunGroup("run-1", os.getpid())
    flow_run.end.watch("run-1", group)
    marked = {**os.environ, flow_run.group.MARK: group.mark}
    started = subprocess.Popen(["sleep", "60"], env=marked, stdout=subprocess.DEVNULL, start_new_session=True)
    print(os.getpid(), started.pid, flush=True)
    started.wait()
time.sleep(60)
"""


@pytest.mark.parametrize("worker_lives", [False, True])
def test_a_run_is_ended_only_if_its_worker_is_gone(worker_lives: bool, tmp_path: Path) -> None:
    said = tmp_path / "said"
    worker = subprocess.Popen([sys.executable, "-c", WORKER, said], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    flow, started = map(int, worker.stdout.readline().split())
    try:
        if worker_lives:
            os.kill(flow, signal.SIGKILL)
        else:
            worker.kill()
            worker.wait()
            assert not said.exists(), "the flow still runs"
            os.kill(flow, signal.SIGKILL)
        # While the worker is alive, nothing must be reported; only waiting can show that.
        deadline = time.monotonic() + (3 if worker_lives else 60)
        while not said.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert said.exists() is not worker_lives
        deadline = time.monotonic() + 60
        while not gone(started):
            assert time.monotonic() < deadline, "what the run started goes on"
            time.sleep(0.1)
    finally:
        worker.kill()
        worker.communicate()

"""A flow run and everything that it started end together, and its hooks run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from host_processes import gone

from metalworks.errors import FlowRunError
from metalworks.flow_run import group, worker

GIGABYTE = 1024**3
PATIENCE_SECONDS = 120
# A keeper whose flow is a shell script; hooks.py is replaced by what says that it was called.
KEEPER = """
import os, sys
from pathlib import Path
from metalworks.flow_run import keep
from metalworks.flow_run.group import RunGroup
keep.STOP_SECONDS, keep.HOOK_SECONDS = float(sys.argv[3]), float(sys.argv[4])
keep.__file__ = sys.argv[1]
group = RunGroup("run-1", os.getpid())
group.create(None)
line = [sys.executable, "-c", "import os, sys; os.execvp('sh', ['sh', '-c', sys.argv[1]])", sys.argv[2]]
raise SystemExit(keep.Keeper("run-1", group, line, dict(os.environ)).keep(lambda text: print(text, flush=True)))
"""
HOOKS = "import sys, pathlib; pathlib.Path('hooks').write_text(' '.join(sys.argv[1:])); print('hooks', flush=True)"


@pytest.fixture
def told() -> dict[str, str]:
    """Return the state that Prefect has of every run."""
    return {}


@pytest.fixture
def prefect_state(told: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """Return a function that sets the state that an API at the returned URL tells of every run."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            found = {"state": told, "run_count": 1, "deployment_id": None, "empirical_policy": {"retries": 0}}
            self.wfile.write(json.dumps([] if "flow_run_states" in self.path else found).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.update(body["state"])
            self.send_response(201)
            self.end_headers()
            self.wfile.write(b'{"status": "ACCEPT"}')

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def say(state: str) -> str:
        told.update(type=state, name=state)
        return f"http://127.0.0.1:{server.server_port}/api"

    yield say
    server.shutdown()
    server.server_close()


Keep = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def keep(tmp_path: Path, prefect_state: Callable[[str], str]) -> Iterator[Keep]:
    """Return a function that keeps a shell script as a worker would start it."""
    started: list[subprocess.Popen[str]] = []

    def run(
        script: str, state: str = "RUNNING", hooks: str = HOOKS, stop_seconds: float = 60, hook_seconds: float = 60
    ) -> subprocess.Popen[str]:
        (tmp_path / "hooks.py").write_text(hooks)
        line = [sys.executable, "-c", KEEPER, str(tmp_path / "keep.py"), script]
        line += [str(stop_seconds), str(hook_seconds)]
        variables = {**os.environ, "PREFECT_API_URL": prefect_state(state), "METALWORKS_FLOW_CODE": "s3://flow-code/x"}
        started.append(subprocess.Popen(line, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for one in started:
        one.kill()
        one.communicate()


def pids(tmp_path: Path, *names: str) -> list[int]:
    """Return the processes that a script has written down, once all are there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text().strip() for name in names):
        assert time.monotonic() < deadline, names
        time.sleep(0.05)
    return [int((tmp_path / name).read_text()) for name in names]


# One that stays in the session, one in a session of its own whose parent has ended, one without the environment.
LEFT = "sleep 600 & echo $! >a; (setsid sh -c 'echo $$ >b; exec sleep 600' &); (env -i sleep 600 & echo $! >c);"


@pytest.mark.parametrize("end", ["exit 0", "exit 3"])
def test_what_a_flow_leaves_behind_ends_with_it_and_frees_the_workers_pipe(
    end: str, keep: Keep, tmp_path: Path
) -> None:
    keeper = keep(f"{LEFT} while [ ! -s b ]; do sleep 0.1; done; {end}", "COMPLETED")
    output = keeper.communicate(timeout=PATIENCE_SECONDS)[0]  # ends when nobody holds the pipe any more
    assert keeper.returncode == int(end.split()[1])
    assert "3 processes that the flow left behind" in output
    assert all(gone(process) for process in pids(tmp_path, "a", "b", "c"))
    assert not (tmp_path / "hooks").exists()


def test_a_cancelled_run_ends_with_its_grandchildren_and_runs_its_hooks(
    keep: Keep, tmp_path: Path, told: dict[str, str]
) -> None:
    keeper = keep(f"trap 'exit 0' TERM; {LEFT} while :; do sleep 0.1; done", "CANCELLING")
    left = pids(tmp_path, "a", "b", "c")
    keeper.terminate()
    output = keeper.communicate(timeout=PATIENCE_SECONDS)[0]
    assert keeper.returncode == 0
    assert all(gone(process) for process in left)
    assert (tmp_path / "hooks").read_text().startswith("cancellation")
    assert "hooks" in output
    assert told["type"] == "CANCELLING", "the worker reports the end, after the hooks"


def test_a_flow_that_does_not_stop_is_killed(keep: Keep, tmp_path: Path) -> None:
    keeper = keep("trap '' TERM; echo $$ >a; while :; do sleep 0.1; done", "CANCELLING", stop_seconds=1)
    (flow,) = pids(tmp_path, "a")
    keeper.terminate()
    keeper.communicate(timeout=PATIENCE_SECONDS)
    assert keeper.returncode == 128 + signal.SIGKILL
    assert gone(flow)
    assert (tmp_path / "hooks").read_text().startswith("cancellation")


def test_the_end_of_a_flow_that_was_killed_is_reported_and_its_crash_hooks_run(
    keep: Keep, tmp_path: Path, told: dict[str, str]
) -> None:
    keeper = keep("kill -9 $$", "RUNNING")
    keeper.communicate(timeout=PATIENCE_SECONDS)
    assert keeper.returncode == 0, "the worker has nothing to report"
    assert (told["type"], told["message"]) == ("CRASHED", "The flow's process was ended by SIGKILL.")
    assert (tmp_path / "hooks").read_text() == f"crashed {told['message']}"


def test_a_crash_that_the_flow_has_reported_stays_as_it_is(keep: Keep, tmp_path: Path, told: dict[str, str]) -> None:
    keeper = keep("exit 1", "CRASHED")
    keeper.communicate(timeout=PATIENCE_SECONDS)
    assert keeper.returncode == 1
    assert "message" not in told
    assert not (tmp_path / "hooks").exists()


def test_hooks_that_hang_are_ended(keep: Keep) -> None:
    began = time.monotonic()
    keeper = keep("kill -9 $$", "RUNNING", "import time; time.sleep(600)", hook_seconds=2)
    assert "Stopped the flow's hooks" in keeper.communicate(timeout=PATIENCE_SECONDS)[0]
    assert time.monotonic() - began < PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({group.DEFAULT_LIMIT: "50%"}, GIGABYTE),
        ({group.DEFAULT_LIMIT: "50%", group.LIMIT: ""}, GIGABYTE),
        ({group.DEFAULT_LIMIT: "50%", group.LIMIT: "8G"}, 8 * GIGABYTE),
        ({group.DEFAULT_LIMIT: "50%", group.LIMIT: "infinity"}, None),
        ({group.LIMIT: "1.5GiB"}, 3 * GIGABYTE // 2),
        ({group.LIMIT: "512 mb"}, GIGABYTE // 2),
        ({group.LIMIT: "1048576"}, 1024**2),
    ],
)
def test_the_runs_own_limit_comes_before_the_hosts_default(variables: dict[str, str], expected: int | None) -> None:
    assert group.memory_limit(variables, memory=2 * GIGABYTE) == expected


@pytest.mark.parametrize("text", ["much", "-1G", "8X", "50%%"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(FlowRunError, match="memory_limit is"):
        group.memory_limit({group.LIMIT: text})


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that looks like a delegated control group with this process in it."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("1:name=systemd:/x\n0::/system.slice/prefect-worker-cpu.service\n")
    unit = groups / "system.slice/prefect-worker-cpu.service"
    unit.mkdir(parents=True)
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (unit / name).touch()
    (unit / "cgroup.controllers").write_text("memory pids\n")
    monkeypatch.setattr(group, "PROC", proc)
    monkeypatch.setattr(group, "CGROUPS", groups)
    return unit


def test_a_worker_makes_room_for_groups_beside_it(unit: Path) -> None:
    assert "own control group and memory limit" in worker.prepare()
    assert (unit / "worker/cgroup.procs").read_text() == "0"
    assert (unit / "cgroup.subtree_control").read_text() == "+memory"
    (unit / "cgroup.controllers").write_text("pids\n")
    assert "memory controller is off" in worker.prepare()


def test_a_run_gets_a_group_beside_its_workers(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.prepare()
    (group.PROC / "self/cgroup").write_text("0::/system.slice/prefect-worker-cpu.service/worker\n")
    made = group.RunGroup("run-1", 77)
    assert made.cgroup == unit / "run-run-1-77"
    assert "no memory controller" in made.create(GIGABYTE)
    made.cgroup.rmdir()
    mkdir = Path.mkdir

    def with_files(path: Path) -> None:
        mkdir(path)
        (path / "memory.max").touch()

    monkeypatch.setattr(Path, "mkdir", with_files)
    assert made.create(GIGABYTE) == ""
    assert (made.cgroup / "memory.max").read_text() == str(GIGABYTE)
    assert (made.cgroup / "memory.oom.group").read_text() == "1"
    made.enter()
    assert (made.cgroup / "cgroup.procs").read_text() == "0"
    (made.cgroup / "memory.events").write_text("oom 1\noom_kill 0\n")
    assert not made.out_of_memory()
    (made.cgroup / "memory.events").write_text("oom 1\noom_kill 2\n")
    assert made.out_of_memory()


def test_without_delegation_a_worker_says_what_is_missing(unit: Path) -> None:
    (group.PROC / "self/cgroup").write_text("4:memory:/docker/x\n0::/elsewhere\n")
    assert "No control groups v2" in worker.prepare()
    assert group.RunGroup("run-1", 77).cgroup is None


def test_a_worker_that_could_start_no_run_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker.check()
    monkeypatch.setenv("METALWORKS_FLOW_CACHE", str(tmp_path / "gone"))
    with pytest.raises(FlowRunError, match="cannot start runs"):
        worker.check()

"""scripts/common.py: errors say what failed and how, and name the log."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest

from scripts import common


def test_a_failing_command_is_an_error_with_its_last_output() -> None:
    with pytest.raises(common.ProblemError) as caught:
        common.capture([sys.executable, "-c", "import sys; sys.exit('no such thing')"])
    assert "exit code 1" in str(caught.value)
    assert "no such thing" in str(caught.value)


def test_a_logged_command_leaves_its_output_and_command_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "x.log"
    common.logged(["echo", "first"], log=log)
    common.logged(["echo", "second"], log=log)
    assert log.read_text() == "$ echo first\nfirst\n$ echo second\nsecond\n"


def test_a_logged_failure_quotes_its_own_output_only_and_names_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    common.logged(["echo", "earlier"], log=log)
    with pytest.raises(common.ProblemError) as caught:
        common.logged(["sh", "-c", "echo broken; exit 3"], log=log)
    assert "exit code 3" in str(caught.value)
    assert "broken" in str(caught.value)
    assert "earlier" not in str(caught.value)
    assert str(log) in str(caught.value)


def test_waiting_ends_with_the_condition_and_with_the_time_limit() -> None:
    answers = iter([False, False, True])
    common.wait_until(lambda: next(answers), "it", timeout=5, every=0)
    with pytest.raises(common.ProblemError, match=r"the moon \(gave up after 0 s\)"):
        common.wait_until(lambda: False, "the moon", timeout=0, every=0)


def test_children_find_this_environments_programs_first() -> None:
    assert common.environment({"A": "b"})["PATH"].startswith(str(Path(sys.executable).parent))
    assert common.environment({"A": "b"})["A"] == "b"


HOLDER = """
import os, sys
from pathlib import Path
from scripts import common
clone, shared, kind, name, user = sys.argv[1:]
common.ROOT, common.CACHE = Path(clone), Path(clone) / ".cache"
common.OPEN_FOLDERS = (shared,)
os.umask(0o077)
if int(user) != os.geteuid():
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
with getattr(common, kind)(name):
    print("holds", name, flush=True)
    sys.stdin.readline()
"""
ME = os.geteuid()


class Holders:
    """Processes that take a lock and keep it until they are told to end."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Keep clones below a folder; beside them is one that every user may write to, like /run/lock."""
        self.clones, self.stack = folder, stack
        self.shared = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.shared.chmod(0o1777)

    def start(self, clone: str, kind: str, name: str = "lab", user: int = ME) -> subprocess.Popen[str]:
        """Start a process in a clone."""
        (self.clones / clone).mkdir(exist_ok=True)
        program = self.clones / clone / "holder.py"
        program.write_text(HOLDER)
        made = subprocess.Popen(
            [sys.executable, program, program.parent, self.shared, kind, name, str(user)],
            env={**os.environ, "PYTHONPATH": str(common.ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.stack.callback(made.wait)
        self.stack.callback(made.kill)
        return made


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line of a process."""
    assert process.stdout
    return process.stdout.readline().rstrip()


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[Holders]:
    """Start processes that take locks; end them afterwards."""
    with ExitStack() as stack:
        yield Holders(tmp_path, stack)


@pytest.mark.parametrize(
    ("kind", "clone"),
    [("lock", "one"), ("machine_lock", "one"), ("machine_lock", "two")],
    ids=["lock-same-clone", "machine_lock-same-clone", "machine_lock-other-clone"],
)
def test_who_waits_for_a_lock_is_told_once_for_whom(holders: Holders, kind: str, clone: str) -> None:
    first = holders.start("one", kind)
    assert line(first) == "holds lab"
    second = holders.start(clone, kind)
    place = holders.clones / "one"
    waits = f"Waiting for the lock `lab`, held by process {first.pid} in {place}: {place}/holder.py"
    assert line(second).startswith(waits)
    first.communicate("\n")
    assert line(second) == "holds lab"
    assert second.communicate("\n")[0] == ""


def test_a_killed_process_holds_no_lock_and_the_next_holder_is_named(holders: Holders) -> None:
    first = holders.start("one", "machine_lock")
    assert line(first) == "holds lab"
    first.kill()
    first.wait()
    second = holders.start("two", "machine_lock")
    assert line(second) == "holds lab"
    assert f"held by process {second.pid} " in line(holders.start("one", "machine_lock"))


@pytest.mark.parametrize(
    ("kind", "name", "clone"),
    [("lock", "lab", "two"), ("machine_lock", "scenario-gateway", "one")],
    ids=["lock-of-another-clone", "machine_lock-of-another-name"],
)
def test_other_locks_are_not_waited_for(holders: Holders, kind: str, name: str, clone: str) -> None:
    assert line(holders.start("one", kind)) == "holds lab"
    assert line(holders.start(clone, kind, name)) == f"holds {name}"


@pytest.mark.skipif(ME != 0, reason="only root may be other users")
@pytest.mark.parametrize(("first", "second"), [(0, 65534), (65534, 0), (65534, 65533)])
def test_users_wait_for_each_other(holders: Holders, first: int, second: int) -> None:
    """The kernel refuses to create a file of another user in a folder like /tmp (fs.protected_regular)."""
    one = holders.start("one", "machine_lock", user=first)
    assert line(one) == "holds lab"
    two = holders.start("two", "machine_lock", user=second)
    assert f"held by process {one.pid} in {holders.clones}/one" in line(two)
    one.communicate("\n")
    assert line(two) == "holds lab"


def test_a_lock_is_open_to_all_users_whatever_the_umask(holders: Holders) -> None:
    assert line(holders.start("one", "machine_lock")) == "holds lab"
    (file,) = holders.shared.iterdir()
    assert file.stat().st_mode & 0o777 == 0o666


def test_what_another_user_wrote_into_a_lock_cannot_steer_the_terminal(holders: Holders) -> None:
    assert line(holders.start("one", "machine_lock")) == "holds lab"
    (file,) = holders.shared.iterdir()
    file.write_text("\x1b[2Jall is well\n\r")
    assert line(holders.start("two", "machine_lock")) == "Waiting for the lock `lab`, held by [2Jall is well"


def test_locks_lie_in_the_first_folder_that_is_open_to_all_users(tmp_path: Path) -> None:
    for name, mode in (("mine", 0o755), ("everyones", 0o1777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    folders = [str(tmp_path / name) for name in ("missing", "mine", "everyones")]
    assert common.shared_folder(folders) == tmp_path / "everyones"
    with pytest.raises(common.ProblemError, match=r"missing or .*mine must let every user make files"):
        common.shared_folder(folders[:2])


def test_apt_as_an_ordinary_user_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.os, "geteuid", lambda: 1000)
    with pytest.raises(
        common.ProblemError, match=r"the lab needs the packages mmdebstrap.*sudo apt-get install mmdebstrap"
    ):
        common.apt_install("mmdebstrap", reason="the lab")


def test_clones_install_packages_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they wait for the machine's own updates."""
    done = []
    monkeypatch.setattr(common.os, "geteuid", lambda: 0)
    monkeypatch.setattr(common.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(common, "machine_lock", lambda name: done.append(f"lock {name}") or nullcontext())
    monkeypatch.setattr(common, "logged", lambda argv, **_: done.append(" ".join(argv)))
    common.apt_install("wrk", reason="making the load")
    assert done[:2] == ["lock apt", "apt-get update -q"]
    assert done[2].startswith("apt-get install -qy -o DPkg::Lock::Timeout=")
    assert done[2].endswith(" wrk")

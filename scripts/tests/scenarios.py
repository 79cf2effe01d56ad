"""Run molecule scenarios, as many at once as there are processors, and write their output to build/test-<name>.log.

Without names: every scenario of CI. With --checks, the linters and the unit tests take a scenario's place until they
have ended: the cluster waits more than it computes. The cluster's hosts have the lab's names and addresses, so this
refuses to run it beside a lab; hosts that an interrupted test left are removed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from scripts.common import BUILD, CACHE, ROOT, ProblemError, end, environment, lock, machine_lock
from scripts.lab import docker_engine, host_image
from scripts.lab import hosts as lab_hosts
from scripts.progress import Expectation, against
from scripts.run_playbook import COLOURS, INTERRUPTED, expectation, remember
from scripts.site import build_go, make_secrets
from scripts.tests.times import VERDICT, Times, report

SCENARIOS = ROOT / "molecule"
SHARED = ROOT / ".config/molecule/config.yml"
"""Molecule merges each scenario's own file into this."""
SLOW = {"docker_engine", "field", "mixed", "monitoring", "move", "nvidia", "postgresql_major", "upgrade"}
"""Run only when named, such as by `make test-field`."""
NEED_MINIO = {"backup", "cluster", "field", "mixed", "monitoring", "move", "object_store", "postgresql_major"}
WATCHING = ("victoria-metrics", "victoria-logs", "vmalert", "vmagent")
CHECKS = ("lint", "unit")
"""Targets of the Makefile, quickest first: a failure ends the run."""
STEP = re.compile(r"\[\S+ > (\w+)\] Executing$")
TASK = re.compile(r"^(TASK|PLAY|RUNNING HANDLER) \[(.*)\] \*+$")
FAILED_STEP = re.compile(r" > (\w+)\]?:? Executed: Failed")
# pytest's summary; Ansible's hosts; the linters' verdicts
FAILURE = re.compile(r"^(?:FAILED|ERROR) \S+\.py\b|^(?:fatal|failed): \[|^\S+: FAILED \(")
TAIL = 60
PATIENCE = 10.0
"""Seconds that a scenario has to end by itself when it is told to."""


def in_ci(directory: Path = SCENARIOS) -> list[str]:
    """Return the scenarios of CI."""
    return sorted(path.parent.name for path in directory.glob("*/molecule.yml") if path.parent.name not in SLOW)


def platforms_of(name: str) -> list[dict[str, Any]]:
    """Return the hosts of a scenario, which its own file or the shared one declares."""
    own: dict[str, Any] = yaml.safe_load((SCENARIOS / name / "molecule.yml").read_text()) or {}
    platforms: list[dict[str, Any]] = (yaml.safe_load(SHARED.read_text()) | own)["platforms"]
    return platforms


def suites_of(names: Iterable[str]) -> list[str]:
    """Return the suites of Debian whose images the hosts of scenarios have."""
    images = (platform.get("image", "") for name in names for platform in platforms_of(name))
    return sorted({image.partition(":")[2] or host_image.default_suite() for image in images})


def programs_of(names: Iterable[str]) -> list[str]:
    """Return the programs that scenarios need and that are built while their hosts come up."""
    return ["minio"] * bool(NEED_MINIO & {*names}) + [*WATCHING] * ("monitoring" in names)


def in_order(names: Iterable[str]) -> list[str]:
    """Sort scenarios, longest and unknown first: started last, a long one would run alone at the end."""

    def seconds(name: str) -> float:
        expected = expectation(f"molecule-{name}")
        return expected.seconds if expected else float("inf")

    return sorted(names, key=lambda name: -seconds(name))


def with_checks(names: Sequence[str], processors: int) -> list[str]:
    """Add the checks to sorted scenarios so that both they and the longest scenarios start at once."""
    return [*names[: processors - 1], *CHECKS, *names[processors - 1 :]]


def shared_locks(names: Iterable[str]) -> list[str]:
    """Return the machine's locks for scenarios, in one order: clones share the hosts' names. The cluster is the lab."""
    return sorted("lab" if name == "cluster" else f"scenario-{name}" for name in {*names})


def prepare() -> None:
    """Provide what the cluster needs: engine, image, key, secrets; refuse if a lab is in use.

    In CI the machine belongs to the job: hosts that exist were left by a killed job, perhaps of another clone.
    """
    docker_engine.ensure()
    there = lab_hosts.containers()
    other = lab_hosts.foreign(there)
    if there and (other or not lab_hosts.MADE_BY_TESTS.exists()) and not os.environ.get("CI"):
        raise ProblemError(
            f"the lab of {other or ROOT} is up, and the tests would replace its hosts: `make lab-down` there first, "
            "or test by hand against it: `molecule verify -s cluster`"
        )
    host_image.ensure()
    lab_hosts.remove()
    lab_hosts.prepare_machine()
    lab_hosts.MADE_BY_TESTS.touch()
    make_secrets.ensure(lab_hosts.INVENTORY, also_given=True)


class Part(ABC):
    """A part of the tests: a command that runs, and its display."""

    stop = signal.SIGTERM
    """The signal that ends it."""

    def __init__(self, console: Console, name: str, record: str) -> None:
        """Show part `name` on `console`; its duration is kept under the name `record`."""
        self.console, self.name, self.record = console, name, record
        self.expected = expectation(record)
        self.started = time.monotonic()
        self.step_name = self.task = self.failed_step = ""
        self.failures = defaultdict[str, list[str]](list)  # by step: a failure that a step rescued does not count
        self.tasks = 0
        self.last = deque[str](maxlen=TAIL)
        self.process: subprocess.Popen[str] | None = None
        self.unwanted = False

    @property
    def log(self) -> Path:
        """The log with the whole output."""
        return BUILD / f"test-{self.name}.log"

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @abstractmethod
    def command(self) -> tuple[list[str], dict[str, str]]:
        """Make everything ready; return the command and what it needs in its environment."""

    def run(self) -> bool:
        """Run the command; return whether it passed."""
        argv, extra = self.command()
        self.process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=environment(extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        if self.unwanted:
            self.end()
        with self.log.open("w") as log:
            for raw in self.process.stdout or ():
                line = COLOURS.sub("", raw).rstrip()
                log.write(f"{line}\n")
                log.flush()
                self.take(line)
        passed = self.process.wait() == 0
        if passed:
            remember(self.record, Expectation(self.tasks, round(self.elapsed, 1)))
            self.say(f"{self.name}: passed ({against(self.elapsed, self.expected)})", style="green")
        return passed

    def take(self, line: str) -> None:
        """Take a line of output."""
        self.last.append(line)
        if FAILURE.match(line):
            self.failures[self.step_name].append(f"{self.task}: {line}" if self.task else line)

    def end(self) -> None:
        """Stop the part with everything that it started."""
        self.unwanted = True
        if self.process is None:
            return
        for number in (self.stop, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)

    def tell(self) -> None:
        """Print what failed as the last lines: molecule's own output ends with the removal of the hosts."""
        self.say("\n".join(self.last))
        self.say(f"\n{self.verdict()}", style="red")

    def verdict(self) -> str:
        """Return what failed, in a few lines."""
        step = self.failed_step or self.step_name
        where = f"FAILED: {self.name}{f', in step {step}' if step else ''}"
        return "\n".join((where, f"The whole output is in {self.log.relative_to(ROOT)}", *self.failures[step]))

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line without markup or wrapping."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class Check(Part):
    """A target of the Makefile that checks something."""

    stop = signal.SIGINT  # pytest then ends the servers that its tests have started

    def __init__(self, console: Console, name: str) -> None:
        """Show target `name` on `console`."""
        super().__init__(console, name, f"check-{name}")
        if not console.is_terminal:
            self.say(f"{name} ({against(0, self.expected)})")

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Return the target's command."""
        return ["make", "--no-print-directory", self.name], {}

    def __rich__(self) -> Text:
        """Return what a terminal shows."""
        last = self.last[-1] if self.last else ""
        return Text(f"{self.name}  {against(self.elapsed, self.expected)}\n  {last}", no_wrap=True)


class Scenario(Part):
    """A scenario of molecule."""

    def __init__(self, console: Console, name: str) -> None:
        """Show scenario `name` on `console`."""
        super().__init__(console, name, f"molecule-{name}")
        self.times = Times(name)

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Remove what an earlier run left; return the command of `molecule test`."""
        state = lab_hosts.STATE if self.name == "cluster" else CACHE / "molecule" / self.name
        shutil.rmtree(state, ignore_errors=True)  # molecule trusts its state file, not the engine
        self.times.forget()
        program = str(Path(sys.executable).with_name("molecule"))
        extra = {**lab_hosts.molecule_environment(), "MOLECULE_EPHEMERAL_DIRECTORY": str(state)}
        return [program, "test", "-s", self.name], extra

    def run(self) -> bool:
        """Run `molecule test`; return whether it passed."""
        passed = super().run()
        self.times.end(self.elapsed)
        return passed

    def take(self, line: str) -> None:
        """Take a line of molecule's output."""
        if found := STEP.search(line):
            self.step_name, self.task = found.group(1), ""
            self.times.step(self.step_name, self.elapsed)
            if not self.console.is_terminal:
                self.say(f"{self.name} > {self.step_name} ({against(self.elapsed, self.expected)})")
        elif found := TASK.match(line):
            kind, self.task = found.groups()
            self.tasks += 1
            self.times.task("" if kind == "PLAY" else self.task, self.elapsed)
        elif line.startswith("PLAY RECAP"):
            self.times.task("", self.elapsed)
        elif found := FAILED_STEP.search(line):
            self.failed_step = self.failed_step or found.group(1)
        super().take(line)

    def __rich__(self) -> Text:
        """Return what a terminal shows."""
        total = f"/{self.expected.tasks}" if self.expected and self.expected.tasks >= self.tasks else ""
        text = f"{self.name} > {self.step_name}  task {self.tasks}{total}  {against(self.elapsed, self.expected)}"
        return Text(f"{text}\n  {self.task}", no_wrap=True)


def part(console: Console, name: str) -> Check | Scenario:
    """Return a check or a scenario."""
    return Check(console, name) if name in CHECKS else Scenario(console, name)


def run(
    names: Sequence[str], processors: int, console: Console
) -> tuple[list[Check | Scenario], Check | Scenario | None]:
    """Run checks and scenarios until one fails; return those that were started, and the one that failed."""
    waiting, begun, failed = deque(names), list[Check | Scenario](), None
    running = dict[Future[bool], Check | Scenario]()

    def drawn() -> Group:
        return Group(*running.values())

    with (
        ThreadPoolExecutor(max_workers=len(names)) as pool,
        Live(get_renderable=drawn, console=console, transient=True, auto_refresh=console.is_terminal),
    ):
        try:
            while (waiting or running) and not failed:
                while waiting and len(running) < processors:
                    begun.append(one := part(console, waiting.popleft()))
                    running[pool.submit(one.run)] = one
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    one = running.pop(done)
                    if not done.result():
                        failed = failed or one
        finally:
            for one in running.values():
                one.end()
    return begun, failed


def main() -> int:
    """Run the named scenarios, or all of CI's; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*")
    parser.add_argument("--checks", action="store_true", help=f"run the targets {' and '.join(CHECKS)} as well")
    parser.add_argument("--processors", type=int, default=os.cpu_count() or 1, help="how many at once (default: all)")
    parser.add_argument("--began", type=float, default=time.time(), help="when `make test` began, seconds since 1970")
    arguments = parser.parse_args()
    names = in_order(arguments.scenarios or in_ci())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    BUILD.mkdir(exist_ok=True)
    VERDICT.unlink(missing_ok=True)
    with lock("scenarios"), ExitStack() as stack:
        for shared in shared_locks(names):
            stack.enter_context(machine_lock(shared))
        if "cluster" in names:
            prepare()
            stack.callback(lab_hosts.MADE_BY_TESTS.unlink, missing_ok=True)
            stack.callback(lab_hosts.remove)
        else:
            docker_engine.ensure()
        for suite in suites_of(names):
            host_image.ensure(suite)
        for name in names:
            if name != "cluster":
                lab_hosts.remove_scenario(name)
                stack.callback(lab_hosts.remove_scenario, name)
        lab_hosts.let_watch(sum(len(platforms_of(name)) for name in names))
        if programs := programs_of(names):
            stack.enter_context(build_go.in_background(programs))
        parts = with_checks(names, arguments.processors) if arguments.checks else names
        begun, failed = run(parts, arguments.processors, console)
    times = [one.times for one in begun if isinstance(one, Scenario)]
    report(console, times, arguments.began, ok=not failed)
    if failed:
        failed.tell()
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProblemError as error:
        end(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)

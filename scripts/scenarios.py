"""Run molecule's scenarios one after another, show how far they are, keep everything in build/test.log.

Without names: every scenario of CI. The cluster's hosts have the lab's names and addresses, so this refuses to
run beside a lab; hosts that an interrupted test left are removed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict, deque
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from scripts import docker_engine, host_image, lab_hosts, make_secrets
from scripts.common import BUILD, CACHE, ROOT, ProblemError, end, environment, lock
from scripts.lab import minio_in_background
from scripts.progress import Expectation, against
from scripts.run_playbook import COLOURS, expectation, remember

SCENARIOS = ROOT / "molecule"
LOG = BUILD / "test.log"
SLOW = {"nvidia"}  # only by name: `make test-nvidia`
STEP = re.compile(r"\[\S+ > (\w+)\] Executing$")
TASK = re.compile(r"^(?:TASK|PLAY|RUNNING HANDLER) \[(.*)\] \*+$")
FAILED_STEP = re.compile(r" > (\w+)\]?:? Executed: Failed")
FAILURE = re.compile(r"^(?:FAILED|ERROR) \S+\.py\b|^(?:fatal|failed): \[")  # pytest's summary; Ansible's hosts
TAIL = 60


def in_ci(directory: Path = SCENARIOS) -> list[str]:
    """The scenarios of CI: the small ones first, the whole cluster last."""
    names = sorted(path.parent.name for path in directory.glob("*/molecule.yml"))
    return sorted((name for name in names if name not in SLOW), key=lambda name: name == "cluster")


def prepare() -> None:
    """What scenarios take for granted: engine, image, key, secrets; and no lab that somebody uses.

    In CI the machine is the job's: hosts that are there were left by one that was killed, perhaps of another clone.
    """
    docker_engine.ensure()
    if lab_hosts.containers() and not lab_hosts.MADE_BY_TESTS.exists() and not os.environ.get("CI"):
        raise ProblemError(
            "a lab is up, and the tests would replace its hosts: `make lab-down` first, "
            "or test by hand against it: `molecule verify -s cluster`"
        )
    host_image.ensure()
    lab_hosts.remove()
    lab_hosts.prepare_machine()
    lab_hosts.MADE_BY_TESTS.touch()
    make_secrets.ensure(lab_hosts.INVENTORY, also_given=True)


class View:
    """What a person sees of a running scenario."""

    def __init__(self, console: Console, name: str, position: str) -> None:
        """Show scenario `name`, the `position`-th of all."""
        self.console, self.name, self.position = console, name, position
        self.expected = expectation(f"molecule-{name}")
        self.started = time.monotonic()
        self.step = self.task = self.failed_step = ""
        self.failures = defaultdict[str, list[str]](list)  # of each step: what is rescued in one failed nothing
        self.tasks = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def take(self, line: str) -> None:
        """Learn from a line of molecule's output."""
        if found := STEP.search(line):
            self.step, self.task = found.group(1), ""
            if not self.console.is_terminal:
                self.console.print(
                    f"{self} {self.step} ({against(self.elapsed, self.expected)})", highlight=False, markup=False
                )
        elif found := TASK.match(line):
            self.task = found.group(1)
            self.tasks += 1
        elif found := FAILED_STEP.search(line):
            self.failed_step = self.failed_step or found.group(1)
        elif FAILURE.match(line):
            self.failures[self.step].append(f"{self.task}: {line}" if self.task else line)

    def verdict(self) -> str:
        """What failed, for the end of the output: molecule goes on to remove the hosts, which hides it."""
        step = self.failed_step or self.step
        where = f"FAILED: {self.name}, in its step {step}\nEverything is in {LOG.relative_to(ROOT)}"
        return "\n".join((where, *self.failures[step]))

    def __str__(self) -> str:
        """The scenario and its place among all."""
        return f"[{self.position}] {self.name}"

    def __rich__(self) -> Text:
        """What is drawn on a terminal."""
        total = f"/{self.expected.tasks}" if self.expected and self.expected.tasks >= self.tasks else ""
        text = f"{self} > {self.step}  task {self.tasks}{total}  {against(self.elapsed, self.expected)}\n  {self.task}"
        return Text(text, no_wrap=True)


def run(name: str, console: Console, position: str) -> bool:
    """Test one scenario; whether it passed."""
    view, last = View(console, name, position), deque[str](maxlen=TAIL)
    command = [str(Path(sys.executable).with_name("molecule")), "test", "-s", name]
    state = {"MOLECULE_EPHEMERAL_DIRECTORY": str(lab_hosts.STATE if name == "cluster" else CACHE / "molecule" / name)}
    with LOG.open("a") as log, Live(view, console=console, transient=True, auto_refresh=console.is_terminal):
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment({**lab_hosts.molecule_environment(), **state}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for raw in child.stdout or ():
            line = COLOURS.sub("", raw).rstrip()
            log.write(f"{line}\n")
            log.flush()
            last.append(line)
            view.take(line)
        passed = child.wait() == 0
    if passed:
        remember(f"molecule-{name}", Expectation(view.tasks, round(view.elapsed, 1)))
        console.print(
            f"{view}: passed ({against(view.elapsed, view.expected)})", style="green", highlight=False, markup=False
        )
    else:
        console.print("\n".join(last), highlight=False, markup=False, soft_wrap=True)
        console.print(f"\n{view.verdict()}", style="red", highlight=False, markup=False, soft_wrap=True)
    return passed


def main() -> int:
    """Run the named scenarios, or all of CI; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*")
    names = parser.parse_args().scenarios or in_ci()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    BUILD.mkdir(exist_ok=True)
    LOG.write_text("")
    with lock("lab"):
        prepare()
        try:
            with minio_in_background():
                return 0 if all(run(name, console, f"{i}/{len(names)}") for i, name in enumerate(names, 1)) else 1
        finally:
            lab_hosts.remove()
            lab_hosts.MADE_BY_TESTS.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProblemError as error:
        end(error)

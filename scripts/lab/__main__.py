"""`make lab` and `make lab-down`: the whole platform on this machine, from nothing to predictions."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from scripts.common import BUILD, LAB, LOG, ROOT, ProblemError, end, listed_inventory, machine_lock, write_json
from scripts.lab import docker_engine, host_image
from scripts.lab import hosts as lab_hosts
from scripts.progress import Expectation, duration
from scripts.run_playbook import INTERRUPTED, expectation, play, remember
from scripts.site import build_go, make_secrets

INVENTORY = lab_hosts.INVENTORY
EXAMPLE = ROOT / "examples" / "flights"
LOOP = EXAMPLE / "lab.yml"
CUSTOMER = EXAMPLE / "customer_db.yml"
GIT_HOST = ROOT / "molecule" / "cluster" / "git_host.yml"
OFFSITE = GIT_HOST.with_name("offsite.yml")
VERDICT = BUILD / "lab.json"
FLIGHTS = BUILD / "flights.json"
# Group → its display name and address.
PARTS = {
    "gateway": ("start page", "https://metalworks.internal"),
    "postgresql": ("PostgreSQL", "closed to other hosts"),
    "object_store": ("MinIO", "https://s3.metalworks.internal, https://console.metalworks.internal"),
    "mlflow": ("MLflow", "https://mlflow.metalworks.internal"),
    "prefect_server": ("Prefect", "https://prefect.metalworks.internal"),
    "prefect_worker": ("Prefect worker", ""),
    "inference": ("inference", "https://inference.metalworks.internal/delay"),
    "workstation": ("developers' machine", "users ml1, ml2"),
    "outside": ("outside the platform", ""),
}


class Lab:
    """The stages of `make lab`, each shown with its time."""

    def __init__(self, console: Console) -> None:
        """Show progress on `console`."""
        self.console = console
        self.stages: list[tuple[str, Callable[[str], str]]] = [
            ("Docker engine", self.engine),
            ("Host image", self.image),
            ("Hosts", self.hosts),
            ("Secrets", self.secrets),
            ("The customer's database", self.customer),
            ("The team's Git hosting", self.git),
            ("An S3 elsewhere, for the backups", self.offsite),
            ("The platform: site.yml", self.platform),
            ("The example project: data to predictions", self.example),
        ]
        self.seconds: dict[str, float] = {}
        self.changes = 0

    def up(self) -> None:
        """Run all stages; stop at the first problem."""
        started = time.monotonic()
        LOG.parent.mkdir(parents=True, exist_ok=True)
        LOG.write_text("")
        self.console.print(f"The log is {LOG.relative_to(ROOT)}", highlight=False)
        lab_hosts.MADE_BY_TESTS.unlink(missing_ok=True)
        with build_go.in_background():
            for number, (title, stage) in enumerate(self.stages, start=1):
                heading = f"[{number}/{len(self.stages)}] {title}"
                before = time.monotonic()
                done = stage(heading)
                self.seconds[stage.__name__] = round(time.monotonic() - before, 1)
                self.say(f"{heading}: {done} ({duration(self.seconds[stage.__name__])})", style="green")
        total = round(time.monotonic() - started, 1)
        write_verdict(total, self.seconds, self.changes)
        flights = json.loads(FLIGHTS.read_text())
        self.console.print(overview(), width=None if self.console.is_terminal else 120)
        self.console.print(scores(flights))
        self.say(f"{outcome(flights)}\n{look_around()}")
        self.say(f"The lab is up: {self.changes} changes on hosts, {duration(total)}.", style="bold green")

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line without markup or wrapping."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def quietly(self, heading: str, work: Callable[[], str]) -> str:
        """Do work that reports no events, under a spinner that shows how long it took last time."""
        name = f"stage-{work.__module__.rsplit('.', 1)[-1]}"
        expected, before = expectation(name), time.monotonic()
        hint = f" (about {duration(expected.seconds)})" if expected else ""
        if not self.console.is_terminal:
            self.say(f"{heading} ...{hint}")
        with self.console.status(Text(f"{heading} ...{hint}")):
            outcome = work()
        took = time.monotonic() - before
        if took > 2:  # less means that there was nothing to do
            remember(name, Expectation(1, round(took, 1)))
        return outcome

    def playbook(self, heading: str, path: Path) -> str:
        """Run a playbook on the lab."""
        self.say(heading)
        result = play(path, [INVENTORY], console=self.console)
        if result.code:
            sys.exit(result.code if result.code == INTERRUPTED else 1)
        self.changes += result.changed
        return f"{result.changed} changes"

    def engine(self, heading: str) -> str:
        """Make a Docker engine answer."""
        return self.quietly(heading, docker_engine.ensure)

    def image(self, heading: str) -> str:
        """Make the host image exist."""
        return self.quietly(heading, host_image.ensure)

    def hosts(self, heading: str) -> str:
        """Make all hosts run and accept the lab's key."""
        return self.quietly(heading, lab_hosts.up)

    def secrets(self, _heading: str) -> str:
        """Generate missing secrets."""
        added = make_secrets.ensure(INVENTORY, also_given=True)
        return f"{len(added)} added" if added else "complete already"

    def customer(self, heading: str) -> str:
        """Set up the customer's database with the flights."""
        return self.outside(heading, CUSTOMER, "customer-db", 5432)

    def git(self, heading: str) -> str:
        """Set up the Git host."""
        return self.outside(heading, GIT_HOST, "git", 443)

    def offsite(self, heading: str) -> str:
        """Set up the S3 for the backups."""
        return self.outside(heading, OFFSITE, "offsite", 443)

    def outside(self, heading: str, recipe: Path, name: str, port: int) -> str:
        """Set up a host outside the platform; leave it alone while it answers and its playbook is the same."""
        known, present = LAB / f"{name}.stamp", stamp(recipe, name)
        address = next(host.address for host in lab_hosts.declared() if host.name == name)
        if known.exists() and known.read_text() == present and listens(address, port):
            return "answers already"
        outcome = self.playbook(heading, recipe)
        known.write_text(present)
        return outcome

    def platform(self, heading: str) -> str:
        """Run site.yml, as a team would."""
        return self.playbook(heading, ROOT / "site.yml")

    def example(self, heading: str) -> str:
        """Run the example project, as an ordinary user."""
        return self.playbook(heading, LOOP)


def stamp(recipe: Path, name: str) -> str:
    """Identify a container and the playbook that set it up, with the files that share its name."""
    parts = [path for path in sorted(recipe.parent.rglob(f"{recipe.stem}*")) if path.is_file()]
    content = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
    return f"{lab_hosts.containers()[name]['Id']} {content}"


def listens(address: str, port: int) -> bool:
    """Return whether something accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def write_verdict(total: float, seconds: Mapping[str, float], changes: int) -> None:
    """Write build/lab.json: how long each stage took, and on which machine."""
    figures = {
        "total_seconds": total,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "changes": changes,
    }
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    write_json(VERDICT, {"ok": True, "figures": figures, "measured_on": machine})


def overview() -> Table:
    """Return a table of what runs where, from the inventory."""
    listed = listed_inventory(INVENTORY)
    where_column = Column("address", overflow="fold")
    table = Table("part", "host", where_column, title="What runs where", title_justify="left", box=SIMPLE_HEAD)
    for group, (part, where) in PARTS.items():
        for host in lab_hosts.members(listed, group):
            address = listed["_meta"]["hostvars"][host].get("ansible_host", host)
            table.add_row(part, host, where.format(address=address) or address)
    return table


def scores(flights: Mapping[str, Any]) -> Table:
    """Return a table of the scores of the example's models."""
    keys = dict.fromkeys(key for model in flights["models"] for key in model if key != "name")
    title = "Models of the example, compared in MLflow"
    table = Table("model", *keys, title=title, title_justify="left", box=SIMPLE_HEAD)
    for model in flights["models"]:
        cells = [f"{model[key]:.4g}" if isinstance(model.get(key), float) else str(model.get(key, "")) for key in keys]
        best = model["name"] == flights["champion"]
        table.add_row(
            f"{model['name']} (champion)" if best else model["name"], *cells, style="bold green" if best else ""
        )
    return table


def outcome(flights: Mapping[str, Any]) -> str:
    """Return lines about the champion's predictions and the scheduled retraining."""
    lines = []
    if asked := flights.get("prediction"):
        lines.append(
            f"Prediction:   {asked['rows']} rows from {asked['url']} (version {asked['version']}), asked on "
            f"{asked['asked_from']}; largest difference to the same model in-process: {asked['max_difference']}"
        )
    if again := flights.get("retrained"):
        lines.append(
            f"Retraining:   by schedule, prepared on {again['prepared_on']}, trained on {again['trained_on']}: "
            f"version {again['version']}, {again['verdict']}"
        )
    return "\n".join(lines)


def look_around() -> str:
    """Return what to type next."""
    config = lab_hosts.SSH_CONFIG.relative_to(ROOT)
    return (
        "In a browser: chromium --host-resolver-rules='MAP *.metalworks.internal 198.51.100.11, "
        "MAP metalworks.internal 198.51.100.11' https://metalworks.internal\n"
        f"Look around:  ssh -F {config} services-1\n"
        f"As developer: ssh -F {config} -t dev-1 sudo su - ml1\n"
        "By hand:      .venv/bin/ansible-playbook -i inventory/lab site.yml --limit gpu-1\n"
        "Passwords:    inventory/lab/group_vars/all/vault.yml\n"
        "Check it:     make smoke      Remove it: make lab-down"
    )


def down() -> None:
    """Remove everything except caches."""
    if shutil.which("docker") and (LAB.exists() or docker_engine.answers()):
        docker_engine.ensure()
        lab_hosts.remove()
        docker_engine.stop_own()
    shutil.rmtree(LAB, ignore_errors=True)
    shutil.rmtree(BUILD, ignore_errors=True)
    (INVENTORY / "group_vars" / "all" / "vault.yml").unlink(missing_ok=True)
    print("The lab is gone. For the next one, caches stay in .cache and the host image in Docker.")


def main() -> None:
    """Bring the lab up, or take it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["up", "down"])
    verb = parser.parse_args().verb
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with machine_lock("lab"):
        if verb == "up":
            Lab(Console()).up()
        else:
            down()


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)

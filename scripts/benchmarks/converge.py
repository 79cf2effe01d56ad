"""Measure how long a converged site.yml takes as hosts are added, and how long new hosts take to join.

Needs the lab (`make lab`). Adds small hosts of group cpu, converges and measures. At the end, and after a failure or
Ctrl-C, removes them and what the platform stores about them. The verdict is in build/bench-converge.json, the picture
in build/bench-converge.svg. Exits with 0, 1 (a target was missed or not measured) or 2 (could not measure).
"""

from __future__ import annotations

import argparse
import itertools
import signal
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib import metadata

import httpx
import yaml
from rich.console import Console

from scripts.benchmarks.converge_report import Seen, Size, Times, plot, tables, verdict
from scripts.benchmarks.measured import machine, told
from scripts.common import BUILD, ROOT, ProblemError, listed_inventory, machine_lock, write_json
from scripts.lab import hosts as lab_hosts
from scripts.lab.hosts import INVENTORY, Host
from scripts.run_playbook import INTERRUPTED, Result, play

SIZES = (5, 10, 25)
"""Numbers of platform hosts to measure with; the lab itself has five."""
RUNS = 2
TOGETHER = 8
"""Maximum number of hosts that join at once."""
ADDED = BUILD / "bench-converge.yml"
"""Inventory of the added hosts. While this file exists, the platform may know them."""
VERDICT = BUILD / "bench-converge.json"
PICTURE = BUILD / "bench-converge.svg"
DOCS_PICTURE = ROOT / "docs" / "pictures" / "converge.svg"
OK, MISSED, UNKNOWN = 0, 1, 2


def converge(console: Console, *, limit: Sequence[Host] = (), added: bool = True, times: Times | None = None) -> Result:
    """Run site.yml on the lab with or without the added hosts, or only on some hosts. It must succeed."""
    inventories = [INVENTORY, *([ADDED] if added and ADDED.exists() else [])]
    names = ",".join(host.name for host in limit) or None
    result = play(ROOT / "site.yml", inventories, console=console, limit=names, watch=times.take if times else None)
    if result.code == INTERRUPTED:
        raise KeyboardInterrupt
    if result.code:
        raise ProblemError("site.yml failed: see above")
    return result


def measure(hosts: int, runs: int, console: Console) -> Size:
    """Converge until nothing is left to change, then measure."""
    converge(console)
    size = Size(hosts)
    for _ in range(runs):
        times = Times()
        result = converge(console, times=times)
        if result.changed:
            changes = ", ".join(f"`{task}` on {host}" for host, task in result.state.changed)
            raise ProblemError(f"cannot measure: site.yml changes something in every run: {changes}")
        size.add(result.seconds, times)
    return size


def batches(count: int) -> Iterator[int]:
    """Return how many hosts join in each step until this many have joined."""
    while count > 0:
        yield min(count, TOGETHER)
        count -= TOGETHER


def spare(taken: Sequence[Host], count: int) -> list[Host]:
    """Yield hosts with unused names and addresses."""
    names, addresses = {host.name for host in taken}, {host.address for host in taken}
    free_names = (name for number in itertools.count(2) if (name := f"cpu-{number}") not in names)
    free = (address for number in range(32, 255) if (address := f"198.51.100.{number}") not in addresses)
    return [Host(next(free_names), next(free)) for _ in range(count)]


def noted() -> list[Host]:
    """Return the hosts that this or an earlier benchmark added."""
    if not ADDED.exists():
        return []
    listed = yaml.safe_load(ADDED.read_text())["cpu"]["hosts"]
    return [Host(name, each["ansible_host"]) for name, each in listed.items()]


def add(count: int) -> list[Host]:
    """Create new hosts of group cpu; record them first."""
    before = noted()
    new = spare(lab_hosts.hosts(lab_hosts.containers()), count)
    listed = {host.name: {"ansible_host": host.address} for host in [*before, *new]}
    ADDED.parent.mkdir(exist_ok=True)
    ADDED.write_text(yaml.safe_dump({"cpu": {"hosts": listed}}))
    lab_hosts.add(*new)
    return new


def clean_up(console: Console) -> None:
    """Remove the added hosts, if any, and their names, firewall rules and workers in Prefect."""
    gone = noted()
    if not gone:
        return
    console.print(f"Removing {', '.join(host.name for host in gone)}", markup=False, highlight=False)
    lab_hosts.discard(*gone)
    converge(console, added=False)
    forget_workers(gone)
    ADDED.unlink()


def tell_what_stays(console: Console) -> None:
    """Print a note if hosts are left, on request or because they could not be removed."""
    if noted():
        text = f"The added hosts stay until the next run removes them: {ADDED}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def forget_workers(gone: Sequence[Host]) -> None:
    """Delete the hosts' workers in Prefect, which would list them as offline for ever."""
    vault, site = lab_hosts.secrets(), "prefect.metalworks.internal"
    gateway = next(host.address for host in lab_hosts.declared() if host.name == "services-1")
    trusted = ssl.create_default_context(cadata=vault["vault_ca_certificate"])
    login = ("worker-cpu", vault["vault_machine_passwords"]["worker-cpu"])
    with httpx.Client(verify=trusted, auth=login, trust_env=False, timeout=30) as client:
        for host in gone:
            url = f"https://{gateway}/api/work_pools/cpu/workers/{host.name}-cpu"
            answer = client.delete(url, headers={"Host": site}, extensions={"sni_hostname": site})
            if answer.status_code not in (204, 404):
                raise ProblemError(f"Prefect did not delete the worker of {host.name}: {answer.status_code}")


def platform_hosts() -> int:
    """Return the number of hosts in the lab's inventory; they must all run."""
    there = lab_hosts.containers()
    lab_hosts.refuse_foreign(there)
    running = {name for name, each in there.items() if each["State"]["Running"]}
    if missing := sorted({host.name for host in lab_hosts.declared()} - running):
        raise ProblemError(f"hosts of the lab are not running: {', '.join(missing)}: `make lab` first")
    return len(lab_hosts.members(listed_inventory(INVENTORY), "platform"))


def measure_all(there: int, sizes: Sequence[int], runs: int, console: Console) -> Seen:
    """Measure the site with each number of hosts, and how long new ones take to join."""
    if min(sizes) < there:
        raise ProblemError(f"cannot measure with {min(sizes)} hosts: the lab has {there} already")
    clean_up(console)
    seen = Seen()
    for size in sorted(set(sizes)):
        for count in batches(size - there):
            new = add(count)
            seen.joins.setdefault(count, round(converge(console, limit=new).seconds, 1))
        there = size
        seen.sizes.append(measure(size, runs, console))
    return seen


def main() -> int:
    """Measure, print the results, and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of hosts (default: 5 10 25)")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs with each number; the fastest counts (default: 2)")
    parser.add_argument("--keep", action="store_true", help="keep the added hosts until the next run removes them")
    parser.add_argument("--docs", action="store_true", help="update the picture in docs/")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(UNKNOWN))  # so that the hosts are removed
    console = Console(width=max(120, Console().width))
    VERDICT.unlink(missing_ok=True)
    measured_on = {**machine(), "ansible": metadata.version("ansible-core"), "runs": options.runs}
    try:
        with machine_lock("lab"), ExitStack() as afterwards:
            there = platform_hosts()
            afterwards.callback(tell_what_stays, console)
            if not options.keep:
                afterwards.callback(clean_up, console)
            seen = measure_all(there, options.sizes, options.runs, console)
    except ProblemError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return UNKNOWN
    except KeyboardInterrupt:
        return INTERRUPTED
    found = verdict(seen, measured_on)
    write_json(VERDICT, found)
    for picture in (PICTURE, *([DOCS_PICTURE] if options.docs else [])):
        plot(seen, picture)
    for table in tables(seen):
        console.print(table)
    console.print(told(found["targets"]), markup=False, highlight=False)
    print(f"bench-converge: {'ok' if found['ok'] else 'FAILED'}")
    return OK if found["ok"] else MISSED


if __name__ == "__main__":
    raise SystemExit(main())

"""Break parts of the lab one after the other under a steady load, and look for lost writes.

Called by `make test-faults` while a lab is up. A developer's runs, files, flow runs and predictions are asked for all
the time, and a ledger on this machine has every write that was acknowledged. After each fault the lab must become
healthy without help, every write in the ledger must be there and readable, each flow run must end, and no half file
may lie around. Prints a table; build/test-faults.json has the same. The exit code is 0 if all went well.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from scripts.common import BUILD, ProblemError, end, machine_lock, wait_until, write_json
from scripts.lab import hosts as lab_hosts
from scripts.tests.age import site as age_site
from scripts.tests.faults import client, project, site
from scripts.tests.faults.faults import Fault, all_faults
from scripts.tests.faults.ledger import Ledger, lost
from scripts.tests.faults.load import BUCKET, Load, as_developer

VERDICT, LEDGER = BUILD / "test-faults.json", BUILD / "test-faults.ledger.jsonl"
STEADY_SECONDS = 180.0
"""How long the load may take until work of each kind has succeeded."""
FLOW_SECONDS = 240.0
"""How long after the recovery a flow run may go on: its host is lost after two minutes of silence, and it takes 8 s."""


@dataclass
class Result:
    """What a fault did."""

    name: str
    what: str
    seconds: float | None = None
    """Seconds to recover."""
    requests: int = 0
    failed: int = 0
    failed_by_kind: dict[str, int] = field(default_factory=dict)
    writes: int = 0
    lost: list[str] = field(default_factory=list)
    endless: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    flows: dict[str, int] = field(default_factory=dict)
    hand: str = ""
    wrong: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Tell whether all was as it should be."""
        return self.seconds is not None and not (self.lost or self.endless or self.left or self.wrong)


class Trial:
    """The lab under load, to be broken."""

    def __init__(self, ledger: Ledger, load: Load) -> None:
        """Take the lab's state as it is for granted."""
        self.ledger, self.load = ledger, load
        self.accepted = site.complaints()
        self.around = site.around()
        self.secrets = sorted(secret_values(lab_hosts.secrets()))

    def steady(self) -> None:
        """Wait until all kinds of work have succeeded lately."""
        began = time.time()
        while not self.load.well(time.time() - STEADY_SECONDS):
            if time.time() - began > STEADY_SECONDS:
                raise ProblemError(f"the load does not succeed: {self.errors(began) or self.load.said or 'it is slow'}")
            time.sleep(1)

    def errors(self, since: float) -> dict[str, str]:
        """Return the last error of each kind of work."""
        return {one.kind: one.error for one in self.load.attempts(since) if one.error}

    def recovered(self, since: float, mended: float, limit: float) -> float | None:
        """Wait for the recovery; return how many seconds after `mended` it was, or None if it did not come."""
        bad = mended
        while True:
            now = time.time()
            self.unwell = site.complaints(self.accepted)
            if self.unwell:
                bad = time.time()
            bad = max(bad, last_failure(self.load, since))
            if bad - mended > limit:
                return None
            if self.load.steady_since(since, bad) and not self.unwell:
                return round(bad - mended, 1)
            if now - mended > limit + 90:  # neither failure nor success: work hangs
                return None
            time.sleep(2)  # looking costs the hosts' own processors

    def make(self, fault: Fault) -> Result:
        """Make a fault, mend it, wait for the recovery, and look at what it did."""
        result = Result(fault.name, fault.what, hand=fault.hand)
        self.steady()
        known = len(self.ledger.writes())
        began = mended = time.time()
        try:
            fault.make()
            if fault.mend:
                time.sleep(max(0.0, began + fault.lasts - time.time()))
        finally:
            if fault.mend:
                mended = time.time()
                fault.mend()
        result.seconds = self.recovered(began, mended, fault.limit)
        if result.seconds is None:
            told = "; ".join(f"{kind}: {error}" for kind, error in self.errors(time.time() - 30).items())
            result.wrong.append(f"not healthy {fault.limit:.0f} s later: {', '.join(sorted(self.unwell))} {told}")
        try:
            fault.after()
        except ProblemError as error:
            result.wrong.append(str(error))
        attempts = self.load.attempts(began)
        result.requests, result.failed = len(attempts), sum(bool(one.error) for one in attempts)
        result.failed_by_kind = dict(collections.Counter(one.kind for one in attempts if one.error))
        self.check(result, known)
        return result

    def check(self, result: Result, known: int) -> None:
        """Look for the writes since the last fault, for flow runs without an end, and for half files."""
        states = self.ended()
        result.endless = [f"flow run {run} is {states[run]}" for run in unended(states)]
        writes = self.ledger.writes()
        # It was started after the recovery.
        if (state := newest(writes, states)) != "COMPLETED":
            result.wrong.append(f"the newest flow run ended as {state}")
        result.writes = len(writes) - known
        # Some older ones, too: a store that comes back with an earlier state would lose those.
        checked = writes[max(0, known - 200) :]
        result.lost = lost(checked, as_developer(f"verify({checked!r}, {BUCKET!r})"))
        result.flows = dict(collections.Counter(states[one["id"]] for one in writes[known:]
                                                if one["kind"] == "flow" and one["id"] in states))  # fmt: skip
        result.left = site.left(self.around, self.secrets)

    def ended(self) -> dict[str, str]:
        """Return the states of the flow runs that exist now, once all have ended or the time is up."""
        deadline = time.monotonic() + FLOW_SECONDS
        states = self.states()
        while unended(states) and time.monotonic() < deadline:
            time.sleep(3)
            states = {run: state for run, state in self.states().items() if run in states}
        return states

    def states(self) -> dict[str, str]:
        """Return the state of each flow run of the load."""
        found: dict[str, str] = as_developer(f"flow_states({self.load.deployment!r})")
        return found


def unended(states: dict[str, str]) -> list[str]:
    """Return the flow runs that go on."""
    return [run for run, state in states.items() if state not in client.ENDED]


def newest(writes: list[dict[str, Any]], states: dict[str, str]) -> str:
    """Return the state of the flow run that was started last, of those whose state is known."""
    known = [states[one["id"]] for one in writes if one["kind"] == "flow" and one["id"] in states]
    return known[-1] if known else "none"


def last_failure(load: Load, since: float) -> float:
    """Return when the last failed work since then ended, or `since`."""
    return max([since, *(one.ended for one in load.attempts(since) if one.error)])


def secret_values(secrets: dict[str, Any]) -> Iterator[str]:
    """Yield each secret of the vault; of a PEM text, a line that is its own."""
    for value in secrets.values():
        for text in value.values() if isinstance(value, dict) else [value]:
            if "BEGIN CERTIFICATE" not in text:
                yield text.splitlines()[1] if "PRIVATE KEY" in text else text


def sabotage(trial: Trial) -> Fault:
    """Return a fault that loses writes, to see that this is noticed."""

    def make() -> None:
        wait_until(lambda: any(one["kind"] == "data" for one in trial.ledger.writes()), "no data was pushed", 60)
        print("deleted behind the ledger's back:", as_developer(f"sabotage({trial.ledger.writes()!r}, {BUCKET!r})"))

    return Fault("sabotage", "writes deleted behind the ledger's back", make)


def table(results: Iterable[Result]) -> str:
    """Return a line for each fault."""
    lines = [f"{'fault':<24}{'recovered':>10}{'requests':>10}{'failed':>8}{'writes':>8}{'lost':>6}  "]
    for one in results:
        seconds = "not" if one.seconds is None else f"{one.seconds:.0f} s"
        numbers = f"{seconds:>10}{one.requests:>10}{one.failed:>8}{one.writes:>8}{len(one.lost):>6}"
        lines.append(f"{one.name:<24}{numbers}  {'ok' if one.ok else 'FAILED'}{' (by hand)' if one.hand else ''}")
        lines += [f"    {line}" for line in [*one.wrong, *one.lost[:5], *one.endless[:5], *one.left[:5]]]
    return "\n".join(lines)


def verdict(results: list[Result], at_end: list[str]) -> dict[str, Any]:
    """Return the content of the file; `at_end` are the writes that were missing after all faults."""
    missing = {line for one in results for line in one.lost} | {*at_end}
    figures: dict[str, float] = {
        "faults": len(results),
        "writes": sum(one.writes for one in results),
        "writes_lost": len(missing),
        "requests": sum(one.requests for one in results),
        "requests_failed": sum(one.failed for one in results),
    }
    for one in results:
        name = one.name.replace("-", "_")
        if one.seconds is not None:
            figures[f"{name}_recovered_seconds"] = one.seconds
        figures[f"{name}_requests_failed"] = one.failed
    return {
        "ok": bool(results) and all(one.ok for one in results) and not missing,
        "figures": figures,
        "measured_on": {"inventory": "inventory/lab", "processors": os.cpu_count()},
        "lost": sorted(missing),
        "faults": [{**asdict(one), "ok": one.ok} for one in results],
    }


def chosen(only: list[str], faults: list[Fault]) -> list[Fault]:
    """Return the faults with these names, or all."""
    if unknown := {*only} - {one.name for one in faults}:
        raise ProblemError(f"no such fault: {', '.join(sorted(unknown))} (--list shows all)")
    return [next(one for one in faults if one.name == name) for name in only] or faults


def run(faults: list[Fault], *, break_ledger: bool) -> bool:
    """Make the faults one after the other; print and write the results; tell whether all is well."""
    results: list[Result] = []
    ledger = Ledger(LEDGER)
    with project.deployed() as deployment, Load(ledger, deployment) as load:
        trial = Trial(ledger, load)
        if break_ledger:
            faults = [*faults, sabotage(trial)]
        for fault in faults:
            print(f"{fault.name}: {fault.what}", flush=True)
            with fault.around():
                results.append(trial.make(fault))
            print(table(results[-1:]).partition("\n")[2], flush=True)
            write_json(VERDICT, verdict(results, []) | {"ok": False})  # until all are made
        everything = ledger.writes()
        at_end = lost(everything, as_developer(f"verify({everything!r}, {BUCKET!r})"))
    ledger.close()
    found = verdict(results, at_end)
    write_json(VERDICT, found)
    print(f"\n{table(results)}\n", *at_end[:5], sep="\n")
    print(f"test-faults: {'ok' if found['ok'] else 'FAILED'}, {found['figures']['writes_lost']} writes lost")
    return bool(found["ok"])


def main() -> int:
    """Read the options, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="make this fault; can be repeated")
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument("--sabotage", action="store_true", help="at last, lose writes on purpose: this must fail")
    options = parser.parse_args()
    faults = chosen(options.only, all_faults())
    if options.list:
        print(*(f"{one.name:<24}{one.what}" for one in faults), sep="\n")
        return 0
    missing = {*site.PLATFORM, "git", "offsite"} - lab_hosts.containers().keys()
    if missing:
        raise ProblemError(f"no lab is up ({', '.join(sorted(missing))} missing): `make lab` first")
    VERDICT.unlink(missing_ok=True)
    with machine_lock("lab"), age_site.quiet():
        return 0 if run(faults, break_ledger=options.sabotage) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProblemError as error:
        end(error)

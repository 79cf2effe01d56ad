"""The main process of an inference service: `metalworks-inference`.

Binds the port, starts the worker processes, and follows the desired state that the model follower writes. A new version
is inspected, compared with MLflow and started beside the one that serves, then takes its place; a version that fails is
refused, and the old one goes on serving. Models run as another user: see the launcher.

The supervisor knows no password and imports the standard library alone, so that it stays small and there is little in
it that can fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalworks.contracts import (
    ROLES,
    ROUTE,
    SERVING,
    STATE,
    CanaryVerdict,
    DesiredVersion,
    RouteFile,
    StateFile,
    StatsFile,
    stats_file,
)
from metalworks.plain_files import read
from metalworks.serving.rollout.canary import Trial
from metalworks.serving.rollout.launcher import OLD_EVIDENCE, SOCKET
from metalworks.serving.rollout.model_process import keep
from metalworks.serving.rollout.release import Release, release_id, remove_old_evidence
from metalworks.serving.settings import PREFIX, Settings, SettingsError

_logger = logging.getLogger("metalworks.serving")

LOOK_SECONDS = 0.2
RETRY_SECONDS = 900.0
"""A refused version is tried again after this long: what was missing may be there now."""
SILENT_SECONDS = 60.0
"""For this long no connection is accepted while the first version loads, so the gateway asks another host."""
FOLLOW_SECONDS = 30.0
"""For this long, worker processes try again to load a version that they could not load."""
DESIRED_STATE_BYTES = 2**20


class Supervisor:
    """The service: processes, versions, route."""

    def __init__(self, settings: Settings) -> None:
        """Start with no version and no process."""
        self.settings = settings
        self.socket = _bind(settings)
        self.workers: dict[int, asyncio.subprocess.Process] = {}
        self.releases: dict[str, Release] = {}
        self.desired: dict[str, DesiredVersion | None] = dict.fromkeys(ROLES)
        self.routed: dict[str, Release | None] = dict.fromkeys(ROLES)
        """Versions of the newest route."""
        self.serving: dict[str, Release | None] = dict.fromkeys(ROLES)
        """Versions of the newest route that every worker process has confirmed."""
        self.since: dict[str, float] = {}
        self.verdict: CanaryVerdict | None = None
        self._trial: Trial | None = None
        self.revision = 0
        self.ending = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: int | None = 0
        """Modification time of the desired state that was read last; None while the file is missing."""
        self._published = self._last_error = ""
        self._resuming = False
        """Whether the version from before the restart is loading. No other loads meanwhile, to save memory."""
        self._replaced: dict[str, float] = {}

    # -- Files

    @property
    def _last(self) -> Path:
        """File with the last champion, which is loaded first after a restart."""
        return self.settings.state / SERVING

    def _read_desired_state(self) -> None:
        try:
            changed = self.settings.desired.stat().st_mtime_ns
        except FileNotFoundError:
            if self._seen is not None:
                _logger.warning("%s is missing, so nothing changes: is model-follower running?", self.settings.desired)
                self._seen = None
            return
        if changed == self._seen:
            return
        text = read(self.settings.desired, DESIRED_STATE_BYTES)
        self._seen = changed
        try:
            entries = json.loads(text)
            self.desired = {role: DesiredVersion.parse(entries.get(role)) for role in ROLES}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _logger.error("%s is malformed, so nothing changes: %r", self.settings.desired, error)
            return
        champion, canary = self.desired["champion"], self.desired["canary"]
        if self.verdict and (canary is None or canary.version != self.verdict["version"]):
            self.verdict = None
        promotes = self.verdict is not None and self.verdict["verdict"] == "promote"
        if self.verdict and promotes and champion is not None and champion.version != self.verdict["champion"]:
            self.verdict = None  # it was compared with another champion
        for release in self.releases.values():
            # A version that is desired again later is tried again.
            if release.refused and release.desired not in self.desired.values():
                release.forget()

    def _write(self, path: Path, content: Mapping[str, object]) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.chmod(0o644)
        new.replace(path)

    def _publish_state(self) -> None:
        """Write state.json if it has changed."""
        serving = {
            role: each.summarize(self.since.get(role, 0.0)) if each else None for role, each in self.serving.items()
        }
        now: StateFile = {
            "service": self.settings.service,
            "champion": serving["champion"],
            "shadow": serving["shadow"],
            "canary": serving["canary"],
            "preparing": sorted(
                release.desired.version for release in self.releases.values() if self._is_coming(release)
            ),
            "refused": {
                release.desired.version: {"reason": release.refused, "at": release.refused_at}
                for release in self.releases.values()
                if release.refused and release.desired in self.desired.values()
            },
            "canary_verdict": self.verdict,
        }
        text = json.dumps(now)
        if text != self._published:
            self._write(self.settings.runtime / STATE, now)
            self._published = text

    def _is_coming(self, release: Release) -> bool:
        """Return whether a version is being prepared, or worker processes have yet to load it."""
        return release.preparing or (release in self.routed.values() and release not in self.serving.values())

    # -- Processes

    async def _keep_launcher(self) -> None:
        """Run a launcher and restart it whenever it ends, until the service ends."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment["RUNTIME_DIRECTORY"] = str(self.settings.models_runtime)
        environment["STATE_DIRECTORY"] = str(self.settings.models_state)
        command = [sys.executable, "-m", "metalworks.serving.rollout.launcher", "--for", str(os.geteuid())]
        while True:
            process = None
            try:
                process = await asyncio.create_subprocess_exec(*command, env=environment)
                _logger.error("The launcher ended with %s; starting it again", await process.wait())
            except OSError as error:
                _logger.error("Cannot start the launcher; trying again: %s", error)
            except asyncio.CancelledError:
                if process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        process.terminate()
                    await process.wait()
                raise
            await asyncio.sleep(1.0)

    async def _keep_worker(self, slot: int) -> None:
        """Run a worker process and restart it whenever it ends, until the service ends."""
        while not self.ending.is_set():
            began = time.monotonic()
            shared = self.socket.fileno()
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "metalworks.serving.http.worker", str(slot), str(shared)),
                    pass_fds=(shared,),
                )
            except OSError as error:  # too many processes or no memory: this may pass
                _logger.error("Cannot start worker process %s; trying again: %s", slot, error)
                await asyncio.sleep(1.0)
                continue
            self.workers[slot] = process
            if self.ending.is_set():  # it started while the others were ended
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            code = await process.wait()
            if self.ending.is_set():
                return
            _logger.error("Worker process %s ended with %s; starting it again", slot, code)
            for part in (self.settings.state / "spool").glob(f"*-{process.pid}.part"):
                part.rename(part.with_suffix(".jsonl"))
            await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - began)))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_report)

    # -- Versions

    def _release(self, desired: DesiredVersion) -> Release:
        name = release_id(desired)
        if name not in self.releases:
            self.releases[name] = Release(desired, self.settings)
        return self.releases[name]

    def _reconcile(self) -> None:
        """Take a step from the current state towards the desired one."""
        changed = False
        withdrawn = self.verdict is not None and self.verdict["verdict"] == "withdraw"
        for role in ROLES:
            # A withdrawn canary stays in the desired state until the follower has moved its alias.
            desired = None if role == "canary" and withdrawn else self.desired[role]
            if desired is None:
                # If no champion is desired, the current one stays in service.
                if role != "champion" and self.routed[role] is not None:
                    self._set(role, None)
                    changed = True
                continue
            release = self._release(desired)
            if release.refused and time.time() - release.refused_at > RETRY_SECONDS:
                release.forget()
            if release.idle and not self._resuming:
                self._spawn(release.prepare(hurry=self.routed["champion"] is None))
            if release.ready and self.routed[role] is not release:
                self._set(role, release)
                changed = True
        if changed:
            self._spawn(self._route())
        else:
            self._retire()  # only after the route no longer has it

    def _remember(self, desired: DesiredVersion) -> None:
        try:
            self._write(self._last, {"champion": dataclasses.asdict(desired)})
        except OSError as error:  # it can serve despite a full disk
            _logger.error("Cannot write %s; after a restart the version before will serve first: %s", self._last, error)

    def _set(self, role: str, release: Release | None) -> None:
        before = self.routed[role]
        if before is not None:
            self._replaced[before.id] = time.monotonic()
        self.routed[role] = release

    async def _route(self) -> None:
        """Write the route, and wait until every worker process follows it; withdraw versions that they cannot load."""
        self.revision += 1
        revision = self.revision
        canary = self.settings.canary
        entries = {role: each.describe_route() if each else None for role, each in self.routed.items()}
        route: RouteFile = {
            "champion": entries["champion"],
            "shadow": entries["shadow"],
            "canary": entries["canary"] if canary else None,  # without settings it gets no requests
            "canary_share": canary.percent / 100 if canary and self.routed["canary"] else 0.0,
            "revision": revision,
        }
        self._write(self.settings.runtime / ROUTE, route)
        began, reported = time.monotonic(), False
        while revision == self.revision:
            counts, seconds = self._counts(), time.monotonic() - began
            if all(each.get("routed", 0) >= revision for each in counts):
                self._confirm()
                return
            if broken := self._broken(counts, seconds):
                await self._withdraw(broken)
                return
            if seconds > FOLLOW_SECONDS and not reported:
                _logger.error("Not every worker process follows route %s yet", revision)
                reported = True
            await asyncio.sleep(LOOK_SECONDS / 4)

    def _confirm(self) -> None:
        """Note that every worker process follows the newest route."""
        for role, release in self.routed.items():
            if release is self.serving[role]:
                continue
            self.serving[role], self.since[role] = release, time.time()
            if role == "champion" and release is not None:
                self._remember(release.desired)
            name = f"version {release.desired.version} ({release.executor})" if release else "nobody"
            _logger.info("%s: %s", role.capitalize(), name)

    def _broken(self, counts: list[StatsFile], seconds: float) -> dict[str, str]:
        """Return id → reason of versions that worker processes do not load, after `seconds` of trying."""
        new = {each.id for role, each in self.routed.items() if each and each is not self.serving[role]}
        if seconds > FOLLOW_SECONDS:
            for each in counts:
                if found := {id_: reason for id_, reason in each.get("unloadable", {}).items() if id_ in new}:
                    return {id_: f"a worker process cannot load it: {reason}" for id_, reason in found.items()}
        if seconds > self.settings.load_timeout:  # they end while they load it, for example
            reason = f"not every worker process loaded it within {self.settings.load_timeout:g} s; see the journal"
            return dict.fromkeys(new, reason)
        return {}

    async def _withdraw(self, broken: Mapping[str, str]) -> None:
        """Refuse versions that worker processes do not load, and go back to the versions before them."""
        releases = {each for each in self.routed.values() if each and each.id in broken}
        for release in releases:
            release.refuse(broken[release.id])
        for role, routed in [*self.routed.items()]:
            if routed in releases:
                self._set(role, self.serving[role] if self.serving[role] not in releases else None)
        await self._route()
        for release in releases:
            await release.stop()

    def _counts(self) -> list[StatsFile]:
        """Return the counts of the worker processes; empty for one that has not started."""
        counts: list[StatsFile] = []
        for slot in range(self.settings.workers):
            try:
                counts.append(json.loads((self.settings.runtime / stats_file(slot)).read_text()))
            except (FileNotFoundError, json.JSONDecodeError):
                counts.append({})
        return counts

    def _retire(self) -> None:
        """End versions that are no longer needed, once keep_previous is over and no request waits for them."""
        if any(each.get("routed", 0) < self.revision for each in self._counts()):
            return  # a worker process may still send requests to it
        needed = {release_id(each) for each in self.desired.values() if each}
        needed |= {each.id for each in (*self.routed.values(), *self.serving.values()) if each}
        for release in [*self.releases.values()]:
            if release.id in needed or release.preparing:
                continue
            since = self._replaced.get(release.id, 0.0)
            if release.ready and since and time.monotonic() - since < self.settings.keep_previous:
                continue
            if any(each.get("in_flight", {}).get(release.id) for each in self._counts()):
                continue
            del self.releases[release.id]
            self._spawn(release.end())
            tidy = functools.partial(remove_old_evidence, self.settings, self.releases.values())
            self._spawn(keep(self.settings.models_runtime / SOCKET, tidy))

    # -- The service

    def _compare_canary(self) -> None:
        release, canary = self.serving["canary"], self.settings.canary
        if release is None or canary is None or self.verdict is not None or self.serving["champion"] is None:
            self._trial = None
            return
        if release.desired != self.desired["canary"]:
            return  # the next canary is loading
        versions = (self.serving["champion"].desired.version, release.desired.version)
        if self._trial is None or self._trial.versions != versions:
            self._trial = Trial(self.settings.runtime, *versions)
        verdict = self._trial.verdict(canary)
        if verdict is not None:
            self.verdict = {**verdict, "champion": versions[0], "version": versions[1], "at": time.time()}
            _logger.warning("Canary %s: %s, %s", release.desired.version, verdict["verdict"], verdict["reason"])

    async def _first(self) -> None:
        """Put the version back in service that served before the restart, if its files are still there."""
        try:
            desired = DesiredVersion.parse(json.loads(self._last.read_text())["champion"])
            if desired is None or desired == self.desired["champion"] or not Path(desired.path).is_dir():
                return
            release = self._release(desired)
            await release.prepare(hurry=True)
        except FileNotFoundError:
            return
        finally:
            self._resuming = False
        if release.ready and self.routed["champion"] is None:
            self._set("champion", release)
            await self._route()

    async def run(self) -> None:
        """Serve until told to end."""
        for directory in (self.settings.runtime, self.settings.state):
            directory.mkdir(parents=True, exist_ok=True)
        for stale in self.settings.runtime.glob("*.json"):
            stale.unlink()
        shutil.rmtree(self.settings.state / OLD_EVIDENCE, ignore_errors=True)
        spool = self.settings.state / "spool"
        for part in spool.glob("*.part"):  # left by processes that were killed
            part.rename(part.with_suffix(".jsonl"))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ending.set)
        launcher = loop.create_task(self._keep_launcher()) if self.settings.launcher_runtime is None else None
        workers = [loop.create_task(self._keep_worker(slot)) for slot in range(self.settings.workers)]
        self._read_desired_state()
        self._resuming = True
        self._spawn(self._first())
        await asyncio.sleep(0)
        compared_at, began = 0.0, time.monotonic()
        while not self.ending.is_set():
            try:
                self._read_desired_state()
                self._reconcile()
                await asyncio.sleep(0)  # let the tasks begin
                self._open(began)
                if time.monotonic() - compared_at > 1:
                    compared_at = time.monotonic()
                    self._compare_canary()
                self._publish_state()
                self._last_error = ""
            except OSError as error:  # a full disk, or too many open files: go on serving
                if str(error) != self._last_error:
                    _logger.error("Versions cannot change until this is fixed: %s", error)
                self._last_error = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ending.wait(), LOOK_SECONDS)
        await self._end(workers)
        if launcher is not None:
            launcher.cancel()
            await asyncio.gather(launcher, return_exceptions=True)

    def _open(self, since: float) -> None:
        """Accept connections without a version if none is loading, or loading takes too long."""
        coming = any(release.preparing for release in self.releases.values())
        if self.revision == 0 and (not coming or time.monotonic() - since > SILENT_SECONDS):
            self._spawn(self._route())

    async def _end(self, workers: list[asyncio.Task[None]]) -> None:
        """Let the worker processes answer open requests, then end the models' processes."""
        self.socket.close()
        for process in self.workers.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await asyncio.gather(*workers)
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*(release.end() for release in self.releases.values()))


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.error("Internal error", exc_info=error)


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:  # `::` stands for the host's IPv4 addresses as well
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        raise SettingsError(f"cannot bind port {settings.port} on {settings.host}: {error.strerror}") from error
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def main() -> int:
    """Run the service that the environment describes; return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        settings = Settings.read(os.environ)
        supervisor = Supervisor(settings)
    except SettingsError as error:
        print(f"metalworks-inference: {error}", file=sys.stderr)
        return 2
    asyncio.run(supervisor.run())
    return 0


if __name__ == "__main__":
    sys.exit(main())

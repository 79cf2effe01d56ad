"""Follow the aliases of a host's services: install the versions they point to, and tell the servers."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as installed
from pathlib import Path

from metalworks.contracts import CARD, DESIRED_STATE, ROLES, DesiredVersion, FollowerStatus, RoleState, RoleStatus
from metalworks.errors import FetchError, RegistryError, Stopped
from metalworks.model_sync import report
from metalworks.model_sync.card import ModelCard
from metalworks.model_sync.config import Config, Service
from metalworks.model_sync.environments import Environments
from metalworks.model_sync.files import read_json, write_json
from metalworks.model_sync.lock import FILE_NAME as LOCK
from metalworks.model_sync.lock import Resolver
from metalworks.model_sync.log_shipping import LogShipping
from metalworks.model_sync.programs import Programs
from metalworks.model_sync.registry import RegisteredModel, Registry
from metalworks.model_sync.versions import VersionStore
from metalworks.requirement_files import site_indexes

FIRST_RETRY, LAST_RETRY = 60.0, 900.0
END_SECONDS = 3.0
OLD_DESIRED_STATE = "wanted.json"
logger = logging.getLogger("metalworks.model_sync")


@dataclass(slots=True)
class Refusal:
    """A version that could not be installed, and when to try again."""

    card: ModelCard
    reason: str
    at: float
    failures: int = 1
    retry_at: float = 0.0

    def __post_init__(self) -> None:
        """Set the time of the next attempt: each failure doubles the wait."""
        self.retry_at = self.at + min(FIRST_RETRY * 2 ** (self.failures - 1), LAST_RETRY)


@dataclass(slots=True)
class Named:
    """The versions that the aliases point to, cached until an alias moves."""

    fingerprint: tuple[object, ...] = ()
    cards: dict[str, ModelCard] = field(default_factory=dict)
    settled: str = ""
    """Outcome of a canary that was decided before, so is not tried again; empty if there is none."""


class Follower:
    """Keeps a service's desired state (desired.json) in step with the registry; each round compares everything."""

    def __init__(self, config: Config, service: Service, registry: Registry, programs: Programs, mlflow: str) -> None:
        """Read what is on this host from before."""
        self.config = config
        self.service = service
        self.registry = registry
        self.programs = programs
        self.root = config.folder(service)
        (self.root / "versions").mkdir(parents=True, exist_ok=True)
        self.versions = VersionStore(self.root / "versions", programs)
        built = config.build_packages
        self.environments = Environments(
            self.root / "environments", programs, config.uv, config.python, build_packages=built
        )
        self.resolver = Resolver(programs, config.uv, config.python, mlflow, build_packages=built, site=site_indexes())
        self.report = report.VersionTags(service, config.host, self.root)
        self.desired: dict[str, DesiredVersion | None] = {}
        self._adopt_old_file()
        self._read_desired_state()
        self.named = Named()
        self.refused: dict[str, Refusal] = {}
        self._installer = ThreadPoolExecutor(len(ROLES), thread_name_prefix=service.name)
        self._coming: dict[str, tuple[ModelCard, Future[DesiredVersion]]] = {}
        """Installations in progress, by role."""
        self._untidy = False
        self.away = ""
        self.polled = 0.0
        self.settle_after = 0.0

    def _adopt_old_file(self) -> None:
        """Rename the file of a release before 0.1.0: its champion stays desired if its successor is unusable."""
        with contextlib.suppress(FileNotFoundError):
            (self.root / OLD_DESIRED_STATE).replace(self.root / DESIRED_STATE)

    def _read_desired_state(self) -> None:
        stored = read_json(self.root / DESIRED_STATE)
        try:
            self.desired = {role: DesiredVersion.parse(stored.get(role)) for role in ROLES}
        except (KeyError, TypeError):  # from another release, or damaged: will be rewritten
            self.desired = dict.fromkeys(ROLES)

    def round(self) -> None:
        """Compare the aliases with what is here, and act; if the registry does not respond, change nothing."""
        try:
            model = self.registry.model(self.service.model)
            self.polled = time.time()
            cards = self._cards(model)
        except RegistryError as error:
            self._registry_is_down(str(error))
            return
        if self.away:
            self.away = ""
            logger.warning("%s: MLflow responds again", self.service.name)
        if self._apply_verdict(cards):
            return  # the aliases have moved; the next round follows them
        self._read_desired_state()
        entries: dict[str, DesiredVersion | None] = {}
        self.refused = {role: refusal for role, refusal in self.refused.items() if refusal.card == cards.get(role)}
        for role in ROLES:
            wanted = cards.get(role)
            entries[role] = self._entry(role, wanted) if wanted else None
        for role, (card, future) in [*self._coming.items()]:
            if future.done() and (entries[role] or cards.get(role) != card):  # it is installed, or no longer wanted
                del self._coming[role]
        # Keep the current champion while its successor is being installed, and if that or its alias is unusable. Drop a
        # shadow or canary that is no longer wanted, or that would be compared with itself.
        entries["champion"] = champion = entries["champion"] or self.desired["champion"]
        entries |= {role: None for role in ROLES[1:] if entries[role] == champion}
        if entries != self.desired or not (self.root / DESIRED_STATE).exists():
            self._write_desired_state(entries)
        if self._untidy and not self._coming:
            self._tidy()
        state = read_json(self.config.state_file(self.service))
        self.report.tell(self.registry, report.wanted_tags(state, self._reasons()))
        self._write_status(cards)

    def _cards(self, model: RegisteredModel | None) -> dict[str, ModelCard]:
        """Return role → wanted version; the registry is asked for versions only after an alias has moved.

        A canary that was decided before is looked up each time, because somebody may have cleared its tag.
        """
        if model is None:
            self.named = Named()
            return {}
        numbers = {role: model.aliases.get(alias) for role, alias in self.service.aliases().items()}
        champion = numbers.get("champion")
        # A version in two roles would be compared with itself.
        wanted = {role: n for role, n in numbers.items() if n and (role == "champion" or n != champion)}
        fingerprint = (model.created, *sorted(wanted.items()))
        before = self.named if fingerprint == self.named.fingerprint else Named()
        if before.fingerprint and not before.settled:
            return before.cards
        cards, settled = {**before.cards}, ""
        for role, number in wanted.items():
            if role in cards:
                continue
            found = self.registry.version(self.service.model, number, self.service.aliases()[role])
            if found is None:
                continue
            card, tags = found
            if role == "canary" and (became := tags.get(report.canary_key(self.service), "")).startswith(
                report.SETTLED
            ):
                settled = became
                if settled != before.settled:
                    logger.warning(
                        "%s: version %s does not become a canary again: it was %s. To retry it, clear its tag %s",
                        self.service.name, number, became, report.canary_key(self.service),
                    )  # fmt: skip
                continue
            cards[role] = card
        if cards.get("shadow") and cards["shadow"].version == numbers.get("canary") and "canary" in cards:
            del cards["shadow"]  # as the canary, it already answers requests
        self.named = Named(fingerprint, cards, settled)
        return cards

    def _entry(self, role: str, card: ModelCard) -> DesiredVersion | None:
        """Return the installed version, or start to install it; None until it is installed, or if that failed."""
        for known in self.desired.values():  # for example, a canary that becomes champion
            if known and self._is_complete(known, card):
                return known
        refusal = self.refused.get(role)
        if refusal and time.time() < refusal.retry_at and not self._is_retry_wanted(refusal):
            return None
        try:
            entry = self._find(card) or self._bring(role, card)
        except (Stopped, RegistryError):
            raise
        except Exception as error:  # a model's files may be anything
            self._coming.pop(role, None)
            failures = refusal.failures + 1 if refusal else 1
            reason = str(error) if isinstance(error, FetchError | OSError) else f"{type(error).__name__}: {error}"
            self.refused[role] = Refusal(card, reason, time.time(), failures)
            logger.error(
                "%s: version %s of model %s is refused: %s", self.service.name, card.version, card.name, reason
            )
            return None
        if entry is not None:
            self.refused.pop(role, None)
            logger.info("%s: version %s of model %s is here", self.service.name, card.version, card.name)
        return entry

    def _find(self, card: ModelCard) -> DesiredVersion | None:
        """Return a version that is complete on this host, so that a rollback does not wait for other installations."""
        folder = self.versions.find(card)
        lock = self.resolver.find_lock(folder) if folder else None
        python = self.environments.find(lock) if lock else None
        return _entry_of(card, folder, lock, python) if folder and lock and python else None

    def _bring(self, role: str, card: ModelCard) -> DesiredVersion | None:
        """Return a version once it is installed; None until then.

        An installation may take minutes and waits for those of other services; meanwhile, the rounds go on.
        """
        if role not in self._coming:
            self._coming[role] = (card, self._installer.submit(self._install, card))
        coming, future = self._coming[role]
        if coming != card or not future.done():
            return None
        del self._coming[role]
        return future.result()

    def _install(self, card: ModelCard) -> DesiredVersion:
        with self.programs.turn:
            folder = self.versions.place(card)
            try:
                lock = self.resolver.ensure_lock(folder)
                python = self.environments.ensure(lock, self.resolver.variables(folder))
            except FetchError as error:
                raise FetchError(" ".join(filter(None, [str(error), self.resolver.other_python(folder)]))) from error
            return _entry_of(card, folder, lock, python)

    def _is_complete(self, entry: DesiredVersion, card: ModelCard) -> bool:
        """Tell whether an entry is for this version, and its files are still here."""
        try:
            stored = ModelCard.read(Path(entry.path))
        except (OSError, ValueError, TypeError):
            return False
        return stored.has_files_of(card) and Path(entry.python).exists()

    def _is_retry_wanted(self, refusal: Refusal) -> bool:
        """Tell whether somebody asked for another attempt since the last one failed, by touching a file."""
        try:
            return self.config.retry_file.stat().st_mtime > refusal.at
        except OSError:
            return False

    def _write_desired_state(self, entries: dict[str, DesiredVersion | None]) -> None:
        """Write the desired state for the server; unused versions are removed later."""
        write_json(self.root / DESIRED_STATE, {role: entry and asdict(entry) for role, entry in entries.items()})
        for role in ROLES:
            old, new = self.desired[role], entries[role]
            if old != new:
                names = [entry.version if entry else "none" for entry in (old, new)]
                logger.info("%s: %s is version %s, was %s", self.service.name, role, names[1], names[0])
        self.desired, self._untidy = entries, True

    def _tidy(self) -> None:
        """Remove unused versions, but never during an installation: its files look unused until it is complete."""
        if not self.programs.turn.acquire(blocking=False):
            return
        try:
            self._remove()
            self._untidy = False
        finally:
            self.programs.turn.release()

    def _remove(self) -> None:
        state = read_json(self.config.state_file(self.service))
        served = {str(state[role]["version"]) for role in ROLES if state.get(role)}
        folders = [Path(entry.path) for entry in self.desired.values() if entry]
        for folder in folders:
            if (folder / CARD).exists():
                (folder / CARD).touch()  # its modification time is when the version was last wanted
        stay = self.versions.tidy(folders, served, self.config.keep)
        self.environments.tidy([folder / LOCK for folder in stay], self.config.keep)

    def _apply_verdict(self, cards: dict[str, ModelCard]) -> bool:
        """Promote or withdraw a canary as the server decided; tell whether an alias was moved.

        If several hosts serve the model, the first to decide moves the alias for all of them.
        """
        verdict = read_json(self.config.state_file(self.service)).get("canary_verdict") or {}
        canary, champion = cards.get("canary"), cards.get("champion")
        became = {"promote": "promoted", "withdraw": "withdrawn"}.get(str(verdict.get("verdict")))
        if became is None or canary is None or champion is None or str(verdict.get("version")) != canary.version:
            return False
        if became == "promoted" and str(verdict.get("champion")) != champion.version:
            return False  # it was compared with a champion that has been replaced since
        if time.monotonic() < self.settle_after:
            return False
        service, reason, now = self.service, report.short(str(verdict.get("reason", ""))), report.when(time.time())
        note = f"{became} by {self.config.host} at {now}: {reason}"
        # Withdraw a canary by pointing its alias to the champion: to remove an alias, MLflow requires the permission
        # to delete the model.
        alias, to = (service.alias, canary.version) if became == "promoted" else (canary.alias, champion.version)
        try:
            # Tag first: if this process is killed between the two, the version must not be tried again.
            self.registry.tag(service.model, canary.version, report.canary_key(service), note)
            if became == "withdrawn":  # the alias stays on this version even when it is no longer the champion
                self._park(champion, f"served when version {canary.version} was withdrawn")
            self.registry.point(service.model, alias, to)
        except RegistryError as error:
            self.settle_after = time.monotonic() + report.RETRY_SECONDS
            logger.error("%s: canary version %s could not be %s: %s", service.name, canary.version, became, error)
            return False
        level = logging.INFO if became == "promoted" else logging.ERROR
        logger.log(level, "%s: canary version %s was %s: %s", service.name, canary.version, became, reason)
        self.named = Named()
        return True

    def _park(self, champion: ModelCard, note: str) -> None:
        """Tag a champion to say that the canary's alias points to it only because a canary was withdrawn."""
        found = self.registry.version(self.service.model, champion.version, self.service.alias)
        key = report.canary_key(self.service)
        if found and not found[1].get(key, "").startswith(report.SETTLED):  # its own outcome is tagged already
            self.registry.tag(self.service.model, champion.version, key, note)

    def _reasons(self) -> dict[str, str]:
        return {refusal.card.version: refusal.reason for refusal in self.refused.values()}

    def _registry_is_down(self, reason: str) -> None:
        """Log once that the registry does not respond; services keep their versions."""
        if not self.away:
            logger.warning("%s: %s. The service keeps its versions", self.service.name, reason)
        self.away = reason
        self._write_status(self.named.cards)

    def _write_status(self, cards: dict[str, ModelCard]) -> None:
        """Report the progress, for `metalworks-model wait`."""
        roles: dict[str, RoleStatus] = {}
        for role, alias in self.service.aliases().items():
            refusal, entry, card = self.refused.get(role), self.desired[role], cards.get(role)
            state: RoleState = "missing"
            if card is not None:
                complete = entry is not None and self._is_complete(entry, card)
                coming = self._coming.get(role, (None,))[0] == card
                state = "installed" if complete else "installing" if coming else "waiting"
            roles[role] = {"alias": alias, "version": card.version if card else None, "state": state}
            if card and refusal and refusal.card == card and state != "installing":
                roles[role] |= {"state": "refused", "reason": refusal.reason, "at": refusal.at}
                roles[role]["retry_at"] = refusal.retry_at
        status: FollowerStatus = {"polled": self.polled, "mlflow": self.away or "answers", "roles": roles}
        write_json(self.config.status_file(self.service), status, mode=0o644)


def _entry_of(card: ModelCard, folder: Path, lock: Path, python: Path) -> DesiredVersion:
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    return DesiredVersion(card.version, str(folder), str(python), digest)


def _follow(follower: Follower, stop: threading.Event, seconds: float) -> None:
    """Run rounds until the stop; no exception may end the loop."""
    while not stop.is_set():
        try:
            follower.round()
        except Stopped:
            return
        except Exception:
            logger.exception("%s: internal error", follower.service.name)
        stop.wait(seconds)


def follow(config: Config) -> int:
    """Follow all services until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    os.umask(0o027)  # readable by the servers' group only
    config.home.mkdir(parents=True, exist_ok=True)
    config.runtime.mkdir(parents=True, exist_ok=True)
    mlflow, programs = installed("mlflow-skinny"), Programs(stop)
    with (config.home / ".lock").open("w") as alone:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.error("another follower already uses %s: stop it first", config.home)
            return 1
        followers = [
            Follower(config, service, Registry.from_environment(), programs, mlflow) for service in config.services
        ]
        threads = [
            threading.Thread(target=_follow, args=(each, stop, config.poll_seconds), name=each.service.name)
            for each in followers
        ]
        if config.bucket:
            threads.append(threading.Thread(target=LogShipping(config, stop).run, name="prediction log"))
        for thread in threads:
            thread.daemon = True
            thread.start()
        stop.wait()
        # Programs are killed at once. Do not wait for threads that wait for a silent server: files are replaced
        # atomically.
        until = time.monotonic() + END_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    return 0

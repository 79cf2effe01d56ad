"""`metalworks deploy`: check everything, then upload the code and let Prefect create the deployments."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from metalworks.deploy import calls, check, data, definition, server, source, store, summer_time
from metalworks.deploy.definition import Definition, Deployment
from metalworks.deploy.server import Known, PrefectServer
from metalworks.deploy.source import Source
from metalworks.deploy.store import Store, Upload
from metalworks.errors import CommandError, FlowRunError
from metalworks.flow_run.code import unpack
from metalworks.flow_run.environment import environment_of, import_path
from metalworks.flow_run.group import LIMIT, memory_limit
from metalworks.flow_run.lock import lock_of
from metalworks.runs.environment import cache_folder

CREATED, UPDATED, UNCHANGED, DELETED = "created", "updated", "unchanged", "deleted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `metalworks deploy`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="deployments in prefect.yaml (default: all)")
    parser.add_argument("--dirty", action="store_true", help="deploy the working tree as it is, committed or not")
    parser.add_argument("--dry-run", action="store_true", help="check and show what would change, but change nothing")
    parser.add_argument("--moved", action="store_true", help="take over deployments from the repository's former URL")
    parser.add_argument("--prune", action="store_true", help="delete deployments that are no longer in prefect.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Deploy the project in the current folder; return 0 if its deployments match its file."""
    project = Path.cwd()
    if not (project / definition.FILE).is_file():
        raise CommandError(
            f"{project} has no {definition.FILE}. Go to the project's folder, or run `prefect init` to create it."
        )
    if arguments.prune and arguments.names:
        raise CommandError("--prune applies to all deployments of the project: do not name any.")
    scratch = cache_folder() / "deploy"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return Deploy(project, Path(folder), arguments).run()


@dataclass
class Change:
    """The change to one deployment."""

    deployment: Deployment
    what: str
    details: list[str]


class Deploy:
    """One deployment of one project."""

    def __init__(self, project: Path, folder: Path, arguments: argparse.Namespace) -> None:
        """Take the project's folder, an empty working folder, and the command's arguments."""
        self.project, self.folder = project, folder
        self.code = folder / "code"
        self.names: list[str] = arguments.names
        self.dirty: bool = arguments.dirty
        self.dry: bool = arguments.dry_run
        self.prune: bool = arguments.prune
        self.moved: bool = arguments.moved
        self.problems: list[str] = []
        self.hints: list[str] = []

    def run(self) -> int:
        """Check; if nothing is wrong, upload and deploy."""
        code = self._code()
        asked = self._definition()
        environment = self._environment()
        wanted = self._flows(environment, asked)
        known = self._server(asked, wanted, code)
        uploads = self._uploads(asked, code)
        for hint in self.hints:
            _tell(f"  note: {hint}")
        if self.problems or environment is None or known is None or uploads is None:
            raise CommandError("\n  - ".join(["nothing was deployed. Fix these problems first:", *self.problems]))
        variables = definition.contract(code, uploads[0].url, uploads[0].digest)
        changes = [self._change(item, code.version, variables, known) for item in wanted]
        left = self._left(asked, known, uploads[0], code)
        if not self.dry:
            self._apply(environment, asked, code, variables, changes, uploads)
            if self.prune:
                server.delete(left)
        self._show(changes, left, code, uploads)
        return 0

    def _code(self) -> Source:
        """Return the code, unpacked as a worker unpacks it."""
        code = source.read(self.project, as_it_is=self.dirty)
        self.problems += [f"code: {text}" for text in code.problems]
        state = "the working tree on commit" if code.dirty else "commit"
        _tell(f"Code: {state} {code.commit[:10]} of {code.branch or 'no branch'}, {len(code.content) / 1000:.0f} kB.")
        packed = self.folder / "code.tar.gz"
        packed.write_bytes(code.content)
        self.code.mkdir()
        try:
            unpack(packed, self.code)
        except FlowRunError as error:
            self.problems.append(f"environment: {error}")
        return code

    def _definition(self) -> Definition:
        """Return what the project's file asks for."""
        asked = definition.read(self.code, self.project)
        self.problems += asked.problems
        self.hints += asked.hints
        if unknown := sorted({name.rpartition("/")[2] for name in self.names} - {d.name for d in asked.deployments}):
            known = ", ".join(item.name for item in asked.deployments)
            self.problems.append(f"{definition.FILE} has no deployment {', '.join(unknown)}, only {known}")
        for item in asked.deployments:
            incomplete = _incomplete(item)
            self.problems += [f"{definition.FILE}: {text}" for text in incomplete]
            if not incomplete:
                self.hints += summer_time.hints(item.name, item.schedules, datetime.now(UTC))
        return asked

    def _environment(self) -> Path | None:
        """Return the project's environment, built as on workers, or None if it cannot be built."""
        # The user's own uv cache, which has most packages from the developer's environment.
        os.environ.setdefault("UV_CACHE_DIR", str(cache_folder().parent / "uv"))
        try:
            name = lock_of(self.code).name
            self.hints += data.hints(self.code, self.project)
            _tell(f"Environment: built from {name} only, as on workers.")
            return environment_of(self.code, cache_folder(), lambda text: _tell(f"  {text}"))
        except FlowRunError as error:
            if (text := f"environment: {error}") not in self.problems:
                self.problems.append(text)
            return None

    def _flows(self, environment: Path | None, asked: Definition) -> list[Deployment]:
        """Load the flows and return the requested deployments."""
        items = asked.deployments
        if environment is not None:
            _tell(f"Flows: loading {len({item.entrypoint for item in items})} and checking all imports.")
            report = check.check(environment, self.code, self.project, items)
            self.problems += report.problems
            self.hints += report.hints
            for item in items:
                found = report.flows.get(item.entrypoint, {})
                item.flow = found.get("name", "")
                if item.flow:
                    self.problems += [f"{definition.FILE}: {item.name}: {text}" for text in _parameters(item, found)]
        slugs = [item.slug for item in items]
        for slug in sorted({slug for slug in slugs if slugs.count(slug) > 1}):
            self.problems.append(f"{definition.FILE}: two deployments are named {slug}")
        return [item for item in items if not self.names or item.name in self.names or item.slug in self.names]

    def _server(self, asked: Definition, wanted: list[Deployment], code: Source) -> PrefectServer | None:
        """Return what the server knows, or None if it does not respond."""
        _tell("Prefect: checking versions, work pools and workers.")
        try:
            known = server.look({item.pool for item in wanted})
        except CommandError as error:
            self.problems.append(str(error))
            return None
        if (self.code / "uv.lock").is_file() or (self.code / "requirements.txt").is_file():
            self.problems += [f"prefect: {text}" for text in check.versions(self.code, known.version)]
        for pool in sorted({item.pool for item in wanted if item.pool}):
            users = ", ".join(item.name for item in wanted if item.pool == pool)
            if pool not in known.pools:
                there = ", ".join(sorted(known.pools)) or "none"
                self.problems.append(f"prefect: no work pool {pool} (used by {users}), only {there}")
            elif pool not in known.online:
                self.problems.append(
                    f"prefect: no worker of the pool {pool} (used by {users}) is online → "
                    f"`systemctl status prefect-worker-{pool}` on its hosts"
                )
        for item in wanted:
            queues = known.pools.get(item.pool, set())
            if item.queue and item.pool in known.online and item.queue not in queues:
                there = ", ".join(sorted(queues))
                self.problems.append(
                    f"prefect: {item.name}: the pool {item.pool} has no queue {item.queue}, only {there}"
                )
            owner = known.deployments.get(item.slug)
            if owner is not None and owner.code and _project(owner.code) != asked.project:
                self.problems.append(
                    f"prefect: {item.slug} belongs to the project {_project(owner.code)} → choose another name"
                )
            elif owner is not None and owner.code and not self._ours(owner, code):
                self.problems.append(
                    f"prefect: {item.slug} was deployed from {_origin(*owner.origin)}, this is "
                    f"{_origin(code.remote, code.folder)}: give one of the two projects another `name` in "
                    f"{definition.FILE}; if it is the same project in a new place, `metalworks deploy --moved`"
                )
        pools = {slug: there.pool for slug, there in known.deployments.items()}
        pools |= {item.slug: item.pool for item in asked.deployments}
        self.hints += calls.own_pool(self.code, wanted, pools)
        return known

    def _ours(self, owner: Known, code: Source) -> bool:
        """Tell whether a deployment was made from this repository and folder."""
        remote, folder = owner.origin
        return self.moved or (source.same_repository(remote, code.remote) and folder == code.folder)

    def _uploads(self, asked: Definition, code: Source) -> list[Upload] | None:
        """Return what to upload to the object store, or None if that is not possible."""
        try:
            place = Store()
            lock = lock_of(self.code)
            keys = store.keys(asked.project, code.version, lock)
            return [place.plan(keys[0], code.content), place.plan(keys[1], lock.read_bytes())]
        except CommandError as error:
            self.problems.append(f"store: {error}")
        except FlowRunError:
            pass  # already reported for the environment
        return None

    def _change(self, item: Deployment, version: str, variables: dict[str, str], known: PrefectServer) -> Change:
        """Return the change to a deployment."""
        there = known.deployments.get(item.slug)
        if there is None:
            return Change(item, CREATED, [])
        details = server.difference(item, version, there)
        if there.mark == definition.mark(item, version, variables) and not details:
            return Change(item, UNCHANGED, [])
        return Change(item, UPDATED, details or ["its definition"])

    def _left(self, asked: Definition, known: PrefectServer, upload: Upload, code: Source) -> list[Known]:
        """Return deployments of this project that are no longer in its file, none of a namesake's."""
        named = {item.slug for item in asked.deployments}
        above = f"s3://{upload.bucket}/{asked.project}/"
        return [
            item
            for slug, item in sorted(known.deployments.items())
            if item.code.startswith(above) and slug not in named and self._ours(item, code)
        ]

    def _apply(
        self,
        environment: Path,
        asked: Definition,
        code: Source,
        variables: dict[str, str],
        changes: list[Change],
        uploads: list[Upload],
    ) -> None:
        """Upload, and let the project's own Prefect create or update the deployments that differ."""
        stale = [change.deployment for change in changes if change.what != UNCHANGED]
        if not stale:
            return
        place = Store()
        for upload in uploads:
            if not upload.there:
                _tell(f"Uploading {upload.url}.")
            place.put(upload)
        _tell(f"Deploying {', '.join(item.slug for item in stale)}.")
        file = self.folder / definition.FILE
        file.write_text(definition.generated(asked.project, stale, code.version, variables))
        line = ["-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
        # Templates may refer to any of the user's variables.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [f"{environment}/bin/python", *line],
            cwd=self.code,
            env=inherited | check.variables(environment, import_path(self.code)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CommandError(
                "`prefect deploy` failed; some deployments may have changed:\n"
                f"{(done.stdout + done.stderr).strip()[-3000:]}"
            )
        known = server.look([])
        wrong = [
            item.slug
            for item in stale
            if item.slug not in known.deployments
            or known.deployments[item.slug].mark != definition.mark(item, code.version, variables)
        ]
        if wrong:
            raise CommandError(
                f"Prefect did not deploy {', '.join(wrong)}:\n{(done.stdout + done.stderr).strip()[-3000:]}"
            )

    def _show(self, changes: list[Change], left: list[Known], code: Source, uploads: list[Upload]) -> None:
        """Print the change to each deployment."""
        from rich.console import Console
        from rich.table import Table

        if self.dry:
            for upload in uploads:
                _tell(f"Would upload {upload.url}." if not upload.there else f"Already uploaded: {upload.url}.")
            for change in changes:
                for text in change.details:
                    _tell(f"  {change.deployment.slug}: {text}")
        runs = {} if self.dry else server.next_runs([change.deployment.slug for change in changes])
        table = Table(box=None, pad_edge=False)
        for title in ("deployment", "change", "version", "pool", *([] if self.dry else ["next run"])):
            table.add_column(title, no_wrap=True)
        version = code.version.replace(code.commit, code.commit[:10])
        for change in changes:
            item = change.deployment
            row = [item.slug, f"would be {change.what}" if self.dry and change.what != UNCHANGED else change.what]
            row += [version, item.pool, *([] if self.dry else [_time(runs[item.slug])])]
            table.add_row(*row)
        for old in left:
            verb = DELETED if self.prune and not self.dry else "not in prefect.yaml"
            table.add_row(old.slug, verb, old.version[:10], old.pool)
        console = Console(width=None if os.isatty(1) else 160)
        console.print(table)
        if left and not self.prune:
            _tell("Deployments that are not in prefect.yaml stay active: `metalworks deploy --prune` deletes them.")
        if self.dry:
            _tell("Nothing was changed (--dry-run).")


def _tell(text: str) -> None:
    print(text, flush=True)


def _time(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M %Z}" if moment else "when started"


def _origin(remote: str, folder: str) -> str:
    """Return a repository and a folder in it as text."""
    return f"{remote or 'a repository without a remote'}{f' (folder {folder})' if folder else ''}"


def _project(url: str) -> str:
    """Return the project that an archive belongs to."""
    return url.rpartition("/")[0].rpartition("/")[2]


def _incomplete(item: Deployment) -> list[str]:
    """Return what a deployment in the file lacks."""
    from pydantic import ValidationError

    if not item.name:
        return [f"a deployment has no name (entrypoint: {item.entrypoint or 'none'})"]
    lacking = []
    if not item.entrypoint:
        lacking.append(f"{item.name}: no entrypoint (path/to/file.py:flow)")
    if not item.pool:
        lacking.append(f"{item.name}: no work pool (work_pool: {{name: …}})")
    pool = item.resolved.get("work_pool") or {}
    if not isinstance((pool.get("job_variables") or {}).get("env") or {}, dict):
        lacking.append(f"{item.name}: work_pool.job_variables.env must be a mapping of names to values")
    try:
        memory_limit({LIMIT: str((pool.get("job_variables") or {}).get("memory_limit") or "")})
    except FlowRunError as error:
        lacking.append(f"{item.name}: {error}")
    for schedule in item.schedules:
        try:
            _validate(schedule)
        except (ValidationError, ValueError, KeyError) as error:
            message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            lacking.append(f"{item.name}: invalid schedule {schedule}: {message}")
    return lacking


def _validate(schedule: dict[str, Any]) -> None:
    """Raise an error if Prefect does not accept a schedule of the file."""
    from prefect.client.schemas.schedules import construct_schedule
    from pydantic import TypeAdapter

    given = {name: schedule[name] for name in ("cron", "rrule", "timezone", "anchor_date") if schedule.get(name)}
    if schedule.get("interval") is not None:
        given["interval"] = TypeAdapter(timedelta).validate_python(schedule["interval"])
    if given.keys() & {"cron", "rrule", "interval"}:
        construct_schedule(**given)


def _parameters(item: Deployment, found: dict[str, object]) -> list[str]:
    """Return which of a deployment's parameters do not fit its flow."""
    known, required = found["parameters"], found["required"]
    assert isinstance(known, list) and isinstance(required, list)  # noqa: S101
    lacking = []
    if not found["any"] and (unknown := sorted(set(item.parameters) - set(known))):
        lacking.append(f"the flow has no parameter {', '.join(unknown)}, only {', '.join(known) or 'none at all'}")
    for schedule in item.schedules:
        own = schedule.get("parameters") or {}
        if needed := [name for name in required if name not in item.parameters and name not in own]:
            lacking.append(f"its schedule cannot start the flow: no value for {', '.join(needed)}")
    return lacking

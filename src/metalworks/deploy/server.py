"""Query the Prefect server: its version, work pools with their workers, and deployments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from metalworks.deploy.definition import CODE, FOLDER, MARK, REMOTE, Deployment
from metalworks.errors import CommandError

PAGE = 200
T = TypeVar("T")


@dataclass
class Known:
    """A deployment on the server."""

    id: Any
    slug: str
    version: str
    entrypoint: str
    pool: str
    queue: str
    parameters: dict[str, Any]
    tags: list[str]
    variables: dict[str, Any]
    schedules: list[str]
    paused: bool

    @property
    def mark(self) -> str:
        """Return the digest of what it was made from; empty if `metalworks deploy` did not create it."""
        return str(self.variables.get(MARK, ""))

    @property
    def code(self) -> str:
        """Return the URL of its code."""
        return str(self.variables.get(CODE, ""))

    @property
    def origin(self) -> tuple[str, str]:
        """Return the repository that it was deployed from, and the project's folder in it."""
        return str(self.variables.get(REMOTE, "")), str(self.variables.get(FOLDER, ""))


@dataclass
class PrefectServer:
    """What the server knows."""

    version: str
    pools: dict[str, set[str]]
    """Pool → its queues."""
    online: set[str]
    """Pools with an online worker."""
    deployments: dict[str, Known] = field(default_factory=dict)


def client() -> Any:
    """Return a client for the server in the user's settings. Raises CommandError."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise CommandError("PREFECT_API_URL is not set. Log in to one of the platform's dev hosts, or set it.")
    return get_client(sync_client=True)


def asked(question: Callable[[Any], T]) -> T:
    """Return the server's answer. Raises CommandError."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with client() as connection:
            return question(connection)
    except PrefectHTTPStatusError as error:
        raise CommandError(
            f"the Prefect server responded with {error.response.status_code}: {error.response.text[:300]}"
        ) from error
    except (httpx.HTTPError, RuntimeError) as error:
        raise CommandError(f"the Prefect server does not respond: {error}") from error


def look(pools: Iterable[str]) -> PrefectServer:
    """Return what the server knows, with queues and workers for these pools."""

    def questions(connection: Any) -> PrefectServer:
        from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus

        known = {pool.name for pool in _all(connection.read_work_pools)}
        server = PrefectServer(connection.api_version(), {name: set() for name in known}, set())
        working = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
        for name in sorted(known & set(pools)):
            server.pools[name] = {queue.name for queue in connection.read_work_queues(work_pool_name=name)}
            if connection.read_workers_for_work_pool(name, worker_filter=working):
                server.online.add(name)
        flows = {flow.id: flow.name for flow in _all(connection.read_flows)}
        for item in _all(connection.read_deployments):
            found = _known(item, flows.get(item.flow_id, "?"))
            server.deployments[found.slug] = found
        return server

    return asked(questions)


def _all(page: Callable[..., list[Any]]) -> list[Any]:
    """Return all items of a paginated list."""
    found: list[Any] = []
    while True:
        more = page(limit=PAGE, offset=len(found))
        found += more
        if len(more) < PAGE:
            return found


def _known(item: Any, flow: str) -> Known:
    return Known(
        id=item.id,
        slug=f"{flow}/{item.name}",
        version=item.version or "",
        entrypoint=item.entrypoint or "",
        pool=item.work_pool_name or "",
        queue=item.work_queue_name or "",
        parameters=item.parameters,
        tags=sorted(item.tags),
        variables=(item.job_variables or {}).get("env") or {},
        schedules=sorted(_schedule(item.schedule, item.active) for item in item.schedules),
        paused=item.paused,
    )


def _schedule(schedule: Any, active: bool) -> str:
    """Return a schedule on the server as text."""
    zone = getattr(schedule, "timezone", None) or "UTC"
    text = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None)
    if text is None:
        text = f"every {schedule.interval.total_seconds():.0f} s"
    return f"{text} {zone}" + ("" if active else " (off)")


def asked_schedule(item: dict[str, Any]) -> str | None:
    """Return a schedule from the file in the same form; None if only Prefect can interpret it."""
    from datetime import timedelta

    from pydantic import TypeAdapter

    if not {"cron", "interval", "rrule"} & item.keys():
        return None
    zone = item.get("timezone") or "UTC"
    text = item.get("cron") or item.get("rrule")
    if text is None:
        text = f"every {TypeAdapter(timedelta).validate_python(item['interval']).total_seconds():.0f} s"
    off = str(item.get("active", True)).lower() in ("false", "no", "0")
    return f"{text} {zone}" + (" (off)" if off else "")


def difference(deployment: Deployment, version: str, known: Known) -> list[str]:
    """Return how a deployment on the server differs from the file: `name: old → new`."""
    schedules = [asked_schedule(item) for item in deployment.schedules]
    tags = deployment.resolved.get("tags") or []
    rows: list[tuple[str, Any, Any]] = [
        ("version", known.version, version),
        ("entrypoint", known.entrypoint, deployment.entrypoint),
        ("pool", known.pool, deployment.pool),
        ("queue", known.queue, deployment.queue or known.queue),
        ("parameters", known.parameters, deployment.parameters),
        ("tags", known.tags, sorted([tags] if isinstance(tags, str) else map(str, tags))),
    ]
    if None not in schedules:
        rows.append(("schedule", known.schedules, sorted(filter(None, schedules))))
    return [f"{what}: {_shown(old)} → {_shown(new)}" for what, old, new in rows if old != new]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return re.sub(r"\b([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", str(value)) or "none"


def next_runs(slugs: Iterable[str]) -> dict[str, datetime | None]:
    """Return when these deployments run next by schedule."""
    import asyncio

    from prefect.server.schemas import schedules as kinds
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(kinds.SCHEDULE_TYPES)
    found: dict[str, datetime | None] = {}

    def questions(connection: Any) -> None:
        for slug in slugs:
            item = connection.read_deployment_by_name(slug)
            dates: list[datetime] = []
            for entry in item.schedules:
                if entry.active and not item.paused:
                    schedule = adapter.validate_python(entry.schedule.model_dump())
                    dates += asyncio.run(schedule.get_dates(1))
            found[slug] = min(dates, default=None)

    asked(questions)
    return found


def delete(deployments: Iterable[Known]) -> None:
    """Delete deployments from the server."""

    def questions(connection: Any) -> None:
        for known in deployments:
            connection.delete_deployment(known.id)

    asked(questions)

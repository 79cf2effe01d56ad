"""The files and messages that the processes of an inference host exchange.

Each type is one file or message; docs/serving-files.md says who writes it, who reads it, and when. This module imports
only the standard library, as do the supervisor and the launcher.

During an upgrade, files of the previous release are still there, and units restart one after the other. So let readers
work without a field that you add, and rename none, except where docs/serving-files.md says that you can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from metalworks_model_runner.facts import Facts

__all__ = [
    "CARD",
    "DESIRED_STATE",
    "FACTS",
    "ROLES",
    "ROUTE",
    "SAMPLES",
    "SERVING",
    "STATE",
    "VERDICT",
    "CanaryVerdict",
    "Card",
    "DesiredVersion",
    "EquivalenceVerdict",
    "Facts",
    "FeedOptions",
    "FollowerStatus",
    "LaunchReply",
    "LaunchRequest",
    "LogLine",
    "RefusedVersion",
    "RoleState",
    "RoleStatus",
    "RouteEntry",
    "RouteFile",
    "SeriesCounts",
    "ServingState",
    "StateFile",
    "StatsFile",
    "stats_file",
]

ROLES = ("champion", "shadow", "canary")
"""The roles that a version in service can have."""

CARD = "model.json"
DESIRED_STATE = "desired.json"
FACTS = "facts.json"
ROUTE = "route.json"
SAMPLES = "samples.bin"
SERVING = "serving.json"
STATE = "state.json"
VERDICT = "verdict.json"


def stats_file(slot: int | str) -> str:
    """Return the name of a worker process's metrics file; "*" gives the pattern that matches all of them."""
    return f"stats-{slot}.json"


class Card(TypedDict):
    """model.json: a registered version, as the registry described it when it was fetched."""

    name: str
    version: str
    alias: str
    """Alias that pointed to it when it was fetched; its role may have changed since."""
    source: str
    """Where the registry keeps the version's files."""
    created: int
    """When the version was registered, in milliseconds since 1970."""
    run_id: str | None
    git_commit: str | None
    """Commit of the training code, if the run recorded one."""


@dataclass(frozen=True, slots=True)
class DesiredVersion:
    """A version that the service should serve: the entry of a role in desired.json and serving.json."""

    version: str
    path: str
    """Folder with model/ and model.json."""
    python: str
    """Interpreter of the version's environment."""
    environment: str
    """Digest of the lock file that the environment was built from."""

    @classmethod
    def parse(cls, entry: dict[str, Any] | None) -> DesiredVersion | None:
        """Return an entry of the file, or None if the role is empty. Raises KeyError or TypeError if malformed."""
        return cls(entry["version"], entry["path"], entry["python"], entry["environment"]) if entry else None


class RouteEntry(TypedDict):
    """What a worker process needs to serve a version."""

    id: str
    card: Card
    environment: str
    evidence: str
    """Folder with facts.json, verdict.json and the converted model."""
    socket: str
    """Socket of the model process."""


class RouteFile(TypedDict):
    """route.json: which versions answer requests."""

    champion: RouteEntry | None
    canary: RouteEntry | None
    shadow: RouteEntry | None
    canary_share: float
    """Share of the requests that the canary answers, 0 to 1."""
    revision: int


class ServingState(TypedDict):
    """A version in service."""

    version: str
    model: str
    executor: str
    reason: str
    """Why this executor was chosen."""
    warnings: NotRequired[list[str]]
    """What the platform cannot check about it, such as requests to a model without a signature."""
    since: NotRequired[float]


class RefusedVersion(TypedDict):
    """A version that cannot be served."""

    reason: str
    at: float


class CanaryVerdict(TypedDict):
    """Result of comparing a canary with the champion."""

    verdict: Literal["promote", "withdraw"]
    reason: str
    version: NotRequired[str]
    champion: NotRequired[str]
    at: NotRequired[float]


class StateFile(TypedDict):
    """state.json: what a service serves."""

    service: str
    champion: ServingState | None
    shadow: ServingState | None
    canary: ServingState | None
    preparing: list[str]
    refused: dict[str, RefusedVersion]
    canary_verdict: CanaryVerdict | None


class FeedOptions(TypedDict):
    """How a converted model takes its input."""

    double: bool
    columns: bool


class EquivalenceVerdict(TypedDict):
    """verdict.json: the executor that passed the equivalence check."""

    executor: str
    """onnx, native, pyfunc or mlflow."""
    function: str
    """The function that the model process should call."""
    reason: str
    """Why this executor, and why none of the faster ones."""
    warnings: NotRequired[list[str]]
    """What the check could not check."""
    nulls: bool
    """Whether the executor treats NaN as MLflow does."""
    allowed: NotRequired[list[str]]
    """Executors that the settings allowed; if they change, the check runs again."""
    file: NotRequired[str]
    feed: NotRequired[FeedOptions]
    inline: NotRequired[bool]
    """Whether the converted model is fast enough to run in the event loop."""
    seconds_per_row: NotRequired[float]


class SeriesCounts(TypedDict):
    """Requests that one version answered with one executor."""

    role: str
    version: str
    executor: str
    statuses: dict[str, int]
    seconds: float
    buckets: list[int]


class StatsFile(TypedDict):
    """stats-SLOT.json, as far as the supervisor reads it; telemetry.metrics.Stats has all of it."""

    series: NotRequired[list[SeriesCounts]]
    in_flight: NotRequired[dict[str, int]]
    """Requests in progress, by the version's id."""
    routed: NotRequired[int]
    """Revision of route.json that the process uses."""
    unloadable: NotRequired[dict[str, str]]
    """Versions of a newer route that the process cannot load: id → reason."""


class LaunchRequest(TypedDict):
    """First line on a connection to the launcher."""

    do: Literal["inspect", "serve", "keep"]
    id: NotRequired[str]
    evidence: NotRequired[str]
    python: NotRequired[str]
    model: NotRequired[str]
    options: NotRequired[list[str]]
    folders: NotRequired[list[str]]
    """With keep: the folders to keep."""


class LaunchReply(TypedDict, total=False):
    """A line from the launcher: first `started` or `error`, then `code` and `output` when it has exited."""

    started: int
    error: str
    code: int
    output: list[str]


RoleState = Literal["missing", "waiting", "installing", "installed", "refused"]


class RoleStatus(TypedDict):
    """How far the follower is with the version that a role's alias names."""

    alias: str
    version: str | None
    state: RoleState
    reason: NotRequired[str]
    """Why the version is refused."""
    at: NotRequired[float]
    """When it was refused."""
    retry_at: NotRequired[float]
    """When the follower tries again."""


class FollowerStatus(TypedDict):
    """<service>.json in the follower's runtime folder: its progress."""

    polled: float
    """When MLflow last answered."""
    mlflow: str
    """`answers`, or the error."""
    roles: dict[str, RoleStatus]


class LogLine(TypedDict):
    """A line of the prediction log, in a segment of the spool."""

    time: float
    request: str
    role: str
    version: str
    rows: int
    inputs: dict[str, Any] | None
    raw: str | None
    predictions: Any
    status: int
    seconds: float
    difference: float | None

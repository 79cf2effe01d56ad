"""The files and lines by which the processes of an inference host speak to each other.

Each type is one file or line; docs/serving-files.md says who writes it, who reads it, and when. Imports the standard
library alone, as the supervisor and the launcher do.

A host is upgraded while files of the previous release are there, and units restart one after the other. So do not
rename a field: add a new one, and let the reader do without it.
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
    "RoleStatus",
    "RoleWord",
    "RouteEntry",
    "RouteFile",
    "SeriesCounts",
    "ServingState",
    "StateFile",
    "StatsFile",
    "stats_file",
]

ROLES = ("champion", "shadow", "canary")
"""What a version can be in service as."""

CARD = "model.json"
DESIRED_STATE = "wanted.json"
FACTS = "facts.json"
ROUTE = "route.json"
SAMPLES = "samples.bin"
SERVING = "serving.json"
STATE = "state.json"
VERDICT = "verdict.json"


def stats_file(slot: int | str) -> str:
    """Return the name of a worker process' file of counts; "*" gives the pattern of all of them."""
    return f"stats-{slot}.json"


class Card(TypedDict):
    """model.json: a registered version, as the registry described it when it was fetched."""

    name: str
    version: str
    alias: str
    """What named it when it was fetched; by now it may have another role."""
    source: str
    """Where the registry keeps the version's files."""
    created: int
    """When the version was registered, in milliseconds since 1970."""
    run_id: str | None
    git_commit: str | None
    """Commit of the code that trained it, if its run recorded one."""


@dataclass(frozen=True, slots=True)
class DesiredVersion:
    """A version that the service is to serve: an entry of wanted.json and serving.json, by role."""

    version: str
    path: str
    """Folder with model/ and model.json."""
    python: str
    """Interpreter of the version's environment."""
    environment: str
    """Digest of the lock that the environment was made from."""

    @classmethod
    def parse(cls, entry: dict[str, Any] | None) -> DesiredVersion | None:
        """Return an entry of the file; None if the role is empty. Raises KeyError or TypeError if it is malformed."""
        return cls(entry["version"], entry["path"], entry["python"], entry["environment"]) if entry else None


class RouteEntry(TypedDict):
    """What a worker process needs to serve a version."""

    id: str
    card: Card
    environment: str
    proof: str
    """Folder with facts.json, verdict.json and the converted model."""
    socket: str
    """Socket of the model's process."""


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
    why: str
    """Why this executor."""
    since: NotRequired[float]


class RefusedVersion(TypedDict):
    """A version that cannot be served."""

    reason: str
    at: float


class CanaryVerdict(TypedDict):
    """How a canary compared with the champion."""

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
    """verdict.json: the executor that predicts what MLflow predicts."""

    executor: str
    """onnx, native, pyfunc or mlflow."""
    way: str
    """The function that the model's process is to call."""
    why: NotRequired[str]
    nulls: bool
    """Whether the executor treats NaN as MLflow does."""
    allowed: NotRequired[list[str]]
    """Executors that the settings allowed; with others the check runs anew."""
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
    """Requests that a version works on, by the version's id."""
    routed: NotRequired[int]
    """Revision of the route that the process follows."""


class LaunchRequest(TypedDict):
    """First line on a connection to the launcher."""

    do: Literal["prove", "serve", "keep"]
    id: NotRequired[str]
    proof: NotRequired[str]
    python: NotRequired[str]
    model: NotRequired[str]
    options: NotRequired[list[str]]
    proofs: NotRequired[list[str]]
    """With keep: the folders that stay."""


class LaunchReply(TypedDict, total=False):
    """A line from the launcher: `started` or `error` first, then `code` and `said` when the process has ended."""

    started: int
    error: str
    code: int
    said: list[str]


RoleWord = Literal["missing", "waiting", "installing", "here", "refused"]
RoleStatus = TypedDict(
    "RoleStatus",
    {
        "alias": str,
        "version": str | None,
        "is": RoleWord,
        "reason": NotRequired[str],
        "at": NotRequired[float],
        "again": NotRequired[float],
    },
)


class FollowerStatus(TypedDict):
    """<service>.json in the follower's runtime folder: how far it is."""

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

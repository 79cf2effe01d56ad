"""Settings of an inference service, from environment variables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metalworks_model_runner.limits import Limits

LIMITS = Limits()
PREFIX = "METALWORKS_INFERENCE_"
EXECUTORS = ("onnx", "native", "pyfunc", "mlflow")
MODELS = "models"


class SettingsError(Exception):
    """A setting is missing or wrong; the message names it and says what is allowed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRules:
    """When a canary is promoted or withdrawn."""

    percent: float
    """Share of the requests, 0 to 100."""
    min_requests: int = 200
    """Requests that it must answer before it can be promoted."""
    min_seconds: float = 60
    """Seconds that it must serve before it can be promoted."""
    max_error_rate_increase: float = 0.01
    """How much larger its share of errors may be than the champion's."""
    max_latency_ratio: float = 1.5
    """How many times the champion's 95th percentile of latency its own may be."""

    def __post_init__(self) -> None:
        """Refuse a share without a comparison."""
        if not 0 < self.percent < 100:
            raise ValueError("percent must be above 0 and below 100, so that the canary is compared with the champion")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one inference service; each comes from METALWORKS_INFERENCE_<NAME>."""

    service: str
    """Name of the service."""
    desired: Path
    """File with the desired state, written by the model follower."""
    runtime: Path
    """Folder for sockets, route, state and counts; empty after a reboot."""
    state: Path
    """Folder for results of the equivalence check, and for the prediction log until it is collected."""
    launcher_runtime: Path | None = None
    """Folder with the sockets of the launcher and its models; without it the service runs a launcher itself."""
    launcher_state: Path | None = None
    """Folder for the facts about models. The launcher's user writes it, so nothing in it is trusted."""
    fetched: Path | None = None
    """File with the model follower's status, such as versions that it could not install."""
    alias: str = "champion"
    """Alias in the registry that names the version, as shown by /version."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    certificate: str = ""
    """File with the certificate and its chain; empty: no TLS."""
    key: str = ""
    """File with the certificate's key."""
    workers: int = 1
    """Number of worker processes."""
    tokens_sha256: frozenset[str] = frozenset()
    """SHA-256 of the accepted tokens, as a JSON list; empty: anyone may ask."""
    request_timeout: float = 60
    """Seconds until a request is answered with 504."""
    max_body_bytes: int = 64 * 2**20
    """A longer request body is answered with 413."""
    max_rows: int = LIMITS.rows
    """Rows that a request may have. Beyond this and the next three limits, the response is 413."""
    max_columns: int = LIMITS.columns
    """Columns that a request's table may have."""
    max_cells: int = LIMITS.cells
    """Values that a request may have, counted after short rows are filled up."""
    max_depth: int = LIMITS.depth
    """How deep lists and objects may be nested."""
    max_queue: int = 256
    """Requests that may wait for the model in one process; more are answered with 503."""
    max_batch_rows: int = 1024
    """Rows that go through the model together."""
    keep_previous: float = 600
    """Seconds that a replaced version stays loaded, for a rollback."""
    load_timeout: float = 300
    """Seconds that a version may take to load and to pass its checks."""
    return_timeout: float = 30
    """Seconds that a model's process may take to come back after it ended; then the response is 502."""
    executors: tuple[str, ...] = EXECUTORS
    """Executors that may be used, as a JSON list: the first one that passes the equivalence check is."""
    canary: CanaryRules | None = None
    """When a canary is promoted or withdrawn, as a JSON object."""
    log_share: float = 0
    """Share of the requests that are written to the prediction log, 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        positive = ("port", "workers", "request_timeout", "max_body_bytes", "max_queue", "max_batch_rows")
        for name in (*positive, "max_rows", "max_columns", "max_cells", "max_depth", "load_timeout", "return_timeout"):
            if not getattr(self, name) > 0:  # nor is NaN
                raise SettingsError(f"{PREFIX}{name.upper()} must be above 0")
        if self.port > 65535:
            raise SettingsError(f"{PREFIX}PORT must be below 65536")
        if not self.executors or not set(self.executors) <= set(EXECUTORS):
            raise SettingsError(f"{PREFIX}EXECUTORS must be a list of {', '.join(EXECUTORS)}")
        if not 0 <= self.log_share <= 1:
            raise SettingsError(f"{PREFIX}LOG_SHARE must be between 0 and 1")
        if (self.launcher_runtime is None) != (self.launcher_state is None):
            raise SettingsError(f"set both {PREFIX}LAUNCHER_RUNTIME and {PREFIX}LAUNCHER_STATE, or neither")
        if bool(self.certificate) != bool(self.key):
            raise SettingsError(f"set both {PREFIX}CERTIFICATE and {PREFIX}KEY, or neither")

    @property
    def limits(self) -> Limits:
        """Limits of a request's size."""
        return Limits(self.max_rows, self.max_columns, self.max_cells, self.max_depth)

    @property
    def models_runtime(self) -> Path:
        """Folder with the sockets of the launcher and its models."""
        return self.launcher_runtime or self.runtime / MODELS

    @property
    def models_state(self) -> Path:
        """Folder for the facts about models."""
        return self.launcher_state or self.state / MODELS

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings from environment variables; runtime and state default to systemd's directories.

        Raises SettingsError, which names the variable.
        """
        given = dict(environment)
        for name, variable in (("RUNTIME", "RUNTIME_DIRECTORY"), ("STATE", "STATE_DIRECTORY")):
            if variable in given:
                given.setdefault(PREFIX + name, given[variable])
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            variable = PREFIX + field.name.upper()
            if variable in given:
                try:
                    values[field.name] = _READ[field.name](given[variable])
                except (ValueError, TypeError) as error:
                    raise SettingsError(f"invalid {variable}: {error}") from error
            elif field.default is dataclasses.MISSING:
                raise SettingsError(f"{variable} is not set")
        return cls(**values)


def _strings(text: str) -> list[str]:
    values = json.loads(text)
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise ValueError("expected a JSON list of strings")
    return values


def _canary(text: str) -> CanaryRules | None:
    return CanaryRules(**json.loads(text)) if text else None


_READ: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("service", "alias", "host", "certificate", "key"), str),
    **dict.fromkeys(("desired", "fetched", "runtime", "state", "launcher_runtime", "launcher_state"), Path),
    **dict.fromkeys(("port", "workers", "max_body_bytes", "max_queue", "max_batch_rows"), int),
    **dict.fromkeys(("max_rows", "max_columns", "max_cells", "max_depth"), int),
    **dict.fromkeys(("request_timeout", "keep_previous", "load_timeout", "return_timeout", "log_share"), float),
    "tokens_sha256": lambda text: frozenset(_strings(text)),
    "executors": lambda text: tuple(_strings(text)),
    "canary": _canary,
}

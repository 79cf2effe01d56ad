"""The follower's configuration: a JSON file that the role writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path("/etc/metalworks/model-follower.json")


@dataclass(frozen=True, slots=True)
class Service:
    """A service: a model, and which of its aliases this host serves in which role."""

    name: str
    model: str
    alias: str = "champion"
    shadow: str | None = None
    canary: str | None = None

    def aliases(self) -> dict[str, str]:
        """Return role → alias for the roles in use."""
        every = {"champion": self.alias, "shadow": self.shadow, "canary": self.canary}
        return {role: alias for role, alias in every.items() if alias}


@dataclass(frozen=True, slots=True)
class Config:
    """The host's services, and the paths and limits of the follower."""

    host: str
    """This host's name in the tags of MLflow."""
    services: tuple[Service, ...]
    home: Path = Path("/var/lib/model-follower")
    runtime: Path = Path("/run/model-follower")
    servers: str = "/run/inference-{name}/state.json"
    """State file of a service's server."""
    poll_seconds: float = 2.0
    python: str = "/usr/bin/python3"
    uv: str = "/usr/local/bin/uv"
    build_packages: bool = False
    """Whether to build packages without a wheel here: this runs their code where the password is readable."""
    keep: int = 3
    """Versions and environments to keep besides those in use."""
    spools: str = "/var/lib/inference-{name}/spool"
    """Folder where a service's server writes its prediction log."""
    bucket: str = ""
    """Bucket for the prediction log; empty: do not send it."""
    ship_seconds: float = 300.0
    """Maximum age of log entries before they are sent, even if there are few."""
    file: Path = FILE
    """The file that this was read from."""

    @classmethod
    def read(cls, file: Path) -> Config:
        """Read the file. Raises OSError, ValueError, TypeError or KeyError if it cannot be read."""
        values: dict[str, Any] = json.loads(file.read_text())
        values["services"] = tuple(Service(**service) for service in values["services"])
        values |= {key: Path(values[key]) for key in ("home", "runtime") if key in values}
        return cls(**values, file=file)

    def folder(self, service: Service) -> Path:
        """Return the folder of a service's versions and environments."""
        return self.home / service.name

    def state_file(self, service: Service) -> Path:
        """Return the state file of the service's server."""
        return Path(self.servers.format(name=service.name))

    def spool(self, service: Service) -> Path:
        """Return the folder of the service's prediction log."""
        return Path(self.spools.format(name=service.name))

    def status_file(self, service: Service) -> Path:
        """Return the file where the follower reports its progress with the service."""
        return self.runtime / f"{service.name}.json"

    @property
    def retry_file(self) -> Path:
        """Return the file that you touch to have refused versions tried again at once."""
        return self.runtime / "retry"

"""What the follower is told: a JSON file that the role writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path("/etc/metalworks/model-follower.json")


@dataclass(frozen=True, slots=True)
class Service:
    """A model in service: which aliases of it are wanted on this host."""

    name: str
    model: str
    alias: str = "champion"
    shadow: str | None = None
    canary: str | None = None

    def aliases(self) -> dict[str, str]:
        """Return role → alias for the roles that are in use."""
        every = {"champion": self.alias, "shadow": self.shadow, "canary": self.canary}
        return {role: alias for role, alias in every.items() if alias}


@dataclass(frozen=True, slots=True)
class Config:
    """Services of the host, and where everything is."""

    host: str
    """Name of this host in what MLflow is told."""
    services: tuple[Service, ...]
    home: Path = Path("/var/lib/model-follower")
    runtime: Path = Path("/run/model-follower")
    servers: str = "/run/inference-{name}/state.json"
    """Where a service's server says what it does."""
    poll_seconds: float = 2.0
    python: str = "/usr/bin/python3"
    uv: str = "/usr/local/bin/uv"
    build_packages: bool = False
    """Whether packages without a wheel may be built here: building runs code of theirs beside the password."""
    keep: int = 3
    """Versions and environments that stay besides those in use."""
    spools: str = "/var/lib/inference-{name}/spool"
    """Where a service's server leaves what it logs of requests."""
    bucket: str = ""
    """Bucket of the object store that the prediction log goes to; empty: it stays."""
    ship_seconds: float = 300.0
    """How old what was logged becomes before it is sent, if it is not much."""
    file: Path = FILE
    """Where all this was read."""

    @classmethod
    def read(cls, file: Path) -> Config:
        """Read the file; OSError, ValueError or TypeError say what is wrong with it."""
        values: dict[str, Any] = json.loads(file.read_text())
        values["services"] = tuple(Service(**service) for service in values["services"])
        values |= {key: Path(values[key]) for key in ("home", "runtime") if key in values}
        return cls(**values, file=file)

    def folder(self, service: Service) -> Path:
        """Return the folder of a service's versions and environments."""
        return self.home / service.name

    def state_file(self, service: Service) -> Path:
        """Return where the service's server says what it serves."""
        return Path(self.servers.format(name=service.name))

    def spool(self, service: Service) -> Path:
        """Return the folder of what the service's server logs of requests."""
        return Path(self.spools.format(name=service.name))

    def status_file(self, service: Service) -> Path:
        """Return where the follower says what it does for the service."""
        return self.runtime / f"{service.name}.json"

    @property
    def retry_file(self) -> Path:
        """Return the file that, touched, asks for what was refused to be tried again at once."""
        return self.runtime / "retry"

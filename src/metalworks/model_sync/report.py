"""Tag a model's versions in MLflow: where each is in service, or why it is not."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalworks.errors import RegistryError
from metalworks.model_sync.config import Service
from metalworks.model_sync.files import read_json, write_json
from metalworks.model_sync.registry import Registry

TOLD = "told.json"
LONGEST = 400
ROLES = {"champion": "serving", "shadow": "shadow", "canary": "canary"}
SETTLED = ("promoted", "withdrawn", "served")
RETRY_SECONDS = 60
logger = logging.getLogger("metalworks.model_sync")


def canary_key(service: Service) -> str:
    """Return the tag that holds the outcome of a canary."""
    return f"metalworks.inference.{service.name}.canary"


def short(text: str) -> str:
    """Return a reason as one line for a tag. What is too long loses its middle: a cure stands at the end."""
    line = " ".join(text.split())
    begin = LONGEST // 3
    return line if len(line) <= LONGEST else f"{line[:begin]}…{line[begin + 1 - LONGEST :]}"


def when(seconds: float) -> str:
    """Return a time as readable text."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def wanted_tags(state: Mapping[str, Any], refused: Mapping[str, str]) -> dict[str, str]:
    """Return version → value of its tag, from the server's state and the versions that the follower refused."""
    tags = {version: f"refused: {short(reason)}" for version, reason in refused.items()}
    for version, refusal in (state.get("refused") or {}).items():
        tags[str(version)] = f"refused: {short(str(refusal.get('reason', '')))}"
    for role, word in reversed(ROLES.items()):  # the champion last, so that it wins
        if serving := state.get(role):
            since, executor = when(float(serving.get("since", 0))), serving.get("executor", "?")
            tags[str(serving["version"])] = short(
                "; ".join([f"{word} since {since} as {executor}", *_warnings(serving)])
            )
    return tags


def _warnings(serving: Mapping[str, Any]) -> list[str]:
    return [f"warning: {each}" for each in serving.get("warnings") or ()]


class VersionTags:
    """The tags of one service on this host; it remembers across restarts what it has tagged."""

    def __init__(self, service: Service, host: str, folder: Path) -> None:
        """Read what was tagged before."""
        self.service = service
        self.key = f"metalworks.inference.{service.name}.{host}"
        self.file = folder / TOLD
        self.told: dict[str, str] = {str(key): str(value) for key, value in read_json(self.file).items()}
        self.not_before = 0.0
        self.complaint = ""

    def tell(self, registry: Registry, tags: Mapping[str, str]) -> None:
        """Tag the versions whose state has changed, including those no longer in service."""
        if time.monotonic() < self.not_before:
            return
        now = dict(tags)
        for version, text in self.told.items():
            if version not in now and not text.startswith("refused"):
                now[version] = f"no longer in service since {when(time.time())}"
        if changed := {version: text for version, text in now.items() if self.told.get(version) != text}:
            try:
                for version, text in changed.items():
                    registry.tag(self.service.model, version, self.key, text)
            except RegistryError as error:
                self.not_before = time.monotonic() + RETRY_SECONDS
                if str(error) != self.complaint:
                    logger.warning("%s: cannot tag versions in MLflow: %s", self.service.name, error)
                self.complaint = str(error)
                return
        self.complaint = ""
        if self.told != dict(tags):
            self.told = dict(tags)
            write_json(self.file, self.told)

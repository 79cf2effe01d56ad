"""Wait until a service serves its alias's version, or until it is known why it does not."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from metalworks.model_sync.config import Config, Service
from metalworks.model_sync.files import read_json

LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """The program's exit code, its JSON line, and its error message."""

    code: int
    result: dict[str, Any]
    complaint: str = ""


def wait(config: Config, service: Service, timeout: float, *, installed: bool = False) -> Outcome:
    """Wait until the alias's version is served; with `installed`, until it is on this host."""
    began = time.time()
    with contextlib.suppress(OSError):  # only root may; refused versions are then tried again
        config.retry_file.touch()
    asked = config.retry_file.exists() and config.retry_file.stat().st_mtime >= began - 1
    while True:
        outcome, waits_for = _look(config, service, began, asked, installed)
        if outcome is not None:
            return outcome
        if time.time() - began > timeout:
            complaint = f"{service.name} does not yet serve alias {service.alias} of {service.model}: {waits_for}"
            return Outcome(1, {}, complaint)
        time.sleep(LOOK_SECONDS)


def _look(config: Config, service: Service, began: float, asked: bool, installed: bool) -> tuple[Outcome | None, str]:
    """Return the outcome, or what is being waited for."""
    result = {"service": service.name, "model": service.model, "alias": service.alias}
    follower = "journalctl -u model-follower"
    server = f"journalctl -u inference-{service.name} -u models-{service.name}"
    status = read_json(config.status_file(service))
    if float(status.get("polled", 0)) < began:
        away = status.get("mlflow", "answers")
        return None, (
            f"{away if away != 'answers' else 'model-follower has not polled MLflow since'} (see `{follower}`)"
        )
    state = read_json(config.state_file(service))
    serving = state.get("champion") or {}
    champion = status["roles"]["champion"]
    version, progress = champion["version"], champion.get("state")
    if progress is None:  # a follower of another release wrote it
        return None, f"model-follower does not run this release yet: restart it (see `{follower}`)"
    if progress == "missing":
        return Outcome(3, {**result, "missing": True, "serving": serving.get("version")}), ""
    if progress == "refused" and (not asked or champion["at"] >= began):
        return Outcome(1, result, f"version {version} of {service.model} is refused: {champion['reason']}\n"
                       f"More: `{follower}`. Version {serving.get('version') or 'none'} is served."), ""  # fmt: skip
    if progress != "installed":
        return None, f"version {version} is being installed (see `{follower}`)"
    if installed:
        return Outcome(0, {**result, "missing": False, "version": version, "installed": True}), ""
    if refusal := (state.get("refused") or {}).get(version):
        return Outcome(1, result, f"version {version} of {service.model} is refused: {refusal['reason']}\n"
                       f"More: `{server}`. Version {serving.get('version') or 'none'} is served."), ""  # fmt: skip
    if str(serving.get("version")) == version:
        return Outcome(0, {**result, "missing": False, **serving}), ""
    return None, f"version {version} is being loaded and checked (see `{server}`)"

"""Sends segments when there are enough of them or they are old enough, in a process that ends: pyarrow is large."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path

from metalworks.errors import FetchError, Stopped
from metalworks.model_sync.config import Config, Service
from metalworks.model_sync.programs import Programs
from metalworks.prediction_log.ship import ASIDE
from metalworks.prediction_log.spool import Spool

LOOK_SECONDS, RETRY_SECONDS, LONGEST_SECONDS = 5.0, 60.0, 600.0
SET_ASIDE = ".set-aside"
"""Suffix of the file, beside what is said of a service's versions, with how many requests are in no file."""
logger = logging.getLogger("metalworks.prediction_log")


class LogShipping:
    """Looks at the spools of a host's services."""

    def __init__(self, config: Config, stop: threading.Event) -> None:
        """Remember what to look at, and what ends it."""
        self.config = config
        self.stop = stop
        self.programs = Programs(stop, LONGEST_SECONDS)
        self._complaints: dict[str, str] = {}
        self._again: dict[str, float] = {}
        self._set_aside: dict[str, int] = {}

    def run(self) -> None:
        """Look until the end."""
        while not self.stop.wait(LOOK_SECONDS):
            for service in self.config.services:
                try:
                    self.look(service)
                except Stopped:
                    return
                except Exception:
                    logger.exception("%s: internal error", service.name)

    def look(self, service: Service) -> None:
        """Send what is due; a store that does not answer is told of once, and asked again later."""
        name = service.name
        if time.monotonic() < self._again.get(name, 0.0):
            return
        if not Spool(self.config.spool(service)).due(self.config.ship_seconds):
            return
        program = str(Path(sys.executable).with_name("metalworks-model"))
        command = [program, "--config", str(self.config.file), "ship", "--service", name]
        try:
            done = self.programs.run(command, cwd=self.config.folder(service), secrets=True)
            self._count(service, done.stdout)
            complaint = (
                (done.stderr.strip().splitlines() or ["it ended without an error message"])[-1]
                if done.returncode
                else ""
            )
        except FetchError as error:
            complaint = str(error)
        known = self._complaints.get(name, "")
        if complaint:
            self._again[name] = time.monotonic() + RETRY_SECONDS
            if not known:
                logger.warning("%s: cannot send the prediction log, keeping it here: %s", name, complaint)
        elif known:
            logger.warning("%s: sending the prediction log again", name)
        self._complaints[name] = complaint

    def _count(self, service: Service, output: str) -> None:
        """Say what could not be written, and count it for the service, which is asked for the metrics."""
        try:
            lines = int(json.loads(output)["set_aside"])
        except (ValueError, TypeError, KeyError):  # it failed
            return
        if lines:
            kept = self.config.folder(service) / ASIDE
            logger.warning(
                "%s: %s requests fit no file of the prediction log; they are in %s", service.name, lines, kept
            )
            total = self._set_aside[service.name] = self._set_aside.get(service.name, 0) + lines
            file = self.config.status_file(service).with_suffix(SET_ASIDE)
            new = file.with_suffix(".new")
            new.write_text(f"{total}\n")
            new.chmod(0o644)
            new.replace(file)

"""Send segments of the prediction log once they are large or old enough, in a separate process: pyarrow is large."""

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
"""Suffix of the file, beside a service's status file, with the number of requests that could not be shipped."""
logger = logging.getLogger("metalworks.prediction_log")


class LogShipping:
    """Sends the prediction logs of a host's services."""

    def __init__(self, config: Config, stop: threading.Event) -> None:
        """Take the services and the event that stops it."""
        self.config = config
        self.stop = stop
        self.programs = Programs(stop, LONGEST_SECONDS)
        self._complaints: dict[str, str] = {}
        self._again: dict[str, float] = {}
        self._set_aside: dict[str, int] = {}

    def run(self) -> None:
        """Look at the spools until stopped."""
        while not self.stop.wait(LOOK_SECONDS):
            for service in self.config.services:
                try:
                    self.look(service)
                except Stopped:
                    return
                except Exception:
                    logger.exception("%s: internal error", service.name)

    def look(self, service: Service) -> None:
        """Send what is due; log once if the store does not respond, and retry later."""
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
                (done.stderr.strip().splitlines() or ["it failed without an error message"])[-1]
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
            logger.warning("%s: sending the prediction log works again", name)
        self._complaints[name] = complaint

    def _count(self, service: Service, output: str) -> None:
        """Log and count requests that could not be written; the service exposes the number as a metric."""
        try:
            lines = int(json.loads(output)["set_aside"])
        except (ValueError, TypeError, KeyError):  # it failed
            return
        if lines:
            kept = self.config.folder(service) / ASIDE
            logger.warning("%s: %s requests could not be written as Parquet; they are in %s", service.name, lines, kept)
            total = self._set_aside[service.name] = self._set_aside.get(service.name, 0) + lines
            file = self.config.status_file(service).with_suffix(SET_ASIDE)
            new = file.with_suffix(".new")
            new.write_text(f"{total}\n")
            new.chmod(0o644)
            new.replace(file)

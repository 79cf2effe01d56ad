"""Sends segments when there are enough of them or they are old enough, in a process that ends: pyarrow is large."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

from metalworks.models.config import Config, Service
from metalworks.models.errors import FetchError, Stopped
from metalworks.models.programs import Programs
from metalworks.predictions.spool import Spool

LOOK_SECONDS, RETRY_SECONDS, LONGEST_SECONDS = 5.0, 60.0, 600.0
logger = logging.getLogger("metalworks.predictions")


class Watch:
    """Looks at the spools of a host's services."""

    def __init__(self, config: Config, stop: threading.Event) -> None:
        """Remember what to look at, and what ends it."""
        self.config = config
        self.stop = stop
        self.programs = Programs(stop, LONGEST_SECONDS)
        self._complaints: dict[str, str] = {}
        self._again: dict[str, float] = {}

    def run(self) -> None:
        """Look until the end."""
        while not self.stop.wait(LOOK_SECONDS):
            for service in self.config.services:
                try:
                    self.look(service)
                except Stopped:
                    return
                except Exception:
                    logger.exception("%s: this should not happen", service.name)

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
            complaint = (done.stderr.strip().splitlines() or ["it ended for no reason"])[-1] if done.returncode else ""
        except FetchError as error:
            complaint = str(error)
        known = self._complaints.get(name, "")
        if complaint:
            self._again[name] = time.monotonic() + RETRY_SECONDS
            if not known:
                logger.warning("%s: the prediction log is kept here for now: %s", name, complaint)
        elif known:
            logger.warning("%s: the prediction log is sent again", name)
        self._complaints[name] = complaint

"""Fetch registered models to an inference host and keep them in step with their aliases.

`follow` is the daemon. `wait` prints one JSON line; its exit codes: 0 the alias's version is served, 1 it is not
(standard error says why), 3 the model or alias does not exist yet. `ship` sends the prediction log to the object store
and prints one JSON line about it; the daemon starts it when there is something to send.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from metalworks.model_sync.config import FILE, Config, Service


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="metalworks-model", description=__doc__)
    parser.add_argument("--config", type=Path, default=FILE, help="configuration file (default: %(default)s)")
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("follow", help="follow the aliases of the host's models until SIGTERM")
    command = commands.add_parser("wait", help="wait until a service serves the version of its alias")
    command.add_argument("--service", required=True, help="name of the service")
    command.add_argument("--timeout", type=float, default=600, help="maximum seconds to wait (default: %(default)s)")
    command.add_argument("--installed", action="store_true", help="wait only until the version is on this host")
    command = commands.add_parser("ship", help="send a service's prediction log to the object store")
    command.add_argument("--service", required=True, help="name of the service")
    arguments = parser.parse_args(argv)
    try:
        config = Config.read(arguments.config)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return _complain(f"cannot read {arguments.config}: {error}")
    if arguments.command == "follow":
        return _follow(config)
    service = next((each for each in config.services if each.name == arguments.service), None)
    if service is None:
        names = ", ".join(each.name for each in config.services) or "none"
        return _complain(f"no service {arguments.service} on this host; its services: {names}")
    if arguments.command == "ship":
        return _ship(config, service)
    return _wait(config, service, arguments.timeout, arguments.installed)


def _follow(config: Config) -> int:
    from metalworks.errors import RegistryError
    from metalworks.model_sync.follow import follow
    from metalworks.model_sync.journal import log_to_journal

    log_to_journal()
    try:
        return follow(config)
    except RegistryError as error:
        return _complain(str(error))


def _ship(config: Config, service: Service) -> int:
    from metalworks.prediction_log.ship import ShipError, bucket, ship
    from metalworks.prediction_log.spool import Spool

    if not config.bucket:
        return _complain("no bucket is configured for the prediction log")
    try:
        spool, models = Spool(config.spool(service)), config.folder(service)
        done = ship(spool, service.name, config.host, models, bucket(config.bucket))
    except (ShipError, OSError) as error:
        return _complain(str(error))
    print(json.dumps(done))
    return 0


def _wait(config: Config, service: Service, timeout: float, installed: bool) -> int:
    from metalworks.model_sync.wait import wait

    outcome = wait(config, service, timeout, installed=installed)
    if outcome.result:
        print(json.dumps(outcome.result))
    return _complain(outcome.complaint) if outcome.complaint else outcome.code


def _complain(text: str) -> int:
    print(f"metalworks-model: {text}", file=sys.stderr)
    return 1

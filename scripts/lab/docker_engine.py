"""Provide a Docker engine: use the one that runs, or install Debian's and start it.

A running engine is never touched. Where systemd is not PID 1 the daemon is started directly, and
`stop_own` stops exactly that one again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from scripts.common import LAB, ProblemError, apt_install, end, environment, logged, machine_lock, succeeds, wait_until

PID_FILE = LAB / "dockerd.pid"
DAEMON_LOG = LAB / "dockerd.log"
START_TIMEOUT = 90


def answers() -> bool:
    """Return whether a Docker engine answers."""
    return bool(shutil.which("docker")) and succeeds(["docker", "version"])


def ensure() -> str:
    """Make an engine answer; return what was done for it."""
    with machine_lock("docker-engine"):
        if answers():
            return "runs already"
        if os.environ.get("DOCKER_HOST"):
            raise ProblemError(
                f"no Docker engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}: start it or unset DOCKER_HOST"
            )
        if os.geteuid() != 0:
            raise ProblemError(
                "no Docker engine answers: start it, add yourself to the group `docker`, or run this as root"
            )
        installed = install()
        start()
        return "installed and started" if installed else "started"


def install() -> bool:
    """Install Debian's engine and client if they are missing."""
    missing = [] if shutil.which("dockerd") else ["docker.io"]
    missing += [] if shutil.which("iptables") else ["iptables"]
    if missing:
        apt_install(*missing, reason="the Docker engine")
    if not shutil.which("docker"):  # a separate package from Debian 13 on
        apt_install("docker-cli", reason="the Docker client")
    return bool(missing)


def start() -> None:
    """Start the installed engine and wait until it answers."""
    if Path("/run/systemd/system").is_dir():
        logged(["systemctl", "enable", "--now", "docker.service"])
    else:
        LAB.mkdir(parents=True, exist_ok=True)
        with DAEMON_LOG.open("ab") as log:
            daemon = subprocess.Popen(
                ["dockerd", "--pidfile", str(PID_FILE)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def ready() -> bool:
            if daemon.poll() is not None:
                last = "\n".join(DAEMON_LOG.read_text(errors="replace").splitlines()[-10:])
                raise ProblemError(
                    f"dockerd exited with {daemon.returncode}:\n{last}\nThe whole log is in {DAEMON_LOG}"
                )
            return answers()

        wait_until(ready, f"dockerd does not answer, its log is {DAEMON_LOG}", START_TIMEOUT)
    wait_until(answers, "the Docker engine does not answer (`journalctl -u docker`)", START_TIMEOUT)


def stop_own() -> bool:
    """Stop the engine that `start` started directly, unless containers still run in it."""
    if not PID_FILE.exists() or not answers():
        return False
    running = subprocess.run(["docker", "ps", "-q"], capture_output=True, text=True, env=environment(), check=True)
    if running.stdout.strip():
        return False
    pid = int(PID_FILE.read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not PID_FILE.exists(), f"dockerd ({pid}) does not stop", START_TIMEOUT)
    return True


if __name__ == "__main__":
    try:
        print(f"Docker engine: {ensure()}")
    except ProblemError as error:
        end(error)

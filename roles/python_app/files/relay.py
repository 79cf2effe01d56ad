"""Become a container's client, and hand the container's keep-alives on to systemd.

systemd hears processes of the unit only, and Docker's containers are not in it. Only keep-alives are handed on: other
messages could name a process, which systemd would then stop for this program, which is root's.
usage: relay.py SOCKET USER COMMAND...
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
from pathlib import Path

KEEP_ALIVE = b"WATCHDOG=1"


def listen(place: Path, user: str) -> socket.socket:
    """Return a socket that only this user can send to."""
    place.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    inside = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    inside.bind(str(place))
    place.chmod(0o600)
    os.chown(place, pwd.getpwnam(user).pw_uid, -1)
    return inside


def relay(inside: socket.socket, address: str) -> None:
    """Hand keep-alives on for ever; systemd ends this when the client has ended."""
    address = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outside:
        while True:
            if inside.recv(4096) == KEEP_ALIVE:
                outside.sendto(KEEP_ALIVE, address)


def main() -> None:
    """Listen, then relay in a child and start the client in this process, whose signals systemd sends."""
    inside = listen(Path(sys.argv[1]), sys.argv[2])
    if os.fork() == 0:
        relay(inside, os.environ["NOTIFY_SOCKET"])
    os.execv(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()

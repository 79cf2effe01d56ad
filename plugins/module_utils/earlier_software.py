"""What others set up on a host before the platform came: sites of nginx, clusters of PostgreSQL, NVIDIA drivers."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from .systemctl import MANAGED

BACKUPS = Path("/var/backups")
FIRST_OWN_OID = 16384
"""PostgreSQL numbers databases from here on; it has created those below itself."""
DISTRIBUTION_HBA = {
    "local all postgres peer",
    "local all all peer",
    "host all all 127.0.0.1/32 scram-sha-256",
    "host all all ::1/128 scram-sha-256",
    "local replication all peer",
    "host replication all 127.0.0.1/32 scram-sha-256",
    "host replication all ::1/128 scram-sha-256",
}
RUN_FILE = ("usr/bin/nvidia-uninstall", "usr/bin/nvidia-installer", "var/lib/nvidia/log")
"""What NVIDIA's installer, a file that ends with .run, leaves behind, and its removal takes away."""
DRIVER = re.compile(
    r"nvidia-dkms.*|nvidia(-open|-tesla[\w-]*)?-kernel(-open)?-dkms|nvidia-driver(-\d.*)?|nvidia-tesla[\w-]*-driver"
    r"|linux-(modules|objects|signatures)-nvidia-.*|libnvidia-compute.*|libcuda1"
)
"""Packages whose version is that of the driver they belong to."""


def keep_copy(path: Path, backups: Path = BACKUPS) -> None:
    """Keep a copy of a file that the platform replaces, unless there is one."""
    copy = backups / f"{path.name}.before-metalworks"
    if path.exists() and not copy.exists():
        shutil.copy2(path, copy)


def nginx_files(root: Path, packaged: str) -> list[str]:
    """Return the files of an nginx that is not the platform's, without those that are as their package brought them.

    `packaged` has a line with path and MD5 for each file of the packages, as dpkg lists it.
    """
    folder = root / "etc/nginx"
    if (folder / "metalworks").exists():
        return []
    sums = dict(re.findall(r"^\s*(/\S+) ([0-9a-f]{32})", packaged, re.MULTILINE))
    files = [folder / "nginx.conf", *sorted(folder.glob("sites-enabled/*")), *sorted(folder.glob("conf.d/*.conf"))]
    found = []
    for path in files:
        if path.is_file():
            origin = f"/{path.resolve().relative_to(root.resolve())}"
            if sums.get(origin) != hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest():
                found.append(f"/{path.relative_to(root)}")
    return found


def postgresql_clusters(root: Path) -> list[dict[str, Any]]:
    """Return the clusters, whether each is the platform's, and how many databases and lines of pg_hba.conf it has."""
    found = []
    for data in sorted(path.parent for path in root.glob("var/lib/postgresql/*/*/PG_VERSION")):
        settings = root / "etc/postgresql" / data.parent.name / data.name
        numbers = [place.name for place in data.glob("base/*") if place.name.isdigit()]
        hba = settings / "pg_hba.conf"
        lines = [" ".join(line.split()) for line in (hba.read_text() if hba.exists() else "").splitlines()]
        found.append(
            {
                "version": data.parent.name,
                "name": data.name,
                "ours": (settings / "conf.d/metalworks.conf").exists(),
                "databases": sum(int(number) >= FIRST_OWN_OID for number in numbers),
                "hba_lines": sum(not line.startswith("#") and line not in {"", *DISTRIBUTION_HBA} for line in lines),
            }
        )
    return found


def foreign_units(root: Path, units: list[str]) -> list[str]:
    """Return the files of units with these names that the platform did not write."""
    places = [root / folder / unit for folder in ("etc/systemd/system", "usr/lib/systemd/system") for unit in units]
    theirs = [path for path in places if path.is_file() and not path.read_text().startswith(MANAGED)]
    return [f"/{path.relative_to(root)}" for path in theirs]


def run_files(root: Path) -> list[str]:
    """Return the paths that NVIDIA's own installer left; none if the driver, if any, comes from packages."""
    return [f"/{path}" for path in RUN_FILE if (root / path).exists()]


def driver_packages(root: Path, listing: str) -> dict[str, str]:
    """Return name and version of a driver's packages that others installed.

    `listing` has a line `state|name|version` for each package. The file is written before the role installs a package.
    """
    if (root / "etc/modprobe.d/metalworks-nouveau.conf").exists():
        return {}
    rows = [line.split("|") for line in listing.splitlines()]
    return {name: version for state, name, version in rows if state[1:2] == "i" and DRIVER.fullmatch(name)}

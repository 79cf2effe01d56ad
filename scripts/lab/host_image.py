"""Build the image of a lab host: Debian with systemd and sshd, from Debian's packages alone.

No image registry is involved: mmdebstrap makes the root filesystem and `docker import` takes it in.
The tag carries a hash of the recipe, so an image is built once and again only when the recipe changes.
Debian 12 is the default. METALWORKS_LAB_SUITE=trixie makes all hosts Debian 13; a scenario's platform can
name the image of either: `image: metalworks-lab-host:trixie`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterable

from scripts.common import LAB, ProblemError, apt_install, capture, end, logged, machine_lock, succeeds

NAME = "metalworks-lab-host"
PACKAGES = (
    # the system
    *("systemd", "systemd-sysv", "libpam-systemd", "dbus", "kmod", "tzdata"),
    # what Ansible needs
    *("openssh-server", "sudo", "python3", "python3-apt", "ca-certificates"),
    # what an administrator uses
    *("iproute2", "iputils-ping", "procps", "curl", "nftables", "less", "vim-tiny"),
)
# Keep the package lists, as a server has them: check mode on a fresh host needs them.
OPTIONS = ("--variant=minbase", "--skip=cleanup/apt/lists")
# Runs in the new root, after its packages are installed. Host keys and machine-id are generated at the first boot, so
# no two hosts share them; units that need hardware or a console are masked.
SETUP = r"""
set -eu
useradd --create-home --shell /bin/bash ops
echo 'ops ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/ops
chmod 0440 /etc/sudoers.d/ops
install -d -m 0700 -o ops -g ops /home/ops/.ssh
rm -f /etc/ssh/ssh_host_*
printf '%s\n' 'PasswordAuthentication no' 'PermitRootLogin no' 'UseDNS no' > /etc/ssh/sshd_config.d/lab.conf
install -d /etc/systemd/system/ssh.service.d
printf '%s\n' '[Service]' 'ExecStartPre=' 'ExecStartPre=/usr/bin/ssh-keygen -A' 'ExecStartPre=/usr/sbin/sshd -t' \
  > /etc/systemd/system/ssh.service.d/host-keys.conf
: > /etc/machine-id
echo 'LANG=C.UTF-8' > /etc/default/locale
systemctl mask systemd-udevd.service systemd-udev-trigger.service console-getty.service getty@.service \
  getty.target systemd-remount-fs.service dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount
systemctl set-default multi-user.target
"""
MODERNIZE = """\
apt --quiet --quiet --assume-yes modernize-sources
rm /etc/apt/*.bak
"""
SUITES = {"bookworm": SETUP, "trixie": SETUP + MODERNIZE}
"""What runs for each suite, the default's first. Hosts of Debian 13 have their package sources in the newer format."""
# This machine's download settings that the hosts need too (a proxy, an old mirror).
APT_OPTIONS = re.compile(
    r'^(Acquire::(?:Check-Valid-Until|Check-Date|Retries|https?::[\w.:-]*)) "(.+)";$', re.MULTILINE
)


def apt_options(dump: str) -> list[str]:
    """Return the download options in the output of `apt-config dump`, in apt.conf's syntax."""
    return [f'{key} "{value}"' for key, value in APT_OPTIONS.findall(dump)]


def recipe_hash(*parts: str | Iterable[str]) -> str:
    """Return the hash of everything that determines an image's content."""
    text = "\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def default_suite() -> str:
    """Return the suite of hosts for which none is named; molecule/shared/create.yml reads the same variable."""
    suite = os.environ.get("METALWORKS_LAB_SUITE") or next(iter(SUITES))
    if suite not in SUITES:
        raise ProblemError(f"METALWORKS_LAB_SUITE is {suite}, which is none of {', '.join(SUITES)}")
    return suite


def tag(suite: str, options: list[str]) -> str:
    """Return the full name of a suite's image that is built with these apt options."""
    return f"{NAME}:{suite}-{recipe_hash(suite, PACKAGES, OPTIONS, SUITES[suite], options)}"


def machine_apt_options() -> list[str]:
    """Return this machine's apt options; none if it has no apt."""
    return apt_options(capture(["apt-config", "dump"])) if shutil.which("apt-config") else []


def current() -> str:
    """Return the name of the lab's current image."""
    return tag(default_suite(), machine_apt_options())


def exists(image: str) -> bool:
    """Return whether the engine has the image."""
    return succeeds(["docker", "image", "inspect", image])


def ensure(suite: str = "") -> str:
    """Build a suite's image if it is missing, without one the default's; return its name."""
    suite = suite or default_suite()
    options = machine_apt_options()
    image = tag(suite, options)
    with machine_lock("host-image"):
        if not exists(image):
            build(suite, image, options)
        capture(["docker", "tag", image, f"{NAME}:{suite}"])  # the name the scenarios use
    return image


def build(suite: str, image: str, options: list[str]) -> None:
    """Build the root filesystem and import it; overwrite what an interrupted build left."""
    if not shutil.which("mmdebstrap"):
        apt_install("mmdebstrap", "debian-archive-keyring", reason="the lab's host image")
    LAB.mkdir(parents=True, exist_ok=True)
    archive = LAB / "image.tar"
    logged(
        [
            "mmdebstrap",
            *OPTIONS,
            f"--include={','.join(PACKAGES)}",
            *(f"--aptopt={option}" for option in options),
            # Not from a file by `copy-in`: mmdebstrap splits its paths at blanks, and a clone's path may have some.
            f'--customize-hook=chroot "$1" sh -c {shlex.quote(SUITES[suite])}',
            suite,
            archive,
        ]
    )
    try:
        logged(["docker", "import", "--change", 'CMD ["/sbin/init"]', archive, image])
    finally:
        archive.unlink()


if __name__ == "__main__":
    try:
        print(f"host image: {ensure()}")
    except ProblemError as error:
        end(error)

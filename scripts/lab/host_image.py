"""Build the image of a lab host: Debian with systemd and sshd, from Debian's packages alone.

No image registry is involved: mmdebstrap makes the root filesystem and `docker import` takes it in.
The tag carries a hash of the recipe, so an image is built once and again only when the recipe changes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable

from scripts.common import LAB, ProblemError, apt_install, capture, end, lock, logged, succeeds

NAME = "metalworks-lab-host"
SUITE = "bookworm"
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


def tag(options: list[str]) -> str:
    """Return the full name of the image that is built with these apt options."""
    return f"{NAME}:{SUITE}-{recipe_hash(SUITE, PACKAGES, OPTIONS, SETUP, options)}"


def machine_apt_options() -> list[str]:
    """Return this machine's apt options; none if it has no apt."""
    return apt_options(capture(["apt-config", "dump"])) if shutil.which("apt-config") else []


def current() -> str:
    """Return the name of the current image."""
    return tag(machine_apt_options())


def exists(image: str) -> bool:
    """Return whether the engine has the image."""
    return succeeds(["docker", "image", "inspect", image])


def ensure() -> str:
    """Build the image if it is missing; return its name."""
    options = machine_apt_options()
    image = tag(options)
    with lock("host-image"):
        if not exists(image):
            build(image, options)
        capture(["docker", "tag", image, f"{NAME}:{SUITE}"])  # the name the scenarios use
    return image


def build(image: str, options: list[str]) -> None:
    """Build the root filesystem and import it; overwrite what an interrupted build left."""
    if not shutil.which("mmdebstrap"):
        apt_install("mmdebstrap", "debian-archive-keyring", why="the lab's host image")
    LAB.mkdir(parents=True, exist_ok=True)
    setup = LAB / "image-setup.sh"
    setup.write_text(SETUP)
    archive = LAB / "image.tar"
    logged(
        [
            "mmdebstrap",
            *OPTIONS,
            f"--include={','.join(PACKAGES)}",
            *(f"--aptopt={option}" for option in options),
            f"--customize-hook=copy-in {setup} /tmp",
            f'--customize-hook=chroot "$1" sh /tmp/{setup.name}',
            f'--customize-hook=rm "$1/tmp/{setup.name}"',
            SUITE,
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

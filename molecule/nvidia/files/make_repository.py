"""Build apt repositories that look like NVIDIA's: the same names, folders and relations, but almost empty packages.

The kernel module does nothing, but DKMS really builds it. All other packages are empty.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

DRIVERS = ["580.1.1", "580.1.2", "595.1.1"]
MODULE = """
#include <linux/module.h>
MODULE_LICENSE("GPL");
MODULE_VERSION("{version}");
"""
DKMS = """
PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="make -C $kernel_source_dir M=$dkms_tree/$module/$module_version/build modules"
AUTOINSTALL="yes"
"""
PIN = """
Package: nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-persistenced
Pin: version {version}-*
Pin-Priority: 1000
"""


def build(folder: Path, name: str, version: str, fields: str = "", files: dict[str, str] | None = None) -> None:
    """Write one package into the folder; files are paths to contents, DEBIAN's scripts among them."""
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
    with tempfile.TemporaryDirectory() as root:
        content = {"DEBIAN/control": f"{control}{fields}Description: {name}\n"} | (files or {})
        for path, text in content.items():
            target = Path(root, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.lstrip())
            if path in ("DEBIAN/postinst", "DEBIAN/prerm"):
                target.chmod(0o755)
        Path(root).chmod(0o755)
        archive = folder / f"{name}_{version}_all.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, archive], check=True)


def publish(folder: Path) -> None:
    """Write the folder's index and sign it."""
    stanzas = []
    for archive in sorted(folder.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "--field", archive], check=True, capture_output=True, text=True).stdout
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        stanzas.append(f"{control}Filename: ./{archive.name}\nSize: {archive.stat().st_size}\nSHA256: {digest}\n")
    index = "\n".join(stanzas)
    (folder / "Packages").write_text(index)
    digest = hashlib.sha256(index.encode()).hexdigest()
    release = folder / "Release"
    release.write_text(f"Origin: NVIDIA\nDate: {formatdate(usegmt=True)}\nSHA256:\n {digest} {len(index)} Packages\n")
    subprocess.run(["gpg", "--batch", "--yes", "--clearsign", "--output", folder / "InRelease", release], check=True)


def driver(folder: Path, version: str) -> None:
    """Write the packages of one driver."""
    relations = "Provides: nvidia-driver-pinning\nConflicts: nvidia-driver-pinning\nReplaces: nvidia-driver-pinning\n"
    pin = {"etc/apt/preferences.d/nvidia-driver-pin": PIN.format(version=version)}
    build(folder, f"nvidia-driver-pinning-{version}", f"{version}-1", relations, pin)
    for name in ("nvidia-driver-cuda", "nvidia-persistenced"):
        build(folder, name, f"{version}-1")
    source = f"usr/src/nvidia-{version}"
    files = {
        f"{source}/nvidia.c": MODULE.format(version=version),
        f"{source}/Makefile": "obj-m := nvidia.o\n",
        f"{source}/dkms.conf": DKMS.format(version=version),
        "DEBIAN/postinst": f"#!/bin/sh\nexec /usr/lib/dkms/common.postinst nvidia {version}\n",
        "DEBIAN/prerm": f"#!/bin/sh\nexec dkms remove nvidia/{version} --all\n",
    }
    build(folder, "nvidia-kernel-open-dkms", f"{version}-1", "Depends: dkms\n", files)


def main() -> None:
    """Build both repositories and write the signing key's fingerprint."""
    root = Path(sys.argv[1])
    cuda, toolkit = root / "debian12/x86_64", root / "toolkit/amd64"
    for folder in (cuda, toolkit):
        folder.mkdir(parents=True, exist_ok=True)
    gpg = ["gpg", "--batch", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "test@example.org", "ed25519", "sign", "never"], check=True)
    for version in DRIVERS:
        driver(cuda, version)
    for version in ("13.0.2", "13.0.3"):
        build(cuda, "cuda-libraries-13-0", f"{version}-1")
    names = ["libnvidia-container1", "libnvidia-container-tools", "nvidia-container-toolkit-base"]
    for version in ("1.20.0", "1.20.1"):
        for name in [*names, "nvidia-container-toolkit"]:
            build(toolkit, name, f"{version}-1")
    for folder in (cuda, toolkit):
        publish(folder)
    subprocess.run(["gpg", "--batch", "--armor", "--export", "--output", root / "key.asc"], check=True)
    listing = subprocess.run([*gpg, "--list-keys", "--with-colons"], check=True, capture_output=True, text=True).stdout
    fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
    (root / "fingerprint").write_text(fingerprint)


if __name__ == "__main__":
    main()

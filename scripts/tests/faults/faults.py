"""The faults: how each is made, and how the world mends it where the platform cannot."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from scripts.common import CACHE, ROOT, capture, environment, failure
from scripts.common import ProblemError as Problem
from scripts.lab import hosts as lab_hosts
from scripts.tests.faults.site import PLATFORM, UNITS, inside, process_of

SERVER = "services-1"
SILENT_SECONDS = 120
"""How long a flow run may send no heartbeat: metalworks.flow_run.lost."""


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Fault:
    """Something that breaks."""

    name: str
    what: str
    make: Callable[[], object]
    mend: Callable[[], object] | None = None
    """What ends the fault: power or network that come back, space that somebody frees."""
    lasts: float = 0
    """Seconds from `make` to `mend`."""
    limit: float = 90
    """Seconds in which the platform has to be healthy again, counted from the beginning of `mend`, or of `make`."""
    hand: str = ""
    """The command of a person without which it does not end."""
    around: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)
    """What has to be there to make it."""
    after: Callable[[], object] = nothing
    """What has to work after the recovery."""


def machine(name: str) -> lab_hosts.Host:
    """Return a host of the lab by name."""
    return next(host for host in lab_hosts.declared() if host.name == name)


# -- Programs


def kill(host: str, unit: str) -> None:
    """Kill a unit's main process."""
    inside(host, f"kill -KILL {process_of(host, unit)}")


def kills() -> Iterator[Fault]:
    """Yield a fault for each unit of the platform."""
    for host, units in UNITS.items():
        for unit in units:
            yield Fault(
                f"kill-{unit.partition('@')[0]}", f"kill -9 of {unit} on {host}", partial(kill, host, unit), limit=120
            )


def stops() -> Iterator[Fault]:
    """Yield a fault for each store that somebody stops for a while."""
    for unit in ("postgresql@15-main", "minio"):
        yield Fault(
            f"stop-{unit.partition('@')[0]}",
            f"{unit} stopped for 10 s",
            partial(inside, SERVER, f"systemctl stop {unit}"),
            mend=partial(inside, SERVER, f"systemctl start {unit}"),
            lasts=10,
        )


# -- Hosts


def power(name: str) -> Fault:
    """Return the fault of a host that loses its power and gets it back."""
    host, names = machine(name), list[str]()

    def off() -> None:
        names[:] = [lab_hosts.power_off(host)]

    return Fault(
        f"power-{name}",
        f"{name} without power for 5 s",
        off,
        mend=lambda: lab_hosts.power_on(host, names[0]),
        lasts=5,
        limit=240,
    )


def reboot(name: str) -> Fault:
    """Return the fault of a host that is rebooted in good order."""
    host = machine(name)

    def restart() -> None:
        lab_hosts.power_on(host, lab_hosts.power_off(host, gently=True))

    return Fault(f"reboot-{name}", f"{name} rebooted", restart, limit=240)


# -- Network

# Before the host's own rules. The lab reaches the host through the engine meanwhile.
CUT = """nft -f - <<'END'
table inet faults {
  chain input { type filter hook input priority -400; policy drop; iifname lo accept; }
  chain output { type filter hook output priority -400; policy drop; oifname lo accept; }
}
END"""
MEND = "nft delete table inet faults"


def cut(name: str, seconds: float, limit: float, after: Callable[[], object] = nothing) -> Fault:
    """Return the fault of a host without network."""
    return Fault(
        f"cut-{name}-{seconds:.0f}s",
        f"{name} without network for {seconds:.0f} s",
        partial(inside, name, CUT),
        mend=partial(inside, name, MEND),
        lasts=seconds,
        limit=limit,
        after=after,
    )


def without_dns() -> Fault:
    """Return the fault of a site whose name servers are gone; nobody has the address."""
    known: dict[str, str] = {}

    def make() -> None:
        for host in PLATFORM:
            known[host] = inside(host, "cat /etc/resolv.conf")
            write_resolver(host, "nameserver 198.51.100.253\n")

    def mend() -> None:
        for host, text in known.items():
            write_resolver(host, text)

    return Fault("dns", "no name server answers any host for 30 s", make, mend=mend, lasts=30)


def write_resolver(host: str, text: str) -> None:
    """Write a host's name servers; the file is mounted, so it cannot be replaced."""
    inside(host, "cat >/etc/resolv.conf", text)


# -- Disks


@contextmanager
def small_disk(unit: str, folder: str, spare_mib: int, inodes: int = 0) -> Iterator[None]:
    """Give a folder of the services host a file system of its own with little space; at the end, move back.

    The lab's hosts share this machine's disk, which must not become full.
    """
    used = int(inside(SERVER, f"du --summarize --block-size=1M {folder}").split()[0])
    files = int(inside(SERVER, f"find {folder} | wc -l"))
    image = CACHE / "lab/faults-disk.img"
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate((used + spare_mib) * 2**20)
    capture(["mkfs.ext4", "-q", "-m", "0", *(["-N", str(files + inodes)] if inodes else []), image])
    device = capture(["losetup", "--find", "--show", image]).strip()
    try:
        with moved(unit, folder, device):
            yield
    finally:
        capture(["losetup", "--detach", device])
        image.unlink()


@contextmanager
def moved(unit: str, folder: str, device: str) -> Iterator[None]:
    """Mount a device over a folder, with the folder's content, while the unit is stopped."""
    aside = "/mnt/faults"
    # The host may not open this machine's devices; this process may, in the host's tree of mounts.
    major, minor = capture(["stat", "--format", "%Hr %Lr", device]).split()
    open_in_host = f"mknod /dev/faults-disk b {major} {minor} && mount /dev/faults-disk"

    def in_mounts(script: str) -> None:
        process = capture(["docker", "inspect", "--format", "{{.State.Pid}}", SERVER]).strip()
        capture(["nsenter", "--target", process, "--mount", "bash", "-ec", script])

    inside(SERVER, f"systemctl stop {unit}")
    in_mounts(f"mkdir {aside} && {open_in_host} {aside} && rmdir {aside}/lost+found && cp -a {folder}/. {aside}/")
    in_mounts(f"umount {aside} && mount /dev/faults-disk {folder}")
    inside(SERVER, f"systemctl start {unit}")
    try:
        yield
    finally:
        inside(SERVER, f"systemctl stop {unit}")
        in_mounts(f"umount {folder} && mount /dev/faults-disk {aside}")
        in_mounts(f"cp -a {aside}/. {folder}/ && umount {aside} && rmdir {aside} && rm /dev/faults-disk")
        inside(SERVER, f"systemctl start {unit}")


FILL = "dd if=/dev/zero of=%s/.filler bs=1M 2>&1 | grep -q 'No space left'"
USE_UP = "mkdir %s/.filler && cd %s/.filler && ! seq 1000000 | xargs touch 2>/dev/null"


def full(name: str, unit: str, folder: str) -> Fault:
    """Return the fault of a disk that is full."""
    return Fault(
        f"full-{name}",
        f"the disk of {name} full for 20 s",
        partial(inside, SERVER, FILL % folder),
        mend=partial(inside, SERVER, f"rm {folder}/.filler"),
        lasts=20,
        limit=120,
        around=partial(small_disk, unit, folder, 300),
    )


def inodes(name: str, unit: str, folder: str) -> Fault:
    """Return the fault of a disk that has space, but can hold no further file."""
    return Fault(
        f"inodes-{name}",
        f"no inode left on the disk of {name} for 20 s",
        partial(inside, SERVER, USE_UP % (folder, folder)),
        mend=partial(inside, SERVER, f"rm -r {folder}/.filler"),
        lasts=20,
        limit=120,
        around=partial(small_disk, unit, folder, 300, 500),
    )


# -- Backups


def back_up() -> None:
    """Take a set, read all of it, and ask whether something is wrong with the backups."""
    program = "cd / && runuser -u postgres -- metalworks-backup"
    inside(SERVER, f"systemctl start metalworks-backup && {program} check --everything && {program} status")


def power_during_backup() -> Fault:
    """Return the fault of a services host that loses its power while a set is taken."""
    fault = power(SERVER)

    def make() -> None:
        inside(SERVER, "systemctl start --no-block metalworks-backup")
        copying = "pgrep --exact pgbackrest || pgrep --exact rclone"
        inside(SERVER, f"timeout 60 sh -c 'until {copying}; do sleep 0.1; done'")
        fault.make()

    what = f"{fault.what} while a set is taken"
    return replace(fault, name=f"{fault.name}-backup", what=what, make=make, after=back_up)


# -- Certificates


def expired(certificate: str, key: str) -> str:
    """Return a certificate of the lab's CA with all that this one says, but which ended yesterday."""
    old = x509.load_pem_x509_certificate(certificate.encode())
    signer = load_pem_private_key(key.encode(), None)
    now = datetime.datetime.now(datetime.UTC)
    new = x509.CertificateBuilder(
        issuer_name=old.issuer,
        subject_name=old.subject,
        public_key=old.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(days=30),
        not_valid_after=now - datetime.timedelta(days=1),
        extensions=list(old.extensions),
    )
    return new.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def expire() -> None:
    """Let the gateway's certificate end."""
    file = "/etc/metalworks/tls/host.crt"
    key = lab_hosts.secrets()["vault_ca_private_key"]
    inside(SERVER, f"cat >{file} && systemctl reload nginx", expired(inside(SERVER, f"cat {file}"), key))


def converge() -> None:
    """Run site.yml, as an operator does."""
    argv = ["ansible-playbook", "-i", str(lab_hosts.INVENTORY), "site.yml", "--limit", SERVER]
    done = subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(failure(argv, done.returncode, done.stdout + done.stderr, lines=30))


def all_faults() -> list[Fault]:
    """Return all faults, quick ones first."""
    store, database = ("minio", "minio", "/var/lib/minio"), ("postgresql", "postgresql@15-main", "/var/lib/postgresql")
    return [
        *kills(),
        *stops(),
        *(reboot(name) for name in ("cpu-1", "gpu-1", "dev-1")),
        reboot(SERVER),
        power(SERVER),
        power_during_backup(),
        cut("offsite", 60, 120, back_up),
        cut("cpu-1", 30, 90),
        cut("cpu-1", SILENT_SECONDS + 80, 120),
        cut(SERVER, 60, 120),
        without_dns(),
        full(*store),
        full(*database),
        inodes(*store),
        Fault(
            "certificate",
            f"the certificate of {SERVER} expired",
            expire,
            mend=converge,
            lasts=10,
            limit=600,
            hand=f"ansible-playbook site.yml --limit {SERVER}",
        ),
    ]

"""Releases of a hash-locked Python environment: the current one, and earlier ones for a rollback."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .system_user import ensure_system_user

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

TEXT, PATH = {"type": "str", "default": ""}, {"type": "path", "required": True}
SPEC: dict[str, Any] = {
    "root": PATH,
    "user": TEXT,
    "lock": PATH,
    "lock_sha256": {"type": "str", "required": True},
    "wheel": TEXT,
    "python": PATH,
    "keep": {"type": "int", "default": 2},
    "databases": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "scripts": {"type": "str", "required": True},
            "versions": TEXT,
            "table": {"type": "str", "default": "alembic_version"},
        },
    },
    "inquiry": TEXT,
    "settings": {"type": "str", "default": "{}", "no_log": True},
    "migrate": {"type": "bool", "default": False},
    "stage": {"type": "bool", "default": False},
}
"""Argument spec of a release; the action plugin sets `lock`, `lock_sha256`, `wheel`, `inquiry` and `settings`."""

UV = "/usr/local/bin/uv"
MARKER = ".complete"
CACHE = "/var/cache/metalworks/uv"
ENVIRONMENT = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "UV_CACHE_DIR": CACHE}
WHEELS = Path("/opt/metalworks/wheels")
"""The project's own packages, each in a folder named after the digest of its sources."""


def missing(wants: dict[str, Any], dry: bool) -> list[str]:
    """Return the paths of files that the host needs before it can build the release, and create their folders."""
    lock, wheel = Path(wants["lock"]), wants["wheel"]
    sent = []
    if not (lock.exists() and digest(lock) == wants["lock_sha256"]):
        sent.append(str(lock))
    if wheel and not Path(wheel).exists():  # named after its content
        sent.append(wheel)
    for place in map(Path, [] if dry else sent):
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    return sent


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def identity(module: AnsibleModule, wants: dict[str, Any]) -> str:
    """Return the release's id: 16 hexadecimal digits over lock, package and interpreter version."""
    version = module.run_command([wants["python"], "--version"], check_rc=True)[1]
    total = hashlib.sha256(Path(wants["lock"]).read_bytes())
    total.update(f"{wants['wheel']}\0{version}".encode())
    return total.hexdigest()[:16]


def install(module: AnsibleModule, wants: dict[str, Any], release: Path) -> None:
    """Build the release from scratch; remove it if that fails."""
    if release.exists():
        shutil.rmtree(release)
    into = [UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(release / "bin/python")]
    steps = [
        [UV, "venv", "--quiet", "--python", wants["python"], str(release)],
        [*into, "--require-hashes", "--requirement", wants["lock"]],
    ]
    if wants["wheel"]:
        steps.append([*into, "--no-deps", wants["wheel"]])
    for step in steps:
        code, out, err = module.run_command(step, environ_update=ENVIRONMENT, cwd="/")
        if code:
            shutil.rmtree(release, ignore_errors=True)
            module.fail_json(
                msg=f"Cannot install the environment; the current release stays in use.\n{' '.join(step)}\n{out}{err}"
            )
    # uv's lock file, which it leaves writable for everyone.
    (release / ".lock").unlink(missing_ok=True)
    (release / MARKER).touch()


def migrations(module: AnsibleModule, wants: dict[str, Any], release: Path) -> list[dict[str, Any]]:
    """Return the state of the databases, as the release itself sees it; connect as its user."""
    if not wants["databases"]:
        return []
    command = ["runuser", "--user", wants["user"], "--", str(release / "bin/python"), "-c", wants["inquiry"]]
    # Drivers look for certificates at home, and root's is closed to this user.
    settings = {"HOME": "/", **json.loads(wants["settings"])}
    code, out, err = module.run_command(command, data=json.dumps(wants["databases"]), environ_update=settings, cwd="/")
    if code:
        module.fail_json(msg=f"Cannot read the databases' revisions; the current release stays in use.\n{err}")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def refusal(states: list[dict[str, Any]], migrate: bool) -> str:
    """Return why the release may not run with its databases as they are, or an empty string."""
    for state in states:
        if state["unknown"]:
            return (
                f"Database {state['name']} was migrated by a newer release (to {', '.join(state['at'])}), which this "
                "one cannot read. Install that release again, or run playbooks/rollback.yml, which brings back the "
                "database as it was before. The current release stays in use."
            )
    pending = {state["name"]: len(state["pending"]) for state in states if state["pending"]}
    if pending and not migrate:
        counts = ", ".join(f"{count} in database {name}" for name, count in pending.items())
        return (
            f"This release has migrations to make, and there is no way back from them: {counts}. Run "
            "playbooks/upgrade.yml, which copies the databases first. The current release stays in use."
        )
    return ""


def packages(release: Path) -> set[str]:
    """Return the installed packages, each as name-version."""
    return {path.name.removesuffix(".dist-info") for path in release.glob("lib/*/site-packages/*.dist-info")}


def forget(module: AnsibleModule, had: set[str], root: Path) -> None:
    """Remove packages of removed releases from uv's cache, and wheels that a newer one has replaced.

    Packages that a release of another program still uses are kept.
    """
    left = had - {package for release in root.parent.glob("*/releases/*/") for package in packages(release)}
    if names := sorted({package.partition("-")[0] for package in left}):
        clean = [UV, "cache", "clean", "--quiet", *names]
        module.run_command(clean, environ_update=ENVIRONMENT, cwd="/", check_rc=True)
    folder = Path(module.params["wheel"] or "/").parent
    for other in WHEELS.glob("*/") if folder.parent == WHEELS else ():
        if other != folder:
            shutil.rmtree(other)


def tidy(releases: Path, current: Path, keep: int) -> tuple[list[str], set[str]]:
    """Remove old releases beyond those to keep; return their ids and their packages."""
    others = [path for path in releases.iterdir() if path.resolve() != current.resolve()]
    complete = sorted(
        (path for path in others if (path / MARKER).exists()), key=lambda path: -(path / MARKER).stat().st_mtime
    )
    gone = [path for path in others if path not in complete[:keep]]
    had = {package for path in gone for package in packages(path)}
    for path in gone:
        shutil.rmtree(path)
    return [path.name for path in gone], had


def converge(module: AnsibleModule, wants: dict[str, Any]) -> dict[str, Any]:
    """Make the wanted release the current one; return what was done, or which files are missing."""
    made = ensure_system_user(module, wants["user"]) if wants["user"] else False
    if lacks := missing(wants, module.check_mode):
        return {"changed": True, "missing": lacks}
    root, name = Path(wants["root"]), identity(module, wants)
    releases, current = root / "releases", root / "current"
    release = releases / name
    complete, linked = (release / MARKER).exists(), current.is_symlink() and current.resolve() == release
    if module.check_mode or (complete and linked and not wants["stage"]):
        return {"changed": made or not (complete and linked), "missing": [], "release": name}
    releases.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (release / MARKER).exists():
            install(module, wants, release)
        # A first installation has no databases yet, or empty ones, and no user's files to reach them by.
        before = current.resolve().name if current.is_symlink() else ""
        states = migrations(module, wants, release) if before else []
        if wants["stage"]:
            return {
                "changed": made or not complete,
                "missing": [],
                "release": name,
                "before": before,
                "migrations": states,
                "versions": {"release": sorted(packages(release)), "before": sorted(packages(releases / before))},
            }
        if why := refusal(states, wants["migrate"]):
            module.fail_json(msg=why)
        # The marker's age is when the release last became current; tidy() sorts by it.
        (release / MARKER).touch()
        fresh = root / "current.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(release)
        fresh.replace(current)
        gone, had = tidy(releases, current, wants["keep"])
        forget(module, had, root)
        return {"changed": True, "missing": [], "release": name, "removed": gone}

#!/usr/bin/python
"""Install a hash-locked Python environment as a release and point `current` at it, in one call."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: python_release
short_description: A hash-locked Python environment stands complete, and is the current one
description:
  - Makes C(<root>/releases/<id>), where the id is the digest of lock, package and interpreter version, and points
    C(<root>/current) at it. The same input is no work.
  - A marker is written last. A release without it is what a killed install left, and is removed first; a failed
    install is removed too. C(current) does not move before the release is complete.
  - What is kept of older ones stays within bounds, be it releases, wheels or packages in uv's cache.
options:
  root: {type: path, required: true, description: Folder of the program.}
  requirements: {type: path, required: true, description: Requirements file with hashes, on the host.}
  wheel: {type: str, default: "", description: One more wheel, installed without dependencies.}
  python: {type: path, required: true, description: Interpreter of the environment.}
  keep: {type: int, default: 2, description: Complete releases to keep besides the current one.}
  build_user:
    type: str
    default: ""
    description:
      - Who installs what the lock names, when somebody else wrote it. Installing runs code of what is installed.
      - The release is root's in the end. If empty, root installs.
"""

RETURN = """
release: {type: str, returned: success, description: Id of the current release.}
"""

UV = "/usr/local/bin/uv"
MARKER = ".complete"
ENVIRONMENT = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
CACHE = "/var/cache/metalworks/uv"
WHEELS = Path("/opt/metalworks/wheels")
"""The project's own packages, each in a folder that is named after its sources."""


def identity(module: AnsibleModule) -> str:
    """Return the release's id: 16 hexadecimal digits over lock, package and interpreter version."""
    wants = module.params
    version = module.run_command([wants["python"], "--version"], check_rc=True)[1]
    total = hashlib.sha256(Path(wants["requirements"]).read_bytes())
    total.update(f"{wants['wheel']}\0{version}".encode())
    return total.hexdigest()[:16]


def as_user(name: str) -> tuple[list[str], dict[str, str]]:
    """Return how to run a program as somebody else, and the environment for it: nothing there is shared with root."""
    own = Path(f"{CACHE}-{name}")
    own.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(own, name)
    prefix = ["setpriv", f"--reuid={name}", f"--regid={name}", "--clear-groups", "--no-new-privs"]
    # Copies: what is root's in the end is not also in a folder of theirs.
    return prefix, {"HOME": str(own), "UV_CACHE_DIR": str(own), "UV_LINK_MODE": "copy"}


def give_to_root(release: Path) -> None:
    """Make everything in the release root's; links are not followed."""
    for folder, folders, files in os.walk(release):
        for name in (*folders, *files):
            os.lchown(Path(folder, name), 0, 0)
    os.lchown(release, 0, 0)


def install(module: AnsibleModule, release: Path) -> None:
    """Build the release from nothing; leave nothing of it behind when that fails."""
    wants = module.params
    if release.exists():
        shutil.rmtree(release)
    prefix, environment = as_user(wants["build_user"]) if wants["build_user"] else ([], {"UV_CACHE_DIR": CACHE})
    if wants["build_user"]:
        release.mkdir()
        shutil.chown(release, wants["build_user"])
    into = [UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(release / "bin/python")]
    steps = [
        [UV, "venv", "--quiet", "--python", wants["python"], str(release)],
        [*into, "--require-hashes", "--requirement", wants["requirements"]],
    ]
    if wants["wheel"]:
        steps.append([*into, "--no-deps", wants["wheel"]])
    for step in steps:
        code, out, err = module.run_command([*prefix, *step], environ_update=ENVIRONMENT | environment, cwd="/")
        if code:
            shutil.rmtree(release, ignore_errors=True)
            module.fail_json(
                msg=f"The environment could not be installed; the current release keeps serving.\n"
                f"{' '.join(step)}\n{out}{err}"
            )
    # uv's own lock, which it leaves behind for everybody to write.
    (release / ".lock").unlink(missing_ok=True)
    if wants["build_user"]:
        give_to_root(release)
    (release / MARKER).touch()


def packages(release: Path) -> set[str]:
    """Return what is installed, each as name-version."""
    return {path.name.removesuffix(".dist-info") for path in release.glob("lib/*/site-packages/*.dist-info")}


def forget(module: AnsibleModule, had: set[str], root: Path) -> None:
    """Have uv forget the packages that went with releases, and the wheels that this one has taken the place of.

    Another program's release may have a package in the same version: that is still worth keeping.
    """
    left = had - {package for release in root.parent.glob("*/releases/*/") for package in packages(release)}
    if names := sorted({package.partition("-")[0] for package in left}):
        clean = [UV, "cache", "clean", "--quiet", *names]
        module.run_command(clean, environ_update=ENVIRONMENT | {"UV_CACHE_DIR": CACHE}, cwd="/", check_rc=True)
    folder = Path(module.params["wheel"] or "/").parent
    for other in WHEELS.glob("*/") if folder.parent == WHEELS else ():
        if other != folder:
            shutil.rmtree(other)


def tidy(releases: Path, current: Path, keep: int) -> tuple[list[str], set[str]]:
    """Remove the releases that nobody will go back to; return their ids, and what was installed in them."""
    others = [path for path in releases.iterdir() if path.resolve() != current.resolve()]
    complete = sorted(
        (path for path in others if (path / MARKER).exists()), key=lambda path: -(path / MARKER).stat().st_mtime
    )
    gone = [path for path in others if path not in complete[:keep]]
    had = {package for path in gone for package in packages(path)}
    for path in gone:
        shutil.rmtree(path)
    return [path.name for path in gone], had


def converge(module: AnsibleModule) -> dict[str, object]:
    """Make the wanted release the current one; return what was done."""
    root = Path(module.params["root"])
    if module.check_mode and not Path(module.params["requirements"]).exists():
        return {"changed": True}
    name = identity(module)
    releases, current = root / "releases", root / "current"
    release = releases / name
    complete, linked = (release / MARKER).exists(), current.is_symlink() and current.resolve() == release
    if module.check_mode or (complete and linked):
        return {"changed": not (complete and linked), "release": name}
    os.umask(0o022)
    releases.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (release / MARKER).exists():
            install(module, release)
        # The marker's age says when a release was last made current, which is what tidy() sorts by.
        (release / MARKER).touch()
        fresh = root / "current.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(release)
        fresh.replace(current)
        removed, had = tidy(releases, current, module.params["keep"])
        forget(module, had, root)
        return {"changed": True, "release": name, "removed": removed}


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "requirements": {"type": "path", "required": True},
            "wheel": {"type": "str", "default": ""},
            "python": {"type": "path", "required": True},
            "keep": {"type": "int", "default": 2},
            "build_user": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    module.exit_json(**converge(module))


if __name__ == "__main__":
    main()

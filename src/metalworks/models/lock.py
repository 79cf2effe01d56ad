"""The environment a model is served in: what the server needs and what the model recorded, locked with hashes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from metalworks.models.errors import FetchError

FILE_NAME = "requirements.lock"

SERVER_REQUIREMENTS = ("fastapi>=0.115", "uvicorn[standard]>=0.35", "pydantic-settings>=2.10")
"""What the server needs besides MLflow, whose version is the one in the server's own lock."""


def ensure_lock(version_dir: Path, server_lock: Path, *, uv: str = "uv") -> bool:
    """Make the lock of a fetched version be the one its requirements ask for; tell whether that was work.

    Models that record the same requirements share one lock, hence one environment. Otherwise versions are chosen
    anew only where they must be: those in the server's own lock come first, then those of the newest lock beside
    this one.
    """
    recorded = version_dir / "model" / "requirements.txt"
    if not recorded.is_file():
        raise FetchError(f"{recorded} is missing: log the model with its requirements")
    server = pins(server_lock.read_text())
    _check_mlflow(recorded, server["mlflow"])
    wanted = "\n".join([f"mlflow=={server['mlflow']}", *SERVER_REQUIREMENTS]) + "\n"
    header = f"# Locked by metalworks-model from requirements {_digest(wanted, server, recorded)}\n"
    lock = version_dir / FILE_NAME
    known = sorted(version_dir.parent.glob(f"*/{FILE_NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    fitting = [path for path in known if path.read_text().startswith(header)]
    if lock in fitting:
        return False
    new = version_dir / f"{FILE_NAME}.new"
    if fitting:
        new.write_bytes(fitting[0].read_bytes())
    else:
        new.write_text(_as_text((pins(known[0].read_text()) if known else {}) | server))
        _compile(version_dir, wanted, new, uv)
        new.write_text(header + new.read_text())
    new.replace(lock)
    return True


def pins(text: str) -> dict[str, str]:
    """Return what a lock installs on this host: versions by name."""
    return {
        canonicalize_name(each.name): specifier.version
        for each in _requirements(text)
        for specifier in each.specifier
        if specifier.operator == "==" and (each.marker is None or each.marker.evaluate())
    }


def _requirements(text: str) -> Iterator[Requirement]:
    """Yield the packages a requirements file names; its options, comments and paths are for uv to judge."""
    for line in text.splitlines():
        try:
            yield Requirement(line.partition(" #")[0].removesuffix("\\").strip())
        except InvalidRequirement:
            continue


def _check_mlflow(recorded: Path, ours: str) -> None:
    """Refuse a model that asks for another MLflow than the server runs with."""
    for each in _requirements(recorded.read_text()):
        is_mlflow = canonicalize_name(each.name) in {"mlflow", "mlflow-skinny"}
        if is_mlflow and not each.specifier.contains(ours, prereleases=True):
            raise FetchError(
                f"the model was recorded with {each}, but this platform serves with mlflow {ours}: "
                f"log the model again with mlflow {ours}"
            )


def _digest(wanted: str, server: Mapping[str, str], recorded: Path) -> str:
    digest = hashlib.sha256(f"{wanted}\n{_as_text(server)}\n".encode())
    for file in (recorded, recorded.with_name("constraints.txt")):
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _as_text(pinned: Mapping[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in sorted(pinned.items()))


def _compile(version_dir: Path, wanted: str, output: Path, uv: str) -> None:
    """Resolve; uv prefers the versions that stand in the output file already."""
    command = [uv, "pip", "compile", "-", "model/requirements.txt", "--output-file", output.name, "--quiet"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--python", sys.executable]
    try:
        subprocess.run(command, cwd=version_dir, input=wanted, text=True, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise FetchError(f"{uv} is not installed on this host") from error
    except subprocess.CalledProcessError as error:
        raise FetchError(f"no environment holds the server's and the model's requirements:\n{error.stderr}") from error

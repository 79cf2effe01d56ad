"""The environment a model is served in: what the server needs and what the model recorded, locked with hashes."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from metalworks.models.errors import FetchError

FILE_NAME = "requirements.lock"

SERVER_REQUIREMENTS = ("fastapi>=0.115", "uvicorn[standard]>=0.35", "pydantic-settings>=2.10")
"""What the server needs besides MLflow, whose version is the one this program itself runs with."""

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def ensure_lock(version_dir: Path, *, uv: str = "uv") -> bool:
    """Make the lock of a fetched version be the one its requirements ask for; tell whether that was work.

    Versions are chosen anew only where they must be: those of this program's own environment come first, then those
    of the newest lock beside this one. So models that record the same requirements share one environment.
    """
    requirements = version_dir / "model" / "requirements.txt"
    if not requirements.is_file():
        raise FetchError(f"{requirements} is missing: log the model with its requirements")
    _check_mlflow(requirements)
    wanted = "\n".join([f"mlflow=={metadata.version('mlflow')}", *SERVER_REQUIREMENTS]) + "\n"
    installed = _installed()
    lock = version_dir / FILE_NAME
    header = f"# Locked by metalworks-model from requirements {_digest(wanted, installed, requirements)}\n"
    if lock.is_file() and lock.read_text().startswith(header):
        return False
    new = version_dir / f"{FILE_NAME}.new"
    new.write_text(_as_text(_neighbours(version_dir) | installed))
    _compile(version_dir, wanted, new, uv)
    new.write_text(header + new.read_text())
    new.replace(lock)
    return True


def pins(text: str) -> dict[str, str]:
    """Return the versions that a lock pins, by name."""
    return {str(canonicalize_name(name)): version for name, version in _PIN.findall(text)}


def _check_mlflow(requirements: Path) -> None:
    """Refuse a model that asks for another MLflow than the server runs with."""
    ours = metadata.version("mlflow")
    for line in requirements.read_text().splitlines():
        try:
            requirement = Requirement(line.partition(" #")[0].strip())
        except InvalidRequirement:  # an option, a comment or a path: uv judges those
            continue
        if canonicalize_name(requirement.name) in {"mlflow", "mlflow-skinny"} and not requirement.specifier.contains(
            ours, prereleases=True
        ):
            raise FetchError(
                f"the model was recorded with {requirement}, but this platform serves with mlflow {ours}: "
                f"log the model again with mlflow {ours}"
            )


def _installed() -> dict[str, str]:
    """Return the versions of this program's own environment, which are those the server is tested with."""
    found = {canonicalize_name(item.metadata["Name"]): item.version for item in metadata.distributions()}
    return {str(name): version for name, version in sorted(found.items()) if name != "metalworks"}


def _neighbours(version_dir: Path) -> dict[str, str]:
    """Return the versions in the newest lock of the same service."""
    locks = sorted(version_dir.parent.glob(f"*/{FILE_NAME}"), key=lambda lock: lock.stat().st_mtime)
    if not locks:
        return {}
    return pins(locks[-1].read_text())


def _digest(wanted: str, installed: Mapping[str, str], requirements: Path) -> str:
    digest = hashlib.sha256(f"{wanted}\n{_as_text(installed)}\n".encode())
    for file in (requirements, requirements.with_name("constraints.txt")):
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _as_text(pins: Mapping[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


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

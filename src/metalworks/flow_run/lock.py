"""The lock file of a project: uv.lock, or a requirements.txt that pins everything."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from metalworks.environments import normalize_name
from metalworks.errors import FlowRunError
from metalworks.requirement_files import Requirements, RequirementsError, read, requirement_lines

PIN = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^]]*])?\s*(===?\s*(?P<version>[^\s;*,]+)\s*(;.*)?$|@\s*\S+)"
)
"""A line that allows exactly one version."""
WHEEL = re.compile(r"(\./)?(?!/)[\w./+-]+\.whl\s*(;.*)?$")
"""A line that names a wheel in the project; its file name has the version."""
CHOICES = (
    "--index-url",
    "--extra-index-url",
    "-i",
    "--find-links",
    "-f",
    "--no-index",
    "--only-binary",
    "--no-binary",
    "--pre",
)
"""Options in a requirements.txt that say where packages come from; other options add packages."""


@cache
def _parsed(text: str) -> dict[str, Any]:
    return tomllib.loads(text)  # parsing a large uv.lock takes 0.1 s, and several callers need it


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's content. It is cached: do not change it."""
    try:
        return _parsed(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise FlowRunError(f"{path.name} is not valid TOML: {error}") from error


def settings(code: Path) -> dict[str, Any]:
    """Return the content of the project's pyproject.toml, empty if there is none."""
    path = code / "pyproject.toml"
    return read_toml(path) if path.is_file() else {}


def lock_of(code: Path) -> Path:
    """Return the file that the project's environment is built from: uv.lock if there is one."""
    lock, requirements = code / "uv.lock", code / "requirements.txt"
    if lock.is_file():
        if not (code / "pyproject.toml").is_file():
            raise FlowRunError("The flow's code has uv.lock but no pyproject.toml: deploy the folder that has both.")
        return lock
    if not requirements.is_file():
        raise FlowRunError(
            "The flow's code has neither uv.lock nor requirements.txt at its root: run `uv lock`, or deploy the "
            "folder that has one."
        )
    return requirements


def has_hashes(text: str) -> bool:
    """Tell whether a requirements.txt contains hashes."""
    return any("--hash" in line for _, line in requirement_lines(text))


def _pin(line: str) -> re.Match[str] | None:
    """Return what a line pins, ignoring its hashes."""
    return PIN.match(re.sub(r"\s--hash[=\s]\S+", "", line).strip())


def check_requirements(text: str) -> None:
    """Refuse a requirements.txt that does not pin everything."""
    loose = []
    for number, line in requirement_lines(text):
        if line.split("=")[0].split()[0] in CHOICES or WHEEL.match(line):
            continue
        if not _pin(line):
            loose.append(f"  line {number}: {line}")
    if loose:
        raise FlowRunError(
            "The flow's requirements.txt does not pin everything (name==version), so environments built from it can "
            "differ. Generate it from these lines with `uv pip compile --generate-hashes`, or use `uv lock`:\n"
            + "\n".join(loose)
        )


def requirements_of(code: Path) -> Requirements:
    """Return the content of the project's requirements.txt; refuse one that does not pin everything."""
    file = code / "requirements.txt"
    check_requirements(file.read_text())
    try:
        return read(file, code)
    except RequirementsError as error:
        raise FlowRunError(f"The flow's requirements.txt cannot be used: {error}.") from error


def locked_versions(code: Path) -> dict[str, str]:
    """Return the locked package → version; the version is empty if the file does not have it."""
    lock = lock_of(code)
    if lock.name == "uv.lock":
        packages = read_toml(lock).get("package", [])
        return {package["name"]: package.get("version", "") for package in packages}
    pins = (_pin(line) for _, line in requirement_lines(lock.read_text()))
    return {normalize_name(pin["name"]): (pin["version"] or "") for pin in pins if pin}

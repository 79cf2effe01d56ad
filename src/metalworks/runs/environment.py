"""Rebuild the environment of a run, once per machine and list of packages."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from metalworks import environments
from metalworks.environments import MARKER, normalize_name, uv_variables
from metalworks.errors import CommandError
from metalworks.flow_run.environment import prune
from metalworks.install_errors import explain
from metalworks.requirement_files import (
    PASS_OVER,
    RequirementsError,
    Sources,
    may_pass_over,
    read,
    site_indexes,
    wrong_index,
)
from metalworks.runs import record
from metalworks.runs.record import Recorded
from metalworks.runs.start import inside

OURS = {"metalworks", "metalworks-mlflow"}
"""Packages that are on no index; the plugin is on PYTHONPATH."""
PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
IN_DEVELOPMENT = re.compile(r"# in development: (?P<name>[A-Za-z0-9._-]+)==\S+ from (?P<url>\S+)")
"""What the plugin writes about an editable package: a comment, because its version is on no index."""
NAMED = 10
"""Name at most this many differing packages, and count the others."""


def cache_folder() -> Path:
    """Return the folder of the user's environments and reproductions."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metalworks"


@dataclass
class Packages:
    """The packages in a requirements.txt: those on an index, and those in the repository."""

    lines: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    """Folders of local packages in the clone."""
    missing: list[str] = field(default_factory=list)


def sort_out(requirements: str, project: Path, clone: Path) -> Packages:
    """Separate packages from an index from local ones."""
    found = Packages()
    for line in map(str.strip, requirements.splitlines()):
        if developed := IN_DEVELOPMENT.fullmatch(line):
            line = f"-e {developed['name']} @ {developed['url']}"
        if not line or line.startswith("#"):
            continue
        editable = line.startswith("-e ")
        line = line.removeprefix("-e ").strip()
        name, at, url = (part.strip() for part in line.partition(" @ "))
        if normalize_name(re.split("[ =]", name)[0]) in OURS:
            continue
        if url.startswith("file:") or (editable and not at and "+" not in line.split(":")[0]):
            _local(name if at else None, url or line, found, project, clone)
        elif line.startswith("-"):
            found.missing.append(f"environment: versions/requirements.txt has an unsupported option: {line}")
        else:
            found.lines.append(line)
    return found


def _local(name: str | None, url: str, found: Packages, project: Path, clone: Path) -> None:
    """Find a package that was installed from a folder in the clone; the project itself is there anyway."""
    path = Path(unquote(urlsplit(url).path) if url.startswith("file:") else url)
    if path.suffix in (".whl", ".gz", ".zip"):
        if name is not None and (file := inside(path, project, clone)) is not None:
            found.lines.append(f"{name} @ {file.resolve().as_uri()}")
            return
        found.missing.append(f"environment: {path.name} was installed from a local file: publish it on an index")
        return
    for start in range(1, len(path.parts)):
        folder = inside(Path(*path.parts[start:]), project, clone)
        if folder is not None and any((folder / file).is_file() for file in PROJECT_FILES):
            found.folders.append(folder)
            return
    own = {_name(folder) for folder in (project, clone)} - {None}
    if name is not None and own and normalize_name(name) not in own:
        found.missing.append(f"environment: {name} was installed from {path}, which is not in the repository")


def _name(folder: Path) -> str | None:
    """Return the name of the project in a folder."""
    try:
        found = tomllib.loads((folder / "pyproject.toml").read_text()).get("project", {}).get("name")
    except (OSError, tomllib.TOMLDecodeError):
        return None
    return normalize_name(found) if found else None


def python_path(project: Path, folders: list[Path], inherited: str) -> str:
    """Return PYTHONPATH for the command: the project, its local packages, the inherited value, the plugin."""
    roots = [place for folder in (project, *folders) for place in (folder, folder / "src") if place.is_dir()]
    plugin = Path(sys.prefix) / "share/metalworks/mlflow_plugin"
    parts = [*map(str, roots), *inherited.split(os.pathsep), *([str(plugin)] if plugin.is_dir() else [])]
    return os.pathsep.join(dict.fromkeys(filter(None, parts)))


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def find_python(version: str) -> Path | None:
    """Return this machine's Python of this version, else of the same minor version, else None."""
    uv = _uv()
    for wanted in (version, ".".join(version.split(".")[:2])):
        line = [uv or "uv", "python", "find", "--no-project", "--no-config", wanted]
        done = subprocess.run(line, env=uv_variables(), capture_output=True, text=True, check=False)
        if not done.returncode:
            return Path(done.stdout.strip())
    return None


def check(old: Recorded) -> tuple[Path | None, list[str]]:
    """Return the Python that the recorded environment needs, and what is missing to build the environment."""
    missing = []
    if old.requirements is None:
        missing.append("environment: its packages are not recorded (no file versions/requirements.txt)")
    if _uv() is None:
        return None, [*missing, "environment: uv is not installed on this machine"]
    version = old.tags.get(record.PYTHON, "")
    if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\S*", version):
        return None, [*missing, "environment: its Python version is not recorded"]
    python = find_python(version)
    if python is None:
        missing.append(f"environment: this machine has no Python {version}: `uv python install {version}`")
    return python, missing


def indexes(*folders: Path) -> str:
    """Return which packages the project takes from which index, as the TOML of its settings of uv; empty: it says none.

    The first of these folders that has such settings is the project.
    """
    for folder in folders:
        try:
            found = tomllib.loads((folder / "pyproject.toml").read_text()).get("tool", {}).get("uv", {})
        except (OSError, tomllib.TOMLDecodeError):
            continue
        if not found.get("index"):
            continue
        given = found.get("sources", {})
        listed = {name: source if isinstance(source, list) else [source] for name, source in given.items()}
        chosen = {name: [one for one in source if "index" in one] for name, source in listed.items()}
        sources = [f"{json.dumps(name)} = {_toml(source)}" for name, source in chosen.items() if source]
        return "\n".join([f"[tool.uv]\nindex = {_toml(found['index'])}", "[tool.uv.sources]", *sources, ""])
    return ""


def _toml(value: Any) -> str:
    """Return a value of such settings as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def sources(*folders: Path) -> Sources:
    """Return the sources that requirements.txt names, from the first of these folders that has the file."""
    for folder in folders:
        file = folder / "requirements.txt"
        if file.is_file():
            try:
                found = read(file, folder).sources
            except (RequirementsError, UnicodeDecodeError):
                break
            # uv runs elsewhere, and would look for the project's folders there.
            found.links = [link if "://" in link else str(folder / link) for link in found.links]
            return found
    return Sources()


def build(
    python: Path,
    lines: list[str],
    tell: Callable[[str], None],
    settings: str = "",
    sources: Sources | None = None,
) -> Path:
    """Return an environment with exactly these packages; raise CommandError when they cannot be installed.

    `settings` and `sources` say from which indexes the project takes packages, besides the site's and the machine's.
    """
    sources = sources or Sources()
    identity = "\n".join(
        [
            version(python),
            *sorted(lines),
            *([settings] if settings else []),
            *sources.indexes,
            *_contents(sources.links),
        ]
    )
    target = cache_folder() / "environments" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / MARKER).exists():
            tell(f"Building the environment with {len(lines)} packages; other runs with the same ones reuse it.")
            began = time.monotonic()
            _install(python, lines, target, lock.fileno(), settings, sources)
            prune(cache_folder())
            tell(f"Built in {time.monotonic() - began:.1f} s.")
        (target / MARKER).touch()
    return target


def _contents(links: list[str]) -> list[str]:
    """Return what identifies the packages of find-links: folders of a clone have another path each time."""
    return [
        hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else link
        for link in links
        for file in (sorted(Path(link).glob("*")) if Path(link).is_dir() else [Path(link)])
    ]


def _install(python: Path, lines: list[str], target: Path, lock: int, settings: str, sources: Sources) -> None:
    uv, site = _uv() or "uv", site_indexes()
    into = [uv, "pip", "install", "--quiet", "--no-deps", "--python", f"{target}/bin/python", "--requirements"]
    with tempfile.TemporaryDirectory() as place:
        # As a project, because uv reads only a project's settings of package indexes.
        project = Path(place, "pyproject.toml")
        listed = f"dependencies = {json.dumps(lines)}"
        project.write_text(f'[project]\nname = "the-run"\nversion = "0"\n{listed}\n{settings}')
        commands = [[uv, "venv", "--quiet", "--no-project", "--no-config", "--python", str(python), str(target)]]
        commands += [[*into, str(project)]] if lines else []
        variables = uv_variables() | sources.variables(site)
        if why := wrong_index([uv, "--python", str(python)], lines, site, variables, Path(place)):
            raise CommandError(f"cannot build the recorded environment:\n{why}")
        error = environments.build(target, commands, lock, env=variables, cwd=place)
        if may_pass_over(error):
            error = environments.build(target, commands, lock, env=variables | PASS_OVER, cwd=place)
        if error:
            raise CommandError(f"cannot build the recorded environment:\n{explain(error, model=False)}")


def version(python: Path) -> str:
    """Return an interpreter's `sys.version`."""
    line = [str(python), "-c", "import sys; print(sys.version)"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()


def current() -> Path:
    """Return the active environment, else the one of this program."""
    return Path(os.environ.get("VIRTUAL_ENV") or sys.prefix)


def differences(environment: Path, old: Recorded) -> list[str]:
    """Describe how the installed packages differ from those of the run; additional packages do not matter.

    Packages installed from a URL are skipped: their version is not recorded.
    """
    here, python = _installed(environment)
    lines = []
    if old.tags.get(record.PYTHON) != python:
        lines.append(f"Python {python} here, {old.tags.get(record.PYTHON, 'unknown')} in the run.")
    then = old.packages
    if then is None:
        return [*lines, "The packages of the run are not recorded."]
    names = sorted(name for name in then.keys() - OURS if here.get(name) != then[name] and "://" not in then[name])
    if not names:
        return [*lines, "The packages are the same as in the run."]
    shown = [f"{name} {here.get(name, 'absent')} (run: {then[name]})" for name in names[:NAMED]]
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return [*lines, f"Packages that differ: {', '.join([*shown, *more])}."]


def _installed(environment: Path) -> tuple[Mapping[str, str], str]:
    script = (
        "import importlib.metadata as m, json, platform;"
        "print(json.dumps([{d.name: d.version for d in m.distributions()}, platform.python_version()]))"
    )
    line = [str(environment / "bin/python"), "-I", "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{environment} is not a Python environment: {done.stderr.strip()}")
    found, python = json.loads(done.stdout)
    return {normalize_name(name): version for name, version in found.items()}, python

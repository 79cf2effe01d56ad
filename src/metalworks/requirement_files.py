"""Read a requirements.txt as pip does, and tell uv where its packages come from.

pip treats all indexes as equal and takes the newest version that any of them has, so a stranger who publishes a higher
version of a private package gets it installed. uv asks indexes one after another, and takes a package from the first
one that has it. This module gives uv the order: the site's indexes, those that the file names, PyPI.

Some indexes (PyTorch's) have old copies of public packages. Only if nothing satisfies the requirements in that way, uv
looks for other versions in the next index (PASS_OVER). It must not do so at first: an index that refuses a login would
then be passed over silently.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from metalworks.environments import normalize_name
from metalworks.install_errors import explain

SITE = Path("/etc/metalworks/package-indexes.json")
"""The site's indexes without their passwords, which uv reads from the file that NETRC names."""
OPTION = re.compile(r"(?P<name>--[a-z-]+|-[a-z])(?:\s+|=|$)(?P<value>.*)")
INDEX, MORE_INDEXES, LINKS = ("-i", "--index-url"), ("--extra-index-url",), ("-f", "--find-links")
FILES, CONSTRAINTS = ("-r", "--requirement"), ("-c", "--constraint")
PASS_OVER = {"UV_INDEX_STRATEGY": "unsafe-first-match"}
"""Variables with which uv passes over an index that has a package, but not in a version that is wanted."""
PUBLIC = {"pypi.org", "pypi.python.org"}


class RequirementsError(Exception):
    """A requirements.txt cannot be used; the message says why."""


def requirement_lines(text: str) -> list[tuple[int, str]]:
    """Return the numbered lines of a requirements.txt, without comments and with continuation lines joined."""
    found: list[tuple[int, str]] = []
    pending, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        began = began if pending else number
        part = re.sub(r"(^|\s)#.*$", "", line).strip()
        pending = f"{pending} {part.removesuffix(chr(92)).strip()}".strip()
        if not part.endswith(chr(92)) and pending:
            found.append((began, pending))
            pending = ""
    return [*found, (began, pending)] if pending else found


@dataclass(frozen=True, slots=True)
class Index:
    """A package index of the site."""

    url: str
    packages: tuple[str, ...] = ()
    """Packages that come from this index alone, as names or patterns such as acme-*."""

    def owns(self, name: str) -> bool:
        """Tell whether a package comes from this index alone."""
        return any(fnmatch.fnmatchcase(normalize_name(name), normalize_name(each)) for each in self.packages)


def site_indexes(file: Path = SITE) -> list[Index]:
    """Return the site's package indexes, in the order in which to ask them."""
    if not file.is_file():
        return []
    return [Index(each["url"], tuple(each.get("packages", ()))) for each in json.loads(file.read_text())]


@dataclass(slots=True)
class Sources:
    """Where the packages of a requirements.txt come from."""

    indexes: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    """Pages and folders that list packages (--find-links)."""
    no_index: bool = False
    prereleases: bool = False

    def variables(self, site: Sequence[Index]) -> dict[str, str]:
        """Return the variables for uv. They may contain a password from the file, so they are not arguments."""
        own = os.environ.get("UV_INDEX", "").split()
        urls = [*(each.url for each in site), *own, *sorted(self.indexes, key=_is_public)]
        found = {"UV_INDEX": " ".join(dict.fromkeys(urls)), "UV_FIND_LINKS": ",".join(self.links)}
        found |= {"UV_NO_INDEX": "true" if self.no_index else "", "UV_PRERELEASE": "allow" if self.prereleases else ""}
        return {name: value for name, value in found.items() if value}


def _is_public(url: str) -> bool:
    return urlsplit(url).hostname in PUBLIC


def may_pass_over(error: str) -> bool:
    """Tell from uv's error whether the next index may have what is wanted."""
    return "but not at the requested version" in error


def without_login(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@dataclass(slots=True)
class Requirements:
    """The content of a requirements.txt and of the files that it includes."""

    lines: list[str] = field(default_factory=list)
    """Packages, and options that are not in `sources`."""
    constraints: list[str] = field(default_factory=list)
    sources: Sources = field(default_factory=Sources)
    files: list[Path] = field(default_factory=list)
    """Packages that are files beside it."""


def read(file: Path, beside: Path) -> Requirements:
    """Read a requirements.txt; local paths in the result are relative to `beside`. Raises RequirementsError.

    Included files must be in the same folder or below: uv would quote any other file of the host in its errors.
    """
    found = Requirements()
    _read(file, file.parent, beside, found, found.lines, ())
    return found


def _read(file: Path, root: Path, beside: Path, found: Requirements, into: list[str], above: tuple[Path, ...]) -> None:
    for _, line in requirement_lines(file.read_text()):
        option = OPTION.fullmatch(line)
        if option is None:
            into.append(_local(line, root, beside, found))
        elif option["name"] in (*FILES, *CONSTRAINTS):
            other = _included(file.parent / option["value"], root)
            if other in above:
                raise RequirementsError(f"{file.name} includes itself")
            constrains = option["name"] in CONSTRAINTS or into is found.constraints
            _read(other, root, beside, found, found.constraints if constrains else into, (*above, other))
        elif not _source(option["name"], option["value"].strip(), root, beside, found.sources):
            into.append(line)


def _included(path: Path, root: Path) -> Path:
    if not path.resolve().is_relative_to(root.resolve()):
        raise RequirementsError(f"it includes {path.name}, which is outside of its folder")
    if not path.is_file():
        raise RequirementsError(f"it includes {path.name}, which is missing")
    return path.resolve()


def _source(name: str, value: str, root: Path, beside: Path, sources: Sources) -> bool:
    """Note an option that says where packages come from; return whether it is one."""
    if name in (*INDEX, *MORE_INDEXES):
        url = re.sub(r"//[^/@]*\$\{[^/]*@", "//", value)  # a variable that only the author has
        sources.indexes = [*sources.indexes, url] if name in INDEX else [url, *sources.indexes]
    elif name in LINKS:
        inside = root / value
        is_inside = "://" not in value and inside.exists() and inside.resolve().is_relative_to(root.resolve())
        sources.links.append(os.path.relpath(inside, beside) if is_inside else value)
    elif name == "--no-index":
        sources.no_index = True
    elif name == "--pre":
        sources.prereleases = True
    else:
        return False
    return True


def _local(line: str, root: Path, beside: Path, found: Requirements) -> str:
    """Return the line, with the path of a file that travels with the requirements made relative to `beside`."""
    words = re.fullmatch(r"(?:(?P<name>[A-Za-z0-9._-]+)\s*@\s*)?(?:file:(?!//))?(?P<path>[^\s;\[]+)(?P<rest>.*)", line)
    if words is None or "://" in words["path"]:
        return line
    path = root / words["path"]
    if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
        return line
    found.files.append(path)
    return f"./{os.path.relpath(path, beside)}{words['rest']}"


NAME = re.compile(r"[A-Za-z0-9._-]+")
ORIGIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)|^\s+# from (?P<origin>\S+)$")


def misplaced(lock: str, site: Sequence[Index]) -> list[str]:
    """Describe the packages of a lock that come from another index than the site says.

    The lock must name origins (`uv pip compile --emit-index-annotation`).
    """
    wrong = []
    for name, version, origin in _origins(lock):
        owners = [without_login(index.url).rstrip("/") for index in site if index.owns(name)]
        if owners and without_login(origin).rstrip("/") not in owners:
            places = " or ".join(owners)
            wrong.append(f"{name} {version} would come from {origin}, but the site takes {name} from {places} alone")
    return wrong


def wrong_index(
    uv: Sequence[str], lines: Sequence[str], site: Sequence[Index], variables: Mapping[str, str], cwd: Path
) -> str:
    """Say which packages of a requirements.txt would come from another index than the site says; empty: none.

    `uv` is the beginning of the command, with the options that choose the interpreter.
    """
    owned = [line for line in lines if (name := NAME.match(line)) and any(index.owns(name[0]) for index in site)]
    if not owned:
        return ""
    command = [uv[0], "pip", "compile", "-", *uv[1:], "--quiet", "--no-deps", "--no-header", "--no-annotate"]
    done = subprocess.run(
        [*command, "--emit-index-annotation"],
        input="".join(f"{line}\n" for line in owned),
        cwd=cwd,
        # Even if the index lacks the version: then the next index has a stranger's package of that name.
        env={**variables, **PASS_OVER},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return explain(done.stderr.strip(), model=False)
    wrong = misplaced(done.stdout, site)
    return "\n".join(["Packages are in the wrong index (package_indexes):", *wrong]) if wrong else ""


def _origins(lock: str) -> Iterator[tuple[str, str, str]]:
    name = version = ""
    for line in lock.splitlines():
        found = ORIGIN.match(line)
        if found and found["name"]:
            name, version = found["name"], found["version"]
        elif found and name:
            yield name, version, found["origin"]
            name = ""

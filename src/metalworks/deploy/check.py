"""Check that flows load and that all their imports are installed, in the environment that workers will build."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from metalworks.deploy.definition import Deployment
from metalworks.deploy.source import address, git
from metalworks.environments import normalize_name
from metalworks.errors import CommandError
from metalworks.flow_run.environment import import_path
from metalworks.flow_run.lock import lock_of, locked_versions, settings
from metalworks.install_errors import missing_library

KEPT = {"HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
KEPT |= {"DO_NOT_TRACK", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
KEPT_BEGINNINGS = ("PREFECT_", "MLFLOW_", "AWS_", "METALWORKS_", "LC_")
"""The user's variables that workers have, too: a flow that needs any other must fail here."""
PLATFORM = Path("/etc/environment")
"""Variables that the platform sets for everyone, workers included."""
DISTRIBUTIONS = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "git": "gitpython",
    "jose": "python-jose",
    "jwt": "pyjwt",
    "magic": "python-magic",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "psycopg2": "psycopg2-binary",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "umap": "umap-learn",
    "usb": "pyusb",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
"""Module → distribution, if their names differ and it is not installed here."""
Starts = tuple[list[str], list[str]]
"""Files that run as scripts, and files that are run or imported as modules."""
SITE = {"site-packages", ".venv", "venv", "node_modules"}
SHOWN = 3
"""Name at most this many places of one import, and count the others."""


@dataclass
class Report:
    """The result of checking a project in its own environment."""

    flows: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def variables(environment: Path, roots: Sequence[str]) -> dict[str, str]:
    """Return the variables that a flow has on a worker, except those that only the worker sets."""
    lines = PLATFORM.read_text().splitlines() if PLATFORM.is_file() else []
    names = KEPT | {line.partition("=")[0] for line in lines}
    kept = {name: value for name, value in os.environ.items() if name in names or name.startswith(KEPT_BEGINNINGS)}
    own = [folder for folder in (os.environ.get("VIRTUAL_ENV"),) if folder]
    path = [
        part
        for part in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if not any(Path(part).is_relative_to(folder) for folder in own)
    ]
    return {
        **kept,
        "VIRTUAL_ENV": str(environment),
        "PATH": os.pathsep.join([f"{environment}/bin", *path]),
        "PYTHONPATH": os.pathsep.join(roots),
        "PYTHONNOUSERSITE": "1",
    }


def starts(code: Path, deployments: Iterable[Deployment]) -> Starts:
    """Return the scripts and modules that runs start with: those of flows and of DVC stages."""
    scripts, modules = [], []
    for deployment in deployments:
        script, _, _ = deployment.entrypoint.rpartition(":")
        if script:
            scripts.append(script)
        else:
            modules.append(deployment.entrypoint.rpartition(".")[0])
    for before, word in _commands(code / "dvc.yaml"):
        if word.endswith(".py"):
            scripts.append(word)
        elif before == "-m":
            modules.append(word)
    paths = [module.replace(".", "/") for module in modules]
    return scripts, [file for path in paths for file in (f"{path}.py", f"{path}/__init__.py", f"{path}/__main__.py")]


def _commands(pipeline: Path) -> Iterable[tuple[str, str]]:
    """Return each word of the pipeline's commands with the word before it."""
    if not pipeline.is_file():
        return []
    try:
        stages = (yaml.safe_load(pipeline.read_text()) or {}).get("stages") or {}
    except yaml.YAMLError as error:
        raise CommandError(f"dvc.yaml is not valid YAML: {error}") from error
    stages = [stage.get("do", stage) for stage in stages.values()]
    words = [word for stage in stages for word in re.split(r"[\s\"',\[\]]+", str(stage.get("cmd", "")))]
    return zip(["", *words], words, strict=False)


def ask(environment: Path, code: Path, flows: Mapping[str, Mapping[str, str]], begun: Starts) -> dict[str, Any]:
    """Return the result of environment_probe, run in the environment. Raises CommandError."""
    roots = import_path(code)
    request = {"code": str(code), "roots": roots, "scripts": begun[0], "modules": begun[1], "flows": flows}
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(request))
        with Path(__file__).with_name("environment_probe.py").open("rb") as program:
            done = subprocess.run(
                [f"{environment}/bin/python", "-I", "-", str(asked), str(answered)],
                stdin=program,
                cwd=folder,
                env=variables(environment, roots),
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode or not answered.exists():
            raise CommandError(f"cannot inspect the project's environment:\n{done.stderr.strip()[-2000:]}")
        return dict(json.loads(answered.read_text()))


def check(environment: Path, code: Path, project: Path, deployments: Sequence[Deployment]) -> Report:
    """Return what keeps the flows from running in this environment. `project` is the developer's folder."""
    flows: dict[str, dict[str, str]] = {}
    for deployment in deployments:
        if deployment.entrypoint:
            flows.setdefault(deployment.entrypoint, {}).update(deployment.environment)
    answer = ask(environment, code, flows, starts(code, deployments))
    report = Report(answer["flows"])
    names = Names(code, project)
    told = _imports(answer, names, report)
    for entrypoint, found in answer["flows"].items():
        if "error" in found:
            module = (found["missing"] or "").split(".")[0]
            if module and module in told:
                continue  # already reported by _imports, with all places
            place = f"{found['where']}: " if found["where"] else ""
            add = names.add(module) if module else missing_library(found["error"])
            cure = f" → {add}" if add else ""
            report.problems.append(f"flow {entrypoint} does not load: {place}{found['error']}{cure}")
    return report


def _imports(answer: Mapping[str, Any], names: Names, report: Report) -> set[str]:
    """Add the imports to the report; return the modules that it names as missing."""
    missing: dict[str, list[str]] = defaultdict(list)
    elsewhere: dict[str, list[str]] = defaultdict(list)
    optional: dict[str, list[str]] = defaultdict(list)
    borrowed: dict[str, list[str]] = defaultdict(list)
    own: dict[str, list[str]] = defaultdict(list)
    for row in answer["imports"]:
        place = f"{row['file']}:{row['line']}"
        if "syntax" in row:
            if row["reached"]:
                report.problems.append(f"{place}: syntax error in this Python: {row['syntax']}")
        elif row["missing"] is None:
            brings = answer["distributions"].get(row["module"].split(".")[0], [])
            if row["kind"] == "needed" and row["reached"] and brings and not names.declared(brings):
                borrowed[normalize_name(brings[0])].append(place)
        elif row["kind"] == "optional":
            optional[row["missing"]].append(place)
        elif row["kind"] == "needed":
            (own if row["own"] else missing if row["reached"] else elsewhere)[row["missing"]].append(place)
    for module, places in missing.items():
        report.problems.append(f"{_places(places)}: no module {module} in the environment → {names.add(module)}")
    for module, places in own.items():
        text = f"{_places(places)}: the project has no module {module} → `git add` it, or fix the import"
        report.problems.append(text)
    for module, places in elsewhere.items():
        report.hints.append(f"{_places(places)}: no module {module}, but no flow reaches this import")
    for module, places in optional.items():
        report.hints.append(f"{_places(places)}: no module {module}, but the import is optional")
    for distribution, places in borrowed.items():
        cure = names.line(distribution)
        report.hints.append(
            f"{_places(places)}: {distribution} is installed only because another package needs it → {cure}"
        )
    return {module.split(".")[0] for module in [*missing, *own]}


def _places(places: Sequence[str]) -> str:
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return ", ".join(places[:SHOWN]) + more


class Names:
    """Which distribution provides a module, and which ones the project declares."""

    def __init__(self, code: Path, project: Path) -> None:
        """Take the deployed code and the developer's folder."""
        self.code, self.project = code, project
        self.lock = lock_of(code).name

    @cached_property
    def _declared(self) -> set[str] | None:
        """The project's direct dependencies; None if its lock file does not tell them apart."""
        if self.lock != "uv.lock":
            return None
        listed = settings(self.code).get("project", {}).get("dependencies", [])
        return {normalize_name(re.split(r"[^A-Za-z0-9._-]", line.strip())[0]) for line in listed}

    def declared(self, distributions: Iterable[str]) -> bool:
        """Tell whether one of these is a direct dependency of the project."""
        return self._declared is None or any(normalize_name(name) in self._declared for name in distributions)

    @cached_property
    def _developers(self) -> dict[str, tuple[str, str, str]]:
        """Module → distribution, version and, if it is not from an index, its URL, in the developer's environment."""
        folders = [self.project / ".venv", Path(os.environ.get("VIRTUAL_ENV") or self.project / ".venv")]
        script = (
            "import importlib.metadata as m, json;"
            "url = lambda d: json.loads(d.read_text('direct_url.json') or '{}').get('url', '');"
            "about = lambda name: [name, m.version(name), url(m.distribution(name))];"
            "print(json.dumps({k: about(v[0]) for k, v in m.packages_distributions().items()}))"
        )
        found: dict[str, tuple[str, str, str]] = {}
        for folder in dict.fromkeys(folders):
            python = folder / "bin/python"
            if python.exists():
                done = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, check=False)
                if not done.returncode:
                    found = {name: tuple(about) for name, about in json.loads(done.stdout).items()} | found
        return found

    def add(self, module: str) -> str:
        """Return how to add the distribution that provides a module."""
        top = module.split(".")[0]
        if elsewhere := self._own(top):
            return (
                f"{elsewhere} has a module of that name: put it where the flow imports from, or add that folder as a "
                "package of the project (`[tool.uv.sources]`)"
            )
        if top in self._developers:
            name, version, url = self._developers[top]
            if url:
                return f"you have it as {name}, installed from {address(url)}: add that source (`[tool.uv.sources]`)"
            return self.line(name, version)
        if top in DISTRIBUTIONS:
            return self.line(DISTRIBUTIONS[top])
        # A guess from the module's name may be a stranger's package: dependency confusion.
        return "add the package that provides it (no name is suggested: a stranger may own it)"

    def _own(self, top: str) -> str:
        """Return where in the repository there is a module of that name outside of the flows' import path."""
        root = Path(
            os.fsdecode(git("rev-parse", "--show-toplevel", folder=self.project).stdout).strip() or self.project
        )
        patterns = [f":(glob)**/{top}.py", f":(glob)**/{top}/*.py"]
        listed = git("ls-files", "-z", "--cached", "--others", "--", *patterns, folder=root).stdout
        names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
        own = [name for name in names if not SITE & set(Path(name).parts)]
        return own[0] if own else ""

    def line(self, distribution: str, version: str = "") -> str:
        """Return how to add a distribution."""
        if self.lock == "uv.lock":
            return f"`uv add {normalize_name(distribution)}`"
        pin = f"=={version}" if version else "==VERSION"
        return f"`{normalize_name(distribution)}{pin}` into requirements.txt, with its dependencies"


def versions(code: Path, server: str) -> list[str]:
    """Return what is wrong with the project's Prefect version for this server."""
    locked = locked_versions(code).get("prefect")
    lock = lock_of(code).name
    line = f"`uv add prefect=={server}`" if lock == "uv.lock" else f"`prefect=={server}` in requirements.txt"
    if locked is None:
        return [f"{lock} does not contain prefect → {line}"]
    if locked.split(".")[:2] != server.split(".")[:2]:
        return [f"{lock} has prefect {locked}, but the server and the workers run {server} → {line}"]
    return []

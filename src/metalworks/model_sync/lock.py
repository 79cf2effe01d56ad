"""Lock a model's recorded requirements, with hashes."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from metalworks.errors import FetchError
from metalworks.install_errors import explain
from metalworks.model_python import can_serve, difference, minor_of
from metalworks.model_python import recorded as recorded_python
from metalworks.model_sync.programs import Programs
from metalworks.requirement_files import (
    PASS_OVER,
    Index,
    Requirements,
    RequirementsError,
    may_pass_over,
    misplaced,
    read,
)

FILE_NAME = "requirements.lock"
PYTHON_LINE = "# Python "
"""Begins the line of a lock with the interpreter for it, if the model was made with another one than the host's."""
OLDEST_MLFLOW = "2.6"
"""The first version with `mlflow.pyfunc.scoring_server.invocations`, which answers requests."""
CONVERTERS = {
    "sklearn": ("skl2onnx>=1.17", "onnx>=1.16"),
    "xgboost": ("onnxmltools>=1.13", "skl2onnx>=1.17", "onnx>=1.16"),
    "lightgbm": ("onnxmltools>=1.13", "skl2onnx>=1.17", "onnx>=1.16"),
}
"""Packages that convert a flavor to ONNX, which runs faster. Without them the model is served unconverted."""


logger = logging.getLogger("metalworks.model_sync")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the environment of a version has to contain."""

    recorded: Requirements
    own: list[str]
    """Requirements besides the recorded ones."""
    converters: list[str]
    header: str
    """First line of the lock file."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """Chooses package versions with uv."""

    programs: Programs
    uv: str
    python: str
    mlflow: str
    """The platform's MLflow version, for models that recorded none."""
    build_packages: bool = False
    site: Sequence[Index] = ()
    """The site's package indexes."""

    def ensure_lock(self, version_dir: Path) -> Path:
        """Return the lock file of a fetched version, created or replaced if it does not match its requirements.

        Models with the same requirements share one lock, hence one environment. For others, uv prefers the package
        versions of the service's newest lock.
        """
        asked = self._asked(version_dir)
        made = recorded_python(version_dir / "model")
        python = self._python(made)
        header = asked.header + (f"{PYTHON_LINE}{python}\n" if made and made != minor_of(self.python) else "")
        lock = version_dir / FILE_NAME
        known = sorted(version_dir.parent.glob(f"*/{FILE_NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
        fitting = [path for path in known if path.read_text().startswith(header)]
        if lock in fitting:
            return lock
        new = version_dir / f"{FILE_NAME}.new"
        if fitting:
            shutil.copyfile(fitting[0], new)
        else:
            error = self._compile(version_dir, asked, asked.converters, new, known, python)
            if error and asked.converters:  # a model must be servable without them
                error = self._compile(version_dir, asked, [], new, known, python)
            if error:
                raise FetchError(f"no environment satisfies the model's requirements: {explain(error, model=True)}")
            text = new.read_text()
            if wrong := misplaced(text, self.site):
                raise FetchError(f"packages are in the wrong index: {'; '.join(wrong)} (package_indexes)")
            _check_age(pins(text).get("mlflow", "0"))
            new.write_text(header + text)
        new.replace(lock)
        return lock

    def find_lock(self, version_dir: Path) -> Path | None:
        """Return the version's lock file if it exists and matches its requirements."""
        lock = version_dir / FILE_NAME
        return lock if lock.exists() and lock.read_text().startswith(self._asked(version_dir).header) else None

    def other_python(self, version_dir: Path) -> str:
        """Say that the version is served by another Python than it was made with; empty: it is not."""
        made = recorded_python(version_dir / "model")
        return difference(made, minor_of(self.python)) if self._python(made) == self.python else ""

    def _python(self, made: str) -> str:
        """Return this host's interpreter of that minor version; if it has none, the one of the follower."""
        if not made or made == minor_of(self.python):
            return self.python
        find = [self.uv, "python", "find", "--no-project", "--system", made]
        done = self.programs.run(find, cwd=Path("/"))
        if done.returncode and can_serve(made) and os.environ.get("UV_PYTHON_DOWNLOADS") == "automatic":
            fetched = self.programs.run([self.uv, "python", "install", "--quiet", "--no-bin", made], cwd=Path("/"))
            if fetched.returncode:
                logger.error("Python %s cannot be fetched: %s", made, fetched.stderr.strip())
            done = self.programs.run(find, cwd=Path("/"))
        if done.returncode or not can_serve(made):
            logger.warning("%s", difference(made, minor_of(self.python)))
            return self.python
        return done.stdout.strip()

    def variables(self, version_dir: Path) -> dict[str, str]:
        """Return the variables by which uv finds the packages of a version."""
        return _recorded(version_dir).sources.variables(self.site)

    def _asked(self, version_dir: Path) -> Asked:
        """Return what the environment of a fetched version has to contain."""
        requirements = _recorded(version_dir)
        recorded = version_dir / "model" / "requirements.txt"
        own = _mlflow(recorded, self.mlflow)
        converters = sorted({each for flavour in _flavours(version_dir / "model") for each in CONVERTERS[flavour]})
        made = recorded_python(version_dir / "model")
        other = made if made and made != minor_of(self.python) else ""
        digest = _digest(own, converters, recorded, requirements.files, other)
        header = f"# Locked by metalworks-model from requirements {digest}\n"
        return Asked(requirements, own, converters, header)

    def _compile(
        self, version_dir: Path, asked: Asked, converters: list[str], output: Path, known: list[Path], python: str
    ) -> str:
        """Resolve, and return the error, or an empty string. uv prefers the versions already in the output file."""
        before = pins(known[0].read_text()) if known else {}
        output.write_text("".join(f"{name}=={version}\n" for name, version in sorted(before.items())))
        constraints = version_dir / "constraints.new"
        constraints.write_text("".join(f"{line}\n" for line in asked.recorded.constraints))
        command = [self.uv, "pip", "compile", "-", "--constraint", constraints.name, "--output-file", output.name]
        command += ["--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--emit-index-annotation"]
        command += ["--python", python, *([] if self.build_packages else ["--no-build"])]
        text = "".join(f"{line}\n" for line in [*asked.own, *converters, *asked.recorded.lines])
        variables = asked.recorded.sources.variables(self.site)
        done = self.programs.run(command, cwd=version_dir, text=text, variables=variables)
        if may_pass_over(done.stderr):
            done = self.programs.run(command, cwd=version_dir, text=text, variables=variables | PASS_OVER)
        constraints.unlink()
        return (done.stderr.strip() or f"uv exited with {done.returncode}") if done.returncode else ""


def _recorded(version_dir: Path) -> Requirements:
    """Return the recorded requirements, with paths relative to the version's folder, where uv runs."""
    file = version_dir / "model" / "requirements.txt"
    if not file.is_file():
        raise FetchError(f"{file} is missing: log the model again with its requirements")
    try:
        return read(file, version_dir)
    except (RequirementsError, UnicodeDecodeError) as error:
        raise FetchError(f"cannot read the model's requirements.txt: {error}") from error


def pins(text: str) -> dict[str, str]:
    """Return name → version of the packages that a lock installs on this host."""
    return {
        canonicalize_name(each.name): specifier.version
        for each in _requirements(text)
        for specifier in each.specifier
        if specifier.operator == "==" and (each.marker is None or each.marker.evaluate())
    }


def _requirements(text: str) -> Iterator[Requirement]:
    """Yield the packages in a requirements file; options, comments and paths are left to uv."""
    for line in text.splitlines():
        try:
            yield Requirement(line.partition(" #")[0].removesuffix("\\").strip())
        except InvalidRequirement:
            continue


def _mlflow(recorded: Path, ours: str) -> list[str]:
    """Return the requirements to add so that the full MLflow is installed."""
    found = {str(canonicalize_name(each.name)): each for each in _requirements(recorded.read_text())}
    if "mlflow" in found:
        _check_pin(found["mlflow"])
        return []
    if "mlflow-skinny" in found:  # cannot serve; mlflow has the same version numbers
        _check_pin(found["mlflow-skinny"])
        return [f"mlflow{found['mlflow-skinny'].specifier}"]
    return [f"mlflow=={ours}"]


def _check_pin(mlflow: Requirement) -> None:
    for specifier in mlflow.specifier:
        if specifier.operator == "==" and not specifier.version.endswith("*"):
            _check_age(specifier.version)


def _check_age(mlflow: str) -> None:
    """Refuse an MLflow too old to answer requests."""
    if Version(mlflow) < Version(OLDEST_MLFLOW):
        raise FetchError(
            f"the model requires mlflow {mlflow}, but the oldest version that can be served is {OLDEST_MLFLOW}: "
            "log the model again with a newer MLflow"
        )


def _flavours(model: Path) -> list[str]:
    """Return the model's flavors that can be converted."""
    import yaml

    try:
        flavours = yaml.safe_load((model / "MLmodel").read_text())["flavors"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise FetchError(f"cannot read {model / 'MLmodel'}: log the model again") from error
    return sorted(set(flavours) & set(CONVERTERS))


def _digest(own: list[str], converters: list[str], recorded: Path, packages: list[Path], python: str) -> str:
    digest = hashlib.sha256("\n".join([*own, "", *converters, ""]).encode())
    for file in (recorded, recorded.with_name("constraints.txt")):
        digest.update(file.read_bytes() if file.is_file() else b"")
    for file in packages:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    digest.update(python.encode())
    return digest.hexdigest()

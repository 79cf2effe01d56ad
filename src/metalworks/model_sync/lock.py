"""Lock a model's recorded requirements, with hashes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from metalworks.errors import FetchError
from metalworks.model_sync.programs import Programs

FILE_NAME = "requirements.lock"
OLDEST_MLFLOW = "2.6"
"""The first version with `mlflow.pyfunc.scoring_server.invocations`, which answers requests."""
CONVERTERS = {
    "sklearn": ("skl2onnx>=1.17", "onnx>=1.16"),
    "xgboost": ("onnxmltools>=1.13", "skl2onnx>=1.17", "onnx>=1.16"),
    "lightgbm": ("onnxmltools>=1.13", "skl2onnx>=1.17", "onnx>=1.16"),
}
"""Packages that convert a flavor to ONNX, which runs faster. Without them the model is served unconverted."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """Chooses package versions with uv."""

    programs: Programs
    uv: str
    python: str
    mlflow: str
    """The platform's MLflow version, for models that recorded none."""
    build_packages: bool = False

    def ensure_lock(self, version_dir: Path) -> Path:
        """Return the lock file of a fetched version, created or replaced if it does not match its requirements.

        Models with the same requirements share one lock, hence one environment. For others, uv prefers the package
        versions of the service's newest lock.
        """
        own, converters, header = self._asked(version_dir)
        lock = version_dir / FILE_NAME
        known = sorted(version_dir.parent.glob(f"*/{FILE_NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
        fitting = [path for path in known if path.read_text().startswith(header)]
        if lock in fitting:
            return lock
        new = version_dir / f"{FILE_NAME}.new"
        if fitting:
            shutil.copyfile(fitting[0], new)
        else:
            error = self._compile(version_dir, [*own, *converters], new, known)
            if error and converters:  # a model must be servable without them
                error = self._compile(version_dir, own, new, known)
            if error:
                raise FetchError(f"no environment satisfies the model's requirements: {error}")
            text = new.read_text()
            _check_age(pins(text).get("mlflow", "0"))
            new.write_text(header + text)
        new.replace(lock)
        return lock

    def find_lock(self, version_dir: Path) -> Path | None:
        """Return the version's lock file if it exists and matches its requirements."""
        lock = version_dir / FILE_NAME
        return lock if lock.exists() and lock.read_text().startswith(self._asked(version_dir)[2]) else None

    def _asked(self, version_dir: Path) -> tuple[list[str], list[str], str]:
        """Return the requirements besides the recorded ones, the converters, and the header of the lock file."""
        recorded = version_dir / "model" / "requirements.txt"
        if not recorded.is_file():
            raise FetchError(f"{recorded} is missing: log the model again with its requirements")
        own = _mlflow(recorded, self.mlflow)
        converters = sorted({each for flavour in _flavours(version_dir / "model") for each in CONVERTERS[flavour]})
        digest = _digest(own, converters, recorded)
        return own, converters, f"# Locked by metalworks-model from requirements {digest}\n"

    def _compile(self, version_dir: Path, more: list[str], output: Path, known: list[Path]) -> str:
        """Resolve, and return the error, or an empty string. uv prefers the versions already in the output file."""
        before = pins(known[0].read_text()) if known else {}
        output.write_text("".join(f"{name}=={version}\n" for name, version in sorted(before.items())))
        command = [self.uv, "pip", "compile", "-", "model/requirements.txt", "--output-file", output.name, "--quiet"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--python", self.python]
        command += [] if self.build_packages else ["--no-build"]
        done = self.programs.run(command, cwd=version_dir, text="\n".join(more) + "\n")
        return (done.stderr.strip() or f"uv exited with {done.returncode}") if done.returncode else ""


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


def _digest(own: list[str], converters: list[str], recorded: Path) -> str:
    digest = hashlib.sha256("\n".join([*own, "", *converters, ""]).encode())
    for file in (recorded, recorded.with_name("constraints.txt")):
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()

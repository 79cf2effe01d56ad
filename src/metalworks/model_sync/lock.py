"""The environment a model runs in: what it recorded, locked with hashes."""

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
"""The first with `mlflow.pyfunc.scoring_server.invocations`, which answers requests."""
CONVERTERS = {
    "sklearn": ("skl2onnx>=1.17", "onnx>=1.16"),
    "xgboost": ("onnxmltools>=1.13", "skl2onnx>=1.17", "onnx>=1.16"),
    "lightgbm": ("onnxmltools>=1.13", "skl2onnx>=1.17", "onnx>=1.16"),
}
"""What turns a model of a flavour into ONNX, which the server runs faster; a model is served without, too."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """How versions are chosen."""

    programs: Programs
    uv: str
    python: str
    mlflow: str
    """For models that recorded none: the platform's."""
    build_packages: bool = False

    def ensure_lock(self, version_dir: Path) -> Path:
        """Return the lock of a fetched version, made unless it is the one its requirements ask for.

        Models that record the same requirements share one lock, hence one environment. Otherwise versions are chosen
        anew only where they must be: those of the newest lock beside this one come first.
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
            if error and converters:  # they must not decide whether a model is served
                error = self._compile(version_dir, own, new, known)
            if error:
                raise FetchError(f"no environment satisfies the model's requirements: {error}")
            text = new.read_text()
            _check_age(pins(text).get("mlflow", "0"))
            new.write_text(header + text)
        new.replace(lock)
        return lock

    def find_lock(self, version_dir: Path) -> Path | None:
        """Return the lock that ensure_lock made of the version's requirements, if it is there."""
        lock = version_dir / FILE_NAME
        return lock if lock.exists() and lock.read_text().startswith(self._asked(version_dir)[2]) else None

    def _asked(self, version_dir: Path) -> tuple[list[str], list[str], str]:
        """Return what is asked for besides the recorded requirements, the converters, and how a lock of them begins."""
        recorded = version_dir / "model" / "requirements.txt"
        if not recorded.is_file():
            raise FetchError(f"{recorded} is missing: log the model with its requirements")
        own = _mlflow(recorded, self.mlflow)
        converters = sorted({each for flavour in _flavours(version_dir / "model") for each in CONVERTERS[flavour]})
        digest = _digest(own, converters, recorded)
        return own, converters, f"# Locked by metalworks-model from requirements {digest}\n"

    def _compile(self, version_dir: Path, more: list[str], output: Path, known: list[Path]) -> str:
        """Resolve; return what is wrong, or nothing. uv prefers the versions that stand in the output file already."""
        before = pins(known[0].read_text()) if known else {}
        output.write_text("".join(f"{name}=={version}\n" for name, version in sorted(before.items())))
        command = [self.uv, "pip", "compile", "-", "model/requirements.txt", "--output-file", output.name, "--quiet"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--python", self.python]
        command += [] if self.build_packages else ["--no-build"]
        done = self.programs.run(command, cwd=version_dir, text="\n".join(more) + "\n")
        return (done.stderr.strip() or f"uv ended with {done.returncode}") if done.returncode else ""


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


def _mlflow(recorded: Path, ours: str) -> list[str]:
    """Return what is asked for besides the recorded requirements, so that there is an MLflow, and all of it."""
    found = {str(canonicalize_name(each.name)): each for each in _requirements(recorded.read_text())}
    if "mlflow" in found:
        _check_pin(found["mlflow"])
        return []
    if "mlflow-skinny" in found:  # which serves nothing; the two have the same version
        _check_pin(found["mlflow-skinny"])
        return [f"mlflow{found['mlflow-skinny'].specifier}"]
    return [f"mlflow=={ours}"]


def _check_pin(mlflow: Requirement) -> None:
    for specifier in mlflow.specifier:
        if specifier.operator == "==" and not specifier.version.endswith("*"):
            _check_age(specifier.version)


def _check_age(mlflow: str) -> None:
    """Refuse an MLflow that has nothing to answer requests with."""
    if Version(mlflow) < Version(OLDEST_MLFLOW):
        raise FetchError(
            f"the model asks for mlflow {mlflow}, and {OLDEST_MLFLOW} is the oldest that can be served: "
            "log the model again with a newer one"
        )


def _flavours(model: Path) -> list[str]:
    """Return the model's flavours that can be converted."""
    import yaml

    try:
        flavours = yaml.safe_load((model / "MLmodel").read_text())["flavors"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise FetchError(f"{model / 'MLmodel'} cannot be read: log the model again") from error
    return sorted(set(flavours) & set(CONVERTERS))


def _digest(own: list[str], converters: list[str], recorded: Path) -> str:
    digest = hashlib.sha256("\n".join([*own, "", *converters, ""]).encode())
    for file in (recorded, recorded.with_name("constraints.txt")):
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()

"""Environments of models, each built once per lock file and Python, completely or not at all."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from metalworks.environments import MARKER, packages, unused
from metalworks.errors import FetchError
from metalworks.install_errors import explain
from metalworks.model_sync.lock import PYTHON_LINE
from metalworks.model_sync.programs import Programs
from metalworks.requirement_files import PASS_OVER


class Environments:
    """A folder with one environment per lock file; versions with the same lock share one."""

    def __init__(self, root: Path, programs: Programs, uv: str, python: str, *, build_packages: bool = False) -> None:
        """Take the settings, and remove environments that a killed program left incomplete."""
        self.root = root
        self.programs = programs
        self.uv = uv
        self.python = python
        self.build_packages = build_packages
        asked = [python, "-I", "-c", "import sys; print(sys.version_info[:2])"]
        self.version = programs.run(asked, cwd=Path("/")).stdout
        for folder in root.glob("*"):
            if not (folder / MARKER).exists():
                shutil.rmtree(folder)

    def ensure(self, lock: Path, variables: Mapping[str, str] | None = None) -> Path:
        """Return the interpreter of the lock's environment, built if it does not exist.

        `variables` say where uv finds the packages.
        """
        if (here := self.find(lock)) is not None:
            return here
        folder = self.root / self._name(lock)
        python = folder / "bin/python"
        found = re.search(rf"(?m)^{PYTHON_LINE}(/.+)$", lock.read_text())
        base = found[1] if found else self.python
        if folder.exists():
            shutil.rmtree(folder)
        self.root.mkdir(parents=True, exist_ok=True)
        install = [self.uv, "pip", "install", "--quiet", "--python", str(python)]
        # A package from Git has no hash, but its commit is one.
        install += [] if re.search(r"(?m)^\S+ @ git\+\S+@[0-9a-f]{40}", lock.read_text()) else ["--require-hashes"]
        install += ["--requirement", str(lock.absolute()), *([] if self.build_packages else ["--no-build"])]
        try:
            for step in ([self.uv, "venv", "--quiet", "--python", base, str(folder)], install):
                # Paths in the lock are relative to its folder. The hashes say what to take, so any index will do.
                done = self.programs.run(step, cwd=lock.parent, variables={**(variables or {}), **PASS_OVER})
                if done.returncode:
                    error = done.stderr.strip() or f"uv exited with {done.returncode}"
                    raise FetchError(f"cannot install the model's environment: {explain(error, model=True)}")
            # Do not use the environment's interpreter: it would run the packages' startup code. Exit code 1 is
            # harmless: some package has a file that is not valid Python.
            self.programs.run([base, "-I", "-m", "compileall", "-q", str(folder / "lib")], cwd=self.root)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / ".lock").unlink(missing_ok=True)  # uv's own
        (folder / MARKER).touch()
        return python

    def find(self, lock: Path) -> Path | None:
        """Return the interpreter of the lock's environment, if it exists."""
        folder = self.root / self._name(lock)
        if not (folder / MARKER).exists():
            return None
        (folder / MARKER).touch()  # tidy() sorts by when an environment was last wanted
        return folder / "bin/python"

    def tidy(self, keep: Iterable[Path], more: int) -> None:
        """Remove all environments except those of these locks and the `more` others that were wanted last.

        Also removes their packages from uv's cache, unless a remaining environment has the same versions. No
        installation may run meanwhile.
        """
        stays = {self.root / self._name(lock) for lock in keep if lock.exists()}
        others = {folder for folder in self.root.glob("*") if folder.is_dir()} - stays
        gone = sorted(others, key=lambda folder: -(folder / MARKER).stat().st_mtime_ns)[more:]
        had = {package for folder in gone for package in packages(folder)}
        for folder in gone:
            shutil.rmtree(folder)
        if names := unused(had, self.root.glob("*")):
            self.programs.run([self.uv, "cache", "clean", "--quiet", *names], cwd=self.root)

    def _name(self, lock: Path) -> str:
        """Return the first 16 hexadecimal digits of a digest of the lock and the interpreter's version."""
        return hashlib.sha256(lock.read_bytes() + f"\0{self.version}".encode()).hexdigest()[:16]

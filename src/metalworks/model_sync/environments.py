"""Environments of models, each made once per lock and Python, whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from metalworks.environments import packages, unused
from metalworks.errors import FetchError
from metalworks.model_sync.programs import Programs

MARKER = ".complete"


class Environments:
    """A folder with one environment per lock; versions with the same lock share one."""

    def __init__(self, root: Path, programs: Programs, uv: str, python: str, *, build_packages: bool = False) -> None:
        """Remember how they are made, and remove those that a killed program left half made."""
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

    def ensure(self, lock: Path) -> Path:
        """Return the interpreter of the environment that the lock describes, built unless it stands."""
        if (here := self.find(lock)) is not None:
            return here
        folder = self.root / self._name(lock)
        python = folder / "bin/python"
        if folder.exists():
            shutil.rmtree(folder)
        self.root.mkdir(parents=True, exist_ok=True)
        install = [self.uv, "pip", "install", "--quiet", "--python", str(python), "--require-hashes"]
        install += ["--requirement", str(lock), *([] if self.build_packages else ["--no-build"])]
        try:
            for step in ([self.uv, "venv", "--quiet", "--python", self.python, str(folder)], install):
                done = self.programs.run(step, cwd=self.root)
                if done.returncode:
                    error = done.stderr.strip() or f"uv ended with {done.returncode}"
                    raise FetchError(f"cannot install the model's environment: {error}")
            # By another interpreter than the environment's: that one would run what packages put into its start. It
            # ends with 1 where a package has a file that is no Python, which harms nobody.
            self.programs.run([self.python, "-I", "-m", "compileall", "-q", str(folder / "lib")], cwd=self.root)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / ".lock").unlink(missing_ok=True)  # uv's own
        (folder / MARKER).touch()
        return python

    def find(self, lock: Path) -> Path | None:
        """Return the interpreter of the environment that the lock describes, if that stands."""
        folder = self.root / self._name(lock)
        if not (folder / MARKER).exists():
            return None
        (folder / MARKER).touch()  # its age says when it was last wanted, which is what tidy() sorts by
        return folder / "bin/python"

    def tidy(self, keep: Iterable[Path], more: int) -> None:
        """Remove all but the environments of these locks and as many of the others that were wanted last.

        What uv keeps of their packages goes with them, unless an environment that stays has the same versions. Nobody
        may install meanwhile.
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
        """Return 16 hexadecimal digits over the lock and the interpreter's version."""
        return hashlib.sha256(lock.read_bytes() + f"\0{self.version}".encode()).hexdigest()[:16]

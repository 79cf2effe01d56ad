"""The versions of a service's model on this host, each complete or not there at all."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from metalworks.contracts import CARD
from metalworks.errors import FetchError
from metalworks.model_sync.card import ModelCard
from metalworks.model_sync.programs import Programs

_PARTIAL = ".partial"


class VersionStore:
    """A folder with one folder per version: model/ (MLflow's files), model.json and, once locked, requirements.lock."""

    def __init__(self, root: Path, programs: Programs) -> None:
        """Take the folder, and remove incomplete downloads from it."""
        self.root = root
        self.programs = programs
        for leftover in root.glob(f"*{_PARTIAL}"):
            shutil.rmtree(leftover)

    def place(self, card: ModelCard) -> Path:
        """Return the folder with the card's files, downloaded if necessary.

        A folder never changes. A version that was deleted and registered again under the same number gets a new folder,
        so that the server notices it; a version that changes its role keeps its folder, hence its process.
        """
        if (here := self.find(card)) is not None:
            return here
        folder = self.root / card.version
        if folder.exists():
            folder = self.root / f"{card.version}-{card.created}"
        partial = folder.with_name(folder.name + _PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        download = [sys.executable, "-m", "metalworks.model_sync.download"]
        done = self.programs.run(
            [*download, card.name, card.version, str(partial / "model")], cwd=partial, secrets=True
        )
        if done.returncode:
            shutil.rmtree(partial)
            words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise FetchError(f"cannot fetch the files of model {card.name} version {card.version}: {words}")
        card.write(partial)
        _settle(partial)  # after a power cut, a renamed folder must be complete
        if folder.exists():  # without a card, so not in use
            shutil.rmtree(folder)
        partial.rename(folder)
        return folder

    def find(self, card: ModelCard) -> Path | None:
        """Return the folder with the card's files, if it exists."""
        return next((folder for folder, stored in self._stored() if stored.has_files_of(card)), None)

    def tidy(self, keep: Iterable[Path], served: Iterable[str], more: int) -> set[Path]:
        """Remove all folders except these, those of served versions, and the `more` newest others.

        Returns the remaining folders.
        """
        folders = {folder: card.version for folder, card in self._stored()}
        stays = {folder for folder in folders if folder in set(keep) or folders[folder] in set(served)}
        newest = sorted(folders.keys() - stays, key=lambda folder: -(folder / CARD).stat().st_mtime_ns)
        stays |= set(newest[:more])
        for folder in self.root.iterdir():
            if folder.is_dir() and folder not in stays:
                shutil.rmtree(folder)
        return stays

    def _stored(self) -> list[tuple[Path, ModelCard]]:
        """Return the complete folders with their cards."""
        found = []
        for file in self.root.glob(f"*/{CARD}"):
            if not file.parent.name.endswith(_PARTIAL):
                try:
                    found.append((file.parent, ModelCard.read(file.parent)))
                except (OSError, ValueError, TypeError):  # a card of another release: will be fetched again
                    shutil.rmtree(file.parent)
        return found


def _settle(folder: Path) -> None:
    """Flush a folder and its content to disk. `sync` would also wait for other programs' writes."""
    for path in (*folder.rglob("*"), folder):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

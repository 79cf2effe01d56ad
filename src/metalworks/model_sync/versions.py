"""The versions of a service's model on this host, each whole or not at all."""

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
        """Remember the folder, and remove what a download that was killed left there."""
        self.root = root
        self.programs = programs
        for leftover in root.glob(f"*{_PARTIAL}"):
            shutil.rmtree(leftover)

    def place(self, card: ModelCard) -> Path:
        """Return the folder with the files that the card names, downloaded unless they are here.

        A folder never changes: a version that was deleted and registered anew under the same number gets another one,
        so the server sees that it is another, and one that changes its role is served on by the same process.
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
            words = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise FetchError(f"cannot fetch the files of model {card.name} version {card.version}: {words}")
        card.write(partial)
        _settle(partial)  # the rename must not survive a power cut that the files do not
        if folder.exists():  # without a card: nobody's
            shutil.rmtree(folder)
        partial.rename(folder)
        return folder

    def find(self, card: ModelCard) -> Path | None:
        """Return the folder with the files that the card names, if they are here."""
        return next((folder for folder, stored in self._stored() if stored.has_files_of(card)), None)

    def tidy(self, keep: Iterable[Path], served: Iterable[str], more: int) -> set[Path]:
        """Remove all but these folders, those of versions that are served, and as many of the newest others.

        Returns what stays.
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
        """Return the folders that are whole, with their cards."""
        found = []
        for file in self.root.glob(f"*/{CARD}"):
            if not file.parent.name.endswith(_PARTIAL):
                try:
                    found.append((file.parent, ModelCard.read(file.parent)))
                except (OSError, ValueError, TypeError):  # a card of another release: fetched anew
                    shutil.rmtree(file.parent)
        return found


def _settle(folder: Path) -> None:
    """Have a folder and all in it on the disk; nobody else's files, which a training run may be writing."""
    for path in (*folder.rglob("*"), folder):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

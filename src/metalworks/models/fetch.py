"""Bring one version of a model to this host, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metalworks.models import lock, registry
from metalworks.models.card import ModelCard


@dataclass(frozen=True, slots=True)
class Fetched:
    """What stands on the host after a fetch; the last line of the program's output."""

    version: str
    changed: bool
    path: str
    """Folder of the version: model/ (MLflow's files), model.json and requirements.lock."""
    requirements: str
    requirements_sha256: str


def fetch(
    tracking_uri: str, model: str, alias: str, dest: Path, server_lock: Path, *, uv: str = "uv"
) -> Fetched | None:
    """Make `dest/<version>` hold the version that `alias` points to; None while there is no such model or alias."""
    card = registry.resolve(tracking_uri, model, alias)
    if card is None:
        return None
    with _alone_in(dest):
        version_dir = dest / card.version
        changed = _place(tracking_uri, card, version_dir)
        changed = lock.ensure_lock(version_dir, server_lock, uv=uv) or changed
    requirements = version_dir / lock.FILE_NAME
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    return Fetched(card.version, changed, str(version_dir), str(requirements), digest)


def _place(tracking_uri: str, card: ModelCard, version_dir: Path) -> bool:
    try:
        stored = ModelCard.read(version_dir)
    except FileNotFoundError:
        stored = None
    if stored == card:
        return False
    if stored is not None and stored.has_files_of(card):
        card.write(version_dir)
        return True
    partial = version_dir.with_name(f"{card.version}.partial")
    registry.download(tracking_uri, card, partial / "model")
    card.write(partial)
    os.sync()  # the rename must not survive a power cut that the files do not
    if version_dir.exists():
        version_dir.rename(version_dir.with_name(f"{card.version}.replaced"))
    partial.rename(version_dir)
    _remove_leftovers(version_dir.parent)
    return True


@contextmanager
def _alone_in(dest: Path) -> Iterator[None]:
    """Hold the folder against a second fetch, and clear what one that was killed left there."""
    dest.mkdir(parents=True, exist_ok=True)
    with (dest / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _remove_leftovers(dest)
        yield


def _remove_leftovers(dest: Path) -> None:
    for leftover in (*dest.glob("*.partial"), *dest.glob("*.replaced")):
        shutil.rmtree(leftover)

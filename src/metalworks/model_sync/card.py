"""What is known about a fetched model: the file model.json beside its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from metalworks.contracts import CARD


@dataclasses.dataclass(frozen=True, slots=True)
class ModelCard:
    """A registered model's version, as the registry described it when it was fetched."""

    name: str
    version: str
    alias: str
    """What named it when it was fetched; by now it may have another role."""
    source: str
    """Where the registry keeps the version's files."""
    created: int
    """When the version was registered, in milliseconds since 1970."""
    run_id: str | None = None
    git_commit: str | None = None
    """Commit of the code that trained it, where its run recorded one."""

    @classmethod
    def read(cls, version_dir: Path) -> ModelCard:
        """Read the card of a fetched version.

        Raises FileNotFoundError where there is none.
        """
        return cls(**json.loads((version_dir / CARD).read_text()))

    def write(self, version_dir: Path) -> None:
        """Write the card; a reader never sees half of it."""
        new = version_dir / f"{CARD}.new"
        new.write_text(json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n")
        new.replace(version_dir / CARD)

    def has_files_of(self, other: ModelCard) -> bool:
        """Tell whether both name the same registered files.

        A model that is deleted and registered anew counts its versions from 1 again, so the number is not enough.
        """
        mine, theirs = dataclasses.replace(self, alias=""), dataclasses.replace(other, alias="")
        return mine == theirs

"""The card of a fetched model: model.json beside its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from metalworks.contracts import CARD


@dataclasses.dataclass(frozen=True, slots=True)
class ModelCard:
    """A version of a registered model, as the registry described it when it was fetched."""

    name: str
    version: str
    alias: str
    """Alias that pointed to it when it was fetched; its role may have changed since."""
    source: str
    """Where the registry keeps the version's files."""
    created: int
    """When the version was registered, in milliseconds since 1970."""
    run_id: str | None = None
    git_commit: str | None = None
    """Commit of the training code, if the run recorded one."""

    @classmethod
    def read(cls, version_dir: Path) -> ModelCard:
        """Read the card of a fetched version.

        Raises FileNotFoundError if there is none.
        """
        return cls(**json.loads((version_dir / CARD).read_text()))

    def write(self, version_dir: Path) -> None:
        """Write the card atomically."""
        new = version_dir / f"{CARD}.new"
        new.write_text(json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n")
        new.replace(version_dir / CARD)

    def has_files_of(self, other: ModelCard) -> bool:
        """Tell whether both cards describe the same registered files.

        Comparing version numbers is not enough: a model that is deleted and registered again starts at version 1.
        """
        mine, theirs = dataclasses.replace(self, alias=""), dataclasses.replace(other, alias="")
        return mine == theirs

"""The decisions, as pure functions without access to other systems."""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf


@dataclass(frozen=True)
class Contender:
    """A model as the comparison sees it."""

    newest_month: str
    # Its error on the challenger's newest month; infinite if it needs columns that the data no longer has.
    rmse: float


def verdict(challenger: Contender, champion: Contender | None) -> tuple[bool, str]:
    """Return whether the challenger becomes champion, and the reason."""
    if champion is None:
        return True, "the first version"
    if champion.newest_month > challenger.newest_month:
        return False, f"the champion has learnt from {champion.newest_month} already"
    if isinf(champion.rmse):
        return True, "the champion needs columns that the data no longer has"
    comparison = f"rmse {challenger.rmse:.3f} against the champion's {champion.rmse:.3f} on {challenger.newest_month}"
    return challenger.rmse < champion.rmse, comparison


def new_months(arrived: list[str], learnt: str | None) -> list[str]:
    """Return the months in the raw database that are newer than any registered version."""
    return [month for month in arrived if learnt is None or month > learnt]

"""The decisions, apart from the systems they are taken about."""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf


@dataclass(frozen=True)
class Contender:
    """A model as the comparison sees it."""

    newest_month: str
    # Its error on the challenger's newest month; infinite: it needs columns that the data no longer has.
    rmse: float


def verdict(challenger: Contender, champion: Contender | None) -> tuple[bool, str]:
    """Whether the challenger takes over, and why (not)."""
    if champion is None:
        return True, "the first version"
    if champion.newest_month > challenger.newest_month:
        return False, f"the champion has learnt from {champion.newest_month} already"
    if isinf(champion.rmse):
        return True, "the champion needs columns that the data no longer has"
    comparison = f"rmse {challenger.rmse:.3f} against the champion's {champion.rmse:.3f} on {challenger.newest_month}"
    return challenger.rmse < champion.rmse, comparison


def new_months(arrived: list[str], learnt: str | None) -> list[str]:
    """Months in the raw database that no registered version has been made with."""
    return [month for month in arrived if learnt is None or month > learnt]

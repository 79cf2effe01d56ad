"""Check that a month is complete and follows the agreed format, before training on it."""

from __future__ import annotations

import calendar
from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd

# The share of rows that must have a value. Cancelled flights have no delay; the schedule of a few airports and the
# seats of some aircraft are unknown.
FILLED = {
    "scheduled_hour": 1.0, "minute": 1.0, "carrier": 1.0, "origin": 1.0, "dest": 1.0, "distance": 1.0,
    "dep_delay": 0.75, "arr_delay": 0.75, "scheduled_minutes": 0.9,
    "seats": 0.5, "temp": 0.5, "wind_speed": 0.5, "precip": 0.5, "visib": 0.5,
}  # fmt: skip
TEXTS = {"carrier", "origin", "dest"}
# A value outside these is in another unit, or not a measurement.
RANGES = {
    "minute": (0, 59), "dep_delay": (-180, 2880), "arr_delay": (-180, 2880), "distance": (1, 13000),
    "scheduled_minutes": (0, 1440), "seats": (1, 900), "temp": (-60, 140),
}  # fmt: skip
# Limits relative to the other months, and for a day relative to the month's other days.
LEAST, MOST, LEAST_OF_A_DAY = 0.5, 2.0, 0.25


def problems(month: str, rows: pd.DataFrame, others: Sequence[int]) -> list[str]:
    """Return what is wrong with the raw flights of a month. `others`: the other months' numbers of flights."""
    if rows.empty:
        return ["no flights"]
    absent = [name for name in FILLED if name not in rows]
    if absent:
        return [f"no column {', '.join(absent)}"]
    return [*_amount(len(rows), others), *_days(month, rows), *_columns(rows)]


def gaps(arrived: Sequence[str], left_out: Sequence[str] = ()) -> list[str]:
    """Return the missing months between the first and the last that have arrived."""
    if not arrived:
        return []
    span = pd.period_range(min(arrived), max(arrived), freq="M").astype(str)
    return [month for month in span if month not in arrived and month not in left_out]


def report(broken: Mapping[str, Sequence[str]], new: Sequence[str]) -> str:
    """Return one line of text: each broken month with its problems, and the complete ones that wait for it."""
    text = "; ".join(f"{month}: {', '.join(found)}" for month, found in sorted(broken.items()))
    waiting = [month for month in new if month not in broken]
    return text + (f"; {', '.join(waiting)} would be complete and must wait" if waiting else "")


def _amount(count: int, others: Sequence[int]) -> list[str]:
    usual = median(others) if others else count
    if LEAST * usual <= count <= MOST * usual:
        return []
    return [f"{count} flights where {usual:.0f} are usual"]


def _days(month: str, rows: pd.DataFrame) -> list[str]:
    """Return the days without flights, or with very few."""
    scheduled = pd.to_datetime(rows["scheduled_hour"], errors="coerce")
    in_month = scheduled.dt.strftime("%Y-%m") == month
    found = [f"{(~in_month).sum()} flights of another month"] if not in_month.all() else []
    year, number = map(int, month.split("-"))
    days = range(1, calendar.monthrange(year, number)[1] + 1)
    counts = scheduled[in_month].dt.day.value_counts().reindex(days, fill_value=0)
    # The median of the days with flights: in half a month, the other half is missing.
    few = counts[counts < LEAST_OF_A_DAY * (counts[counts > 0].median() if counts.any() else 1)]
    if len(few):
        found.append(f"{len(few)} of {len(days)} days without (enough) flights: {_short(few.index.tolist())}")
    return found


def _columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns with too few values, another type, or impossible values."""
    found = []
    for name, share in FILLED.items():
        values = rows[name].dropna()
        if len(values) < share * len(rows):
            found.append(f"{name} is empty in {1 - len(values) / len(rows):.0%} of the flights")
        elif name in TEXTS:
            wrong = values[[not isinstance(value, str) or not value.strip() for value in values]]
            if len(wrong):
                found.append(f"{name} is not text in {len(wrong)} flights, for example '{wrong.iloc[0]}'")
        elif name != "scheduled_hour":
            found += _numbers(name, values)
    return found


def _numbers(name: str, values: pd.Series) -> list[str]:
    # Also refuse text that looks like a number: it breaks the agreed format, and the next one may not look so.
    wrong = values[[isinstance(value, (str, bytes)) for value in values]]
    if len(wrong):
        return [f"{name} is not a number in {len(wrong)} flights, for example '{wrong.iloc[0]}'"]
    if name not in RANGES:
        return []
    low, high = RANGES[name]
    numbers = values.astype("float64")
    beyond = numbers[~numbers.between(low, high)]
    if not len(beyond):
        return []
    return [f"{name} is outside {low}…{high} in {len(beyond)} flights, for example {beyond.iloc[0]:g}"]


def _short(days: list[int]) -> str:
    return ", ".join(map(str, days[:5])) + (", …" if len(days) > 5 else "")

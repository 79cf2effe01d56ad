"""Build the models' features from a month of raw flights."""

from __future__ import annotations

import pandas as pd
from pandas.tseries.holiday import USFederalHolidayCalendar

TARGET = "arr_delay"
NUMBERS = [
    "dep_delay", "departure_hour", "weekday", "holiday", "distance", "scheduled_minutes",
    "seats", "temp", "wind_speed", "precip", "visib",
]  # fmt: skip
CATEGORIES = ["carrier", "origin", "dest"]
FEATURES = NUMBERS + CATEGORIES


def build(raw: pd.DataFrame) -> pd.DataFrame:
    """Return features and target, one row per flight that arrived.

    All numbers are floats, because clients may omit any of them and integers have no missing value.
    """
    flown = raw.dropna(subset=[TARGET, "dep_delay"]).reset_index(drop=True)
    scheduled = pd.to_datetime(flown["scheduled_hour"])
    calendar = pd.DataFrame(
        {
            "departure_hour": scheduled.dt.hour + flown["minute"] / 60,
            "weekday": scheduled.dt.day_of_week,
            "holiday": _near_holiday(scheduled),
        }
    )
    table = pd.concat([flown, calendar], axis=1)
    return table[[*FEATURES, TARGET]].astype(dict.fromkeys([*NUMBERS, TARGET], "float64"))


def _near_holiday(scheduled: pd.Series) -> pd.Series:
    """Tell whether a flight leaves on a federal holiday, or the day before or after one."""
    day = scheduled.dt.normalize()
    margin = pd.Timedelta(days=1)
    holidays = USFederalHolidayCalendar().holidays(day.min() - margin, day.max() + margin)
    return day.isin(holidays) | (day + margin).isin(holidays) | (day - margin).isin(holidays)

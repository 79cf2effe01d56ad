"""The raw database: external, read-only, and with a new month from time to time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import yaml

if TYPE_CHECKING:
    import pandas as pd

# A month with weather but without flights has arrived, too, and is broken.
MONTHS = "SELECT year, month FROM flights UNION SELECT year, month FROM weather ORDER BY year, month"
COUNTS = "SELECT year, month, count(*) FROM flights GROUP BY year, month"

# One row per flight, with its aircraft, the weather at its scheduled hour, and its scheduled minutes (the arrival is in
# the destination's time zone; a day is added if it is on the next day). The order is total, so that preparing a month
# always gives the same file.
FLIGHTS = """
SELECT f.time_hour AT TIME ZONE 'America/New_York' AS scheduled_hour, f.minute,
       f.carrier, f.origin, f.dest, f.distance, f.dep_delay, f.arr_delay,
       p.seats, w.temp, w.wind_speed, w.precip, w.visib,
       mod(1440 + extract(epoch FROM make_timestamp(f.year, f.month, f.day, f.sched_arr_time / 100,
         f.sched_arr_time %% 100, 0) AT TIME ZONE a.tzone - f.time_hour) / 60 - f.minute, 1440) AS scheduled_minutes
FROM flights f
LEFT JOIN airports a ON a.faa = f.dest
LEFT JOIN planes p USING (tailnum)
LEFT JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour
WHERE f.year = %s AND f.month = %s
ORDER BY f.time_hour, f.sched_dep_time, f.carrier, f.flight, f.origin, f.dest
"""


def connect() -> psycopg.Connection[tuple[object, ...]]:
    """Connect to RAW_DATABASE_URL; libpq finds the password in its password file."""
    return psycopg.connect(os.environ["RAW_DATABASE_URL"])


def arrived_months() -> list[str]:
    """Return the months in the database, oldest first, as YYYY-MM, without those that params.yaml leaves out."""
    with connect() as database:
        found = [f"{year}-{month:02}" for year, month in database.execute(MONTHS)]
    return [month for month in found if month not in left_out()]


def left_out() -> list[str]:
    """Return the months that are not used for training."""
    months: list[str] = yaml.safe_load(Path("params.yaml").read_text())["left_out"]
    return months


def counts() -> dict[str, int]:
    """Return the number of flights in each month."""
    with connect() as database:
        return {f"{year}-{month:02}": int(str(count)) for year, month, count in database.execute(COUNTS)}


def read_month(month: str) -> pd.DataFrame:
    """Return the flights of one month as they are in the database."""
    import pandas as pd

    year, number = month.split("-")
    with connect() as database:
        cursor = database.execute(FLIGHTS, (int(year), int(number)))
        names = [column.name for column in cursor.description or []]
        return pd.DataFrame(cursor.fetchall(), columns=names)

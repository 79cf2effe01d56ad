"""What a schedule leaves out when summer time ends."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

DAYS = 370
AROUND = timedelta(hours=4)
HOUR = timedelta(hours=1)


def ends(zone: ZoneInfo, now: datetime) -> datetime | None:
    """Return when the zone's clocks are next put back; None: not within a year."""
    day = now.replace(minute=0, second=0, microsecond=0)
    for _ in range(DAYS):
        later = day + timedelta(days=1)
        if (later.astimezone(zone).utcoffset() or timedelta()) < (day.astimezone(zone).utcoffset() or timedelta()):
            before = day.astimezone(zone).utcoffset()
            while (day + HOUR).astimezone(zone).utcoffset() == before:
                day += HOUR
            return day + HOUR
        day = later
    return None


def _gap(schedule: Any, begin: datetime) -> timedelta:
    """Return the longest pause between two runs around a moment."""
    dates = asyncio.run(schedule.get_dates(1000, start=begin - AROUND, end=begin + AROUND))
    pairs = itertools.pairwise(dates)
    return max((later.astimezone(UTC) - date.astimezone(UTC) for date, later in pairs), default=timedelta())


def hints(name: str, schedules: list[dict[str, Any]], now: datetime) -> list[str]:
    """Return a hint for each schedule that runs every hour or more often, and leaves one out."""
    from prefect.server.schemas.schedules import CronSchedule

    found = []
    for item in schedules:
        cron, zone = item.get("cron"), item.get("timezone")
        if not cron or not zone:
            continue
        end = ends(ZoneInfo(zone), now)
        if end is None:
            continue
        schedule = CronSchedule(cron=cron, timezone=zone)
        usual = _gap(schedule, end - timedelta(days=14))
        if timedelta() < usual <= HOUR and _gap(schedule, end) > usual:
            found.append(
                f"{name}: the schedule {cron!r} leaves out an hour on {end.astimezone(ZoneInfo(zone)):%Y-%m-%d}, when "
                f"summer time ends in {zone}; with `timezone: UTC` it leaves out none"
            )
    return found

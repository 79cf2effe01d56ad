"""The project's state, queried from the systems that have it."""

from __future__ import annotations

from typing import Any

from flights import raw, registry, rules, schedule, service, versions


def state(url: str) -> dict[str, Any]:
    """Return code, data, models, versions, schedule, and the version that answers at `url`."""
    return {
        "commit": versions.commit(),
        "data": versions.data(),
        "models": registry.runs(),
        "versions": registry.versions(),
        "champion": registry.in_service(),
        "served": service.served(url),
        **schedule.schedule(),
        "new_months": rules.new_months(raw.arrived_months(), registry.learnt()),
    }

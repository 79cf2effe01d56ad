"""Where the project stands, asked of the systems that know it."""

from __future__ import annotations

from typing import Any

from flights import deploy, raw, registry, rules, versions


def state() -> dict[str, Any]:
    """Code, data, models, versions and deployment."""
    return {
        "commit": versions.commit(),
        "data": versions.data(),
        "models": registry.runs(),
        "versions": registry.versions(),
        "deployed": deploy.deployed(),
        "new_months": rules.new_months(raw.arrived_months(), registry.learnt()),
    }

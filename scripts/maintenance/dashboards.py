"""Write each dashboard for Grafana and for vmui from one source, roles/monitoring/files/dashboards/dashboards.yml."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from scripts.common import ROOT

PLACE = ROOT / "roles/monitoring/files/dashboards"
SOURCE: dict[str, dict[str, Any]] = yaml.safe_load((PLACE / "dashboards.yml").read_text())
NAMES = list(SOURCE)
KINDS = ("grafana", "vmui")
CHOICE = re.compile(r'(?:,\s*)?(host|service)=~"\$\1"')
COLUMNS, HEIGHT = 2, 8
GRAFANA_WIDTH, VMUI_WIDTH = 24, 12
UNITS = {"%": "percent", "seconds": "s", "days": "d", "MB": "decmbytes", "GB": "decgbytes", "per second": "ops"}
"""Our words → Grafana's names; it shows other words as they are."""


def grafana(name: str) -> dict[str, Any]:
    """Return a dashboard in Grafana's JSON; its host and service are chosen at the top."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in SOURCE[name]["rows"]:
        place = {"x": 0, "y": top, "w": GRAFANA_WIDTH, "h": 1}
        panels.append({"type": "row", "title": row["title"], "collapsed": False, "panels": [], "gridPos": place})
        top += 1
        for number, panel in enumerate(row["panels"]):
            line, column = divmod(number, COLUMNS)
            width = GRAFANA_WIDTH // COLUMNS
            place = {"x": column * width, "y": top + line * HEIGHT, "w": width, "h": HEIGHT}
            panels.append(_grafana_panel(panel) | {"gridPos": place})
        top += HEIGHT * -(-len(row["panels"]) // COLUMNS)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    asked = sorted(set(CHOICE.findall(json.dumps(SOURCE[name]).replace('\\"', '"'))))
    return {
        "uid": f"metalworks-{name}",
        "title": f"Metalworks: {SOURCE[name]['title']}",
        "tags": ["metalworks"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_DATASOURCE, *(_variable(label) for label in asked)]},
        "panels": panels,
    }


_DATASOURCE = {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}


def _variable(label: str) -> dict[str, Any]:
    source = {"host": "up", "service": "metalworks_inference_version_info"}[label]
    return {
        "type": "query",
        "name": label,
        "label": label.capitalize(),
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": f"label_values({source}, {label})",
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _grafana_panel(panel: dict[str, Any]) -> dict[str, Any]:
    unit = panel.get("unit", "")
    return {
        "type": "timeseries",
        "title": panel["title"],
        "description": panel.get("description", ""),
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": UNITS.get(unit, f"suffix: {unit}") if unit else "short"}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "legendFormat": legend, "expr": expr}
            for number, (legend, expr) in enumerate(panel["queries"].items())
        ],
    }


def vmui(name: str) -> dict[str, Any]:
    """Return a dashboard for `-vmui.customDashboardsPath`, which knows no variables."""
    rows = [
        {"title": row["title"], "panels": [_vmui_panel(panel) for panel in row["panels"]]}
        for row in SOURCE[name]["rows"]
    ]
    return {"title": SOURCE[name]["title"], "rows": rows}


def _vmui_panel(panel: dict[str, Any]) -> dict[str, Any]:
    exprs = [CHOICE.sub("", expr).replace("{}", "") for expr in panel["queries"].values()]
    return {
        "title": panel["title"],
        **({"description": panel["description"]} if "description" in panel else {}),
        **({"unit": panel["unit"]} if "unit" in panel else {}),
        "width": VMUI_WIDTH // COLUMNS,
        "expr": exprs,
        "alias": list(panel["queries"]),
    }


def written(name: str, kind: str) -> str:
    """Return the content of a dashboard's file."""
    return json.dumps({"grafana": grafana, "vmui": vmui}[kind](name), indent=1, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Return path → content of all dashboards."""
    return {PLACE / kind / f"{name}.json": written(name, kind) for kind in KINDS for name in NAMES}


def main() -> None:
    """Write the dashboards."""
    for file, text in files().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


if __name__ == "__main__":
    main()

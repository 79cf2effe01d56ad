"""systemd_units: units are written as requested, and only managed units are removed."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import ROOT, load

units = load("plugins/module_utils/systemd_units.py")
WANTS: dict[str, Any] = {
    "name": "mlflow",
    "description": None,
    "user": "mlflow",
    "group": None,
    "command": "/opt/metalworks/mlflow/current/bin/mlflow server",
    "prestart": ["/bin/true"],
    "after": ["network-online.target", "other.service"],
    "service": {"MemoryMax": "2G", "ReadWritePaths": ["/a", "/b"], "UMask": "0027"},
    "health_timeout": 30,
}


def test_a_unit_is_rendered_from_its_options() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(units.unit_text(WANTS))
    assert parser["Unit"]["Description"] == "mlflow"
    assert parser["Unit"]["After"] == "network-online.target other.service"
    service = parser["Service"]
    assert (service["ExecStart"], service["Group"]) == (WANTS["command"], "mlflow")
    assert service["TimeoutStartSec"] == "30"
    assert service["EnvironmentFile"] == "/etc/metalworks/mlflow.env"


def test_a_units_own_settings_come_last() -> None:
    lines = units.unit_text(WANTS).splitlines()
    assert [line for line in lines if line.startswith("ReadWritePaths=")] == ["ReadWritePaths=/a", "ReadWritePaths=/b"]
    assert lines.index("UMask=0077") < lines.index("UMask=0027")


def test_an_environment_file_reads_back_unchanged() -> None:
    given = {"PLAIN": "value", "HARD": 'a "b" $c \\ `d`', "NUMBER": 5}
    read = {}
    for line in units.environment_text(given).splitlines():
        if not line.startswith("#"):
            name, _, value = line.partition("=")
            read[name] = re.sub(r"\\(.)", r"\1", value.removeprefix('"').removesuffix('"'))
    assert read == {name: str(value) for name, value in given.items()}


def test_only_managed_units_count_as_unlisted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(units, "UNITS", tmp_path)
    for name in ("demo-a", "demo-b", "other"):
        (tmp_path / f"{name}.service").write_text(f"{units.MANAGED}\n[Unit]\n")
    (tmp_path / "demo-by-hand.service").write_text("[Unit]\n")
    assert units.unlisted("demo-*", {"demo-a"}) == ["demo-b"]


def test_exceptions_to_the_sandbox_are_in_one_list() -> None:
    names = {line.partition("=")[0] for line in units.SANDBOX.splitlines()} - {"MemoryMax"}
    setting = re.compile(rf"^\s*(?:\{{)?'?({'|'.join(sorted(names))})'?: *\"?'?([\w@~-]*)", re.MULTILINE)
    inline = re.compile(rf"\{{'({'|'.join(sorted(names))})': *'?([\w@~-]*)")
    files = [path for path in ROOT.glob("roles/*/*/*.yml") if path.parent.name in ("tasks", "vars")]
    found = {pair for path in files for each in (setting, inline) for pair in each.findall(path.read_text())}
    assert ("PrivateDevices", "false") in found
    told = (ROOT / "docs/security.md").read_text()
    assert not [pair for pair in sorted(found) if f"`{pair[0]}={pair[1]}`" not in told]

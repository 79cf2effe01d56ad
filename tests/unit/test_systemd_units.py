"""systemd_units: units are written as requested, and only managed units are removed."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import ROOT, load, role_templar

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
    "schedule": None,
}
SCHEDULE = {"calendar": "Mon 04:00", "random_delay": "2h", "persistent": True, "then": ""}
RUNNABLE = {**WANTS, "name": "demo", "user": "root", "command": "/bin/true", "service": {}, "schedule": SCHEDULE}


class Refused(Exception):
    """The module ended with an error."""


class Module:
    """Runs commands as Ansible's module does."""

    check_mode = False

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def run_command(self, command: list[str], **_: Any) -> tuple[int, str, str]:
        """Run a command that only reads; note those that change something."""
        self.commands.append(command)
        if command[0] != "systemd-analyze":
            return 0, "", ""
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def fail_json(self, msg: str) -> None:
        """End with an error."""
        raise Refused(msg)


def parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_a_unit_is_rendered_from_its_options() -> None:
    parser = parsed(units.unit_text(WANTS))
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


def test_a_unit_with_a_schedule_runs_to_its_end_when_its_timer_starts_it() -> None:
    service, timer = parsed(units.unit_text(RUNNABLE)), parsed(units.timer_text(RUNNABLE))
    assert service["Service"]["Type"] == "oneshot"
    assert not {"Restart", "RestartSec", "TimeoutStartSec"} & set(service["Service"])
    assert "Install" not in service  # only the timer starts it, also after a boot
    assert dict(timer["Timer"]) == {"OnCalendar": "Mon 04:00", "RandomizedDelaySec": "2h", "Persistent": "true"}
    assert timer["Install"]["WantedBy"] == "timers.target"
    unit = units.Unit(Module(), RUNNABLE)
    unit.verify({"demo.service": units.unit_text(RUNNABLE), "demo.timer": units.timer_text(RUNNABLE)})


def test_a_unit_can_follow_each_run_of_another() -> None:
    followed = parsed(units.unit_text({**RUNNABLE, "schedule": {**SCHEDULE, "then": "watch"}}))["Unit"]
    assert (followed["OnSuccess"], followed["OnFailure"]) == ("watch.service", "watch.service")
    assert not {"OnSuccess", "OnFailure"} & set(parsed(units.unit_text(RUNNABLE))["Unit"])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"calendar": "Monday 25:00"}, "Invalid argument"),
        ({"calendar": "2020-01-01"}, "This time never comes again"),
        ({"random_delay": "1 fortnight"}, "fortnight"),
    ],
)
def test_a_schedule_that_starts_nothing_is_refused(wrong: dict[str, str], reason: str) -> None:
    wants = {**RUNNABLE, "schedule": {**SCHEDULE, **wrong}}
    unit = units.Unit(Module(), wants)
    with pytest.raises(Refused) as refusal:
        unit.verify({"demo.service": units.unit_text(wants), "demo.timer": units.timer_text(wants)})
    assert reason in str(refusal.value)
    assert "nothing was changed" in str(refusal.value)
    assert f"{next(iter(wrong))} is {next(iter(wrong.values()))!r}" in str(refusal.value)


MLFLOW = {
    "mlflow_database_host": "db", "mlflow_database_name": "mlflow", "mlflow_database_user": "mlflow",
    "mlflow_admin_password": "hidden", "mlflow_flask_secret_key": "hidden", "mlflow_s3_endpoint": "https://s3",
    "mlflow_s3_bucket": "files", "mlflow_s3_access_key": "mlflow", "mlflow_s3_secret_key": "secret",
    "mlflow_auth_database_name": "auth", "mlflow_auth_database_user": "auth",
}  # fmt: skip


@pytest.mark.parametrize(
    ("role", "variable", "settings"),
    [("disk_space", "__disk_space_units", {}), ("mlflow", "__mlflow_collection", MLFLOW)],
)
def test_scheduled_units_of_roles_are_valid_and_confined(
    role: str, variable: str, settings: dict[str, str], tmp_path: Path
) -> None:
    templar = role_templar(ROOT / "roles" / role, **settings)
    (given,) = templar.template(templar.available_variables[variable])
    wants = {**WANTS, "prestart": [], **given, "group": "root"}
    wants["command"] = "/usr/bin/true " + wants["command"].partition(" ")[2]  # the program is not on this machine
    wants["user"] = "root"
    wants["schedule"] = {"random_delay": "0", "persistent": True, "then": ""} | wants["schedule"]
    assert wants["name"].startswith("metalworks-")
    assert "hidden" not in str(given["environment"])
    service, timer = units.unit_text(wants), units.timer_text(wants)
    units.Unit(Module(), wants).verify({f"{wants['name']}.service": service, f"{wants['name']}.timer": timer})
    file = tmp_path / f"{wants['name']}.service"
    file.write_text(service.replace("User=root", f"User={given['user']}"))
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for .*: ([0-9.]+)", said.stdout)
    assert found, said
    assert float(found[1]) <= 2.0, said.stdout


def test_what_was_deleted_in_mlflow_is_kept_for_ever_on_demand() -> None:
    templar = role_templar(ROOT / "roles/mlflow", **MLFLOW, mlflow_deleted_days=0)
    assert templar.template(templar.available_variables["__mlflow_collection"]) == []


def test_a_unit_is_removed_with_its_timer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(units, "UNITS", tmp_path)
    monkeypatch.setattr(units, "SETTINGS", tmp_path)
    for name in ("demo.service", "demo.timer", "demo.env", "other.timer"):
        (tmp_path / name).touch()
    module = Module()
    units.remove(module, "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["other.timer"]
    # The timer first: it must not start the service again.
    assert [command[-1] for command in module.commands] == ["demo.timer", "demo.service"]


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

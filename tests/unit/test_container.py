"""Containers of podman and Docker: what a unit's file becomes, what is refused, and what the base is made of."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.repository import ROOT, load, role_templar
from tests.unit.test_systemd_units import MLFLOW, Module, Refused, parsed, units

container = load("plugins/module_utils/container.py")
WANTS: dict[str, Any] = {
    "name": "demo", "description": None, "user": "root", "group": None, "after": [], "health_timeout": 30,
    "command": "/opt/metalworks/demo/current/bin/demo --mark '100 %%'", "prestart": ["/opt/metalworks/demo/migrate"],
    "environment": '{"TOKEN": "hidden", "MARK": "one"}', "restart_on": [], "schedule": None,
    "service": {"MemoryMax": "2G", "WatchdogSec": 30, "RuntimeDirectory": "demo", "Nice": 10},
}  # fmt: skip


def wants(engine: str, **other: Any) -> dict[str, Any]:
    image = {"engine": engine, "image": "localhost/metalworks-base:1", "root": "/opt/metalworks/demo"}
    return {**WANTS, "container": image, **other}


def commands(engine: str, **other: Any) -> list[list[str]]:
    """Return the unit's start commands that run in a container, as systemd splits them."""
    lines = units.unit_text(wants(engine, **other)).splitlines()
    found = [line.partition("=+")[2] for line in lines if line.startswith(("ExecStart=", "ExecStartPre="))]
    return [shlex.split(line) for line in found if " run " in line]


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_a_container_is_closed_and_has_the_units_user_network_and_files(engine: str) -> None:
    for command in commands(engine):
        for option in ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=0:0", "--rm"):
            assert option in command
        assert {"--network=host", "--userns=host", "--pull=never"} <= {*command}
        mounts = [one.partition("=")[2].split(",") for one in command if one.startswith("--mount=")]
        writable = {fields[1].partition("=")[2] for fields in mounts if "readonly" not in fields}
        assert writable - {container.NOTIFY, f"{container.RELAYS}/demo"} == {
            "/var/lib/demo", "/run/demo", f"{container.LARGE}/demo"
        }  # fmt: skip
    before, main = commands(engine)
    assert before[-1] == "/opt/metalworks/demo/migrate"
    assert main[-3:] == ["/opt/metalworks/demo/current/bin/demo", "--mark", "100 %%"]  # as in the native form


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_a_secret_is_in_no_command_line(engine: str) -> None:
    text = units.unit_text(wants(engine))
    assert "hidden" not in text
    assert "--env=TOKEN " in text
    assert "EnvironmentFile=/etc/metalworks/demo.env" in text


def test_memory_is_limited_by_the_unit_or_by_docker() -> None:
    assert "--memory=2147483648" in commands("docker")[1]
    assert not [one for one in commands("podman")[1] if one.startswith("--memory")]
    assert parsed(units.unit_text(wants("podman")))["Service"]["MemoryMax"] == "2G"
    assert "--cgroups=disabled" in commands("podman")[1]


@pytest.mark.parametrize(
    ("limit", "expected"), [("infinity", 0), ("50%", 500), ("12.5%", 125), ("2K", 2048), ("1G", 1 << 30), ("700", 700)]
)
def test_a_memory_limit_in_bytes(limit: str, expected: int) -> None:
    assert container.in_bytes(limit, 1000) == expected


def test_only_dockers_keep_alives_need_the_relay_and_only_the_server_sends_any() -> None:
    before, main = commands("docker")
    assert main[:4] == [container.PYTHON, str(container.RELAY), f"{container.RELAYS}/demo", "root"]
    assert container.NOTIFY not in " ".join(before)
    assert str(container.RELAY) not in " ".join(commands("podman")[1])
    assert f"--mount=type=bind,source={container.NOTIFY},target={container.NOTIFY}" in commands("podman")[1]


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_systemd_accepts_the_unit(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "program", lambda _: "/bin/true")
    monkeypatch.setattr(units.container, "program", lambda _: "/bin/true")
    units.Unit(Module(), wants(engine)).verify({"demo.service": units.unit_text(wants(engine))})


@pytest.mark.parametrize(("engine", "expected"), [("podman", "podman"), ("docker", "docker")])
def test_a_unit_file_tells_its_engine(engine: str, expected: str) -> None:
    assert container.engine_of(units.unit_text(wants(engine))) == expected
    assert container.engine_of(units.unit_text({**WANTS, "container": None})) == ""


@pytest.mark.parametrize("argument", ["plain", "a b", 'a "b"', "$HOME", "50%", "back\\slash", "it's"])
def test_an_argument_reaches_the_program_unchanged(argument: str) -> None:
    read = container.quoted(argument).replace("%%", "%").replace("$$", "$")
    assert shlex.split(read.replace("$", "\\$")) == [argument] or shlex.split(read) == [argument]


@pytest.mark.parametrize(
    ("service", "environment", "reason"),
    [
        ({"ReadWritePaths": "/srv"}, {}, "ReadWritePaths, which no container has"),
        ({}, {"DOCKER_HOST": "tcp://other"}, "DOCKER_HOST, which would steer the engine"),
        ({}, {"HOME": "/tmp"}, "HOME, which would steer"),
        ({}, {"LD_PRELOAD": "/x"}, "LD_PRELOAD"),
    ],
)
def test_what_a_container_cannot_have_is_refused(
    service: dict[str, str], environment: dict[str, str], reason: str
) -> None:
    assert reason in container.refusal({"name": "demo", "service": service}, environment)


def test_the_servers_have_a_container_form() -> None:
    templar = role_templar(ROOT / "roles/mlflow", **MLFLOW)
    mlflow = [templar.template(templar.available_variables["__mlflow_unit"])]
    mlflow += templar.template(templar.available_variables["__mlflow_collection"])
    (task,) = yaml.safe_load((ROOT / "roles/prefect_server/tasks/server.yml").read_text())
    prefect = task["vars"]["python_app_units"]
    names = role_templar(ROOT / "roles/prefect_server").available_variables["__prefect_server_environment"]
    for unit in [*mlflow, *prefect]:
        environment = unit["environment"] if isinstance(unit["environment"], dict) else names
        assert container.refusal({"name": unit["name"], "service": unit["service"]}, environment) == ""


class Host(Module):
    """Answers commands from a table: a part of the command → what it prints, or its exit status."""

    params: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, **answers: str | int) -> None:
        super().__init__()
        self.answers = answers

    def run_command(self, command: list[str], **_: Any) -> tuple[int, str, str]:
        self.commands.append(command)
        for part, answer in self.answers.items():
            if part in command or any(Path(one).name == part for one in command[:1]):
                return (answer, "", "the reason") if isinstance(answer, int) else (0, answer, "")
        return 0, "", ""


def image(module: Host, engine: str = "docker", given: str = "") -> Any:
    python = {"runtime": engine, "image": given, "python": "/usr/bin/python3", "units": [{"name": "demo"}]}
    return container.Image(module, python)


PACKAGES = {"apt-cache": "python3\n  Depends: libc6\nlibc6\n", "dpkg": ""}


def test_a_base_is_named_after_the_versions_of_its_packages() -> None:
    def base(version: str) -> str:
        query = {"dpkg-query": f"installed python3 3.11\ninstalled libc6 {version}\nconfig-files old 1\n"}
        return str(image(Host(**PACKAGES, **query)).base())

    assert base("1") == base("1")
    assert base("1") != base("2")
    assert base("1").startswith("localhost/metalworks-base:")


def test_a_base_has_each_file_once_and_the_compiled_modules(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/__pycache__").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "usr/lib/one.py").touch()
    compiled = tmp_path / f"usr/lib/__pycache__/one.{sys.implementation.cache_tag}.pyc"
    compiled.touch()
    listed = "\n".join(f"{tmp_path}/{name}" for name in ("lib", "lib/one.py", "usr/lib/one.py", "usr/lib/gone.py"))
    made = image(Host(**{"dpkg": listed}))
    made.packages = {"python3": "1"}
    assert sorted(made.files()) == sorted(map(str, (tmp_path / "lib", tmp_path / "usr/lib/one.py", compiled)))


@pytest.fixture
def engine_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "engine").touch()
    monkeypatch.setattr(container, "program", lambda _: str(tmp_path / "engine"))
    monkeypatch.setattr(container, "UNITS", tmp_path)


def test_an_engine_that_is_not_there_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "program", lambda _: "/absent/docker")
    with pytest.raises(Refused, match=r"apt install docker\.io"):
        image(Host()).ensure()


@pytest.mark.usefixtures("engine_there")
def test_an_engine_that_does_not_answer_is_refused() -> None:
    with pytest.raises(Refused, match="the reason"):
        image(Host(info=1)).ensure()


@pytest.mark.usefixtures("engine_there")
def test_an_image_with_another_python_is_refused() -> None:
    module = Host(run="Python 3.12.1\n", python3="Python 3.11.2\n")
    with pytest.raises(Refused, match=r"has Python 3\.12\.1, and the release is built with Python 3\.11\.2"):
        image(module, given="registry.example.org/base:1").ensure()


@pytest.mark.usefixtures("engine_there")
def test_an_image_that_cannot_be_pulled_is_refused() -> None:
    with pytest.raises(Refused, match="cannot pull registry"):
        image(Host(inspect=1, pull=1), given="registry.example.org/base:1").ensure()


@pytest.mark.usefixtures("engine_there")
def test_another_interpreter_than_the_distributions_is_refused() -> None:
    made = image(Host(**{"dpkg": "/usr/bin/other\n"}))
    made.packages, made.python = {"python3": "1"}, "/opt/python/bin/python3"
    with pytest.raises(Refused, match="/opt/python/bin/python3 is another"):
        made.build("localhost/metalworks-base:1")


@pytest.mark.usefixtures("engine_there")
def test_bases_in_use_and_the_newest_stay(tmp_path: Path) -> None:
    (tmp_path / "demo.service").write_text(f"run {container.BASE}:1 sh\n")
    images = "".join(f"{container.BASE}:{number}\n" for number in (5, 4, 3, 2, 1))
    module = Host(images=images)
    container.prune(module, "docker")
    assert [command[-1] for command in module.commands if "rmi" in command] == [
        f"{container.BASE}:3",
        f"{container.BASE}:2",
    ]


def test_the_relay_hands_on_keep_alives_alone(tmp_path: Path) -> None:
    outside, inside = tmp_path / "systemd", tmp_path / "notify/demo"
    program = ROOT / "roles/python_app/files/relay.py"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(outside))
        systemd.settimeout(20)
        command = [sys.executable, str(program), str(inside), getpass.getuser(), "/bin/sleep", "30"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(outside)}
        with subprocess.Popen(command, env=environment, start_new_session=True) as client:
            try:
                while not (inside.exists() and inside.stat().st_mode & 0o777 == 0o600):
                    assert client.poll() is None
                    time.sleep(0.01)
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
                    for message in (b"MAINPID=1", b"WATCHDOG=1\nMAINPID=1", b"WATCHDOG=1"):
                        wire.sendto(message, str(inside))
                assert systemd.recv(100) == b"WATCHDOG=1"
                while Path(f"/proc/{client.pid}/comm").read_text() != "sleep\n":  # it becomes the client
                    assert client.poll() is None
                    time.sleep(0.01)
            finally:
                os.killpg(client.pid, 9)

"""The same program in containers of podman and of Docker: same bytes, same answers, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

SCENARIO = Path(__file__).resolve().parent.parent
ROOT = "/opt/metalworks/demo"
UNITS = ("demo-web", "demo-worker", "demo-alive")
DATA = "/var/lib/demo-web/data"
MEASURE = (SCENARIO / "files/measure.py").read_text()
FIGURES: list[str] = []
GET = "curl --silent --fail http://127.0.0.1:8099/data | sha256sum"


def main_pid(host, unit: str) -> str:
    return host.check_output(f"systemctl show {unit} --property MainPID --value")


def wait_until(host, condition: str, seconds: int = 60) -> None:
    assert host.run(f"timeout {seconds} sh -c 'until {condition}; do sleep 0.1; done'").rc == 0, condition


def serves(host) -> None:
    wait_until(host, "curl --silent --fail --output /dev/null http://127.0.0.1:8099/data")


def program(host, port: int = 8099) -> str:
    """Return the process that listens, not its client's."""
    return host.check_output(f"ss -Hltnp sport = :{port} | sed 's/.*pid=//; s/,.*//'")


def containers(host, engine: str) -> list[str]:
    return sorted(host.check_output(f"{engine} ps --all --format '{{{{.Names}}}}'").split())


def measured(host, form: str) -> str:
    return f"{form:6} {host.check_output('python3 -c %s demo-web 8099 %s', MEASURE, form)}"


@pytest.fixture(scope="module")
def native(host, play):
    """Return the answer of the native form; in the end, the program has that form again, without a trace of others."""
    host.check_output(f"head -c 100000 /dev/urandom > {DATA} && chown demo: {DATA} && chmod 600 {DATA}")
    serves(host)
    answer = host.check_output(GET)
    FIGURES.append(measured(host, "native"))
    yield answer
    result = play()
    assert result.returncode == 0, result.stdout
    assert host.check_output(GET) == answer
    for engine in ("podman", "docker"):
        assert containers(host, engine) == []
        assert host.check_output(f"{engine} volume ls --quiet") == ""
    assert "ExecStopPost" not in host.file("/etc/systemd/system/demo-web.service").content_string


@pytest.fixture(scope="module", params=["podman", "docker"])
def engine(request, native, host, play):
    """Run the program in a container."""
    result = play(runtime=request.param)
    assert result.returncode == 0, result.stdout
    return request.param


def test_a_container_gives_the_same_answer_from_the_same_bytes(host, engine, native):
    assert host.check_output(GET) == native
    assert containers(host, engine) == sorted(f"metalworks-{unit}" for unit in UNITS)
    other = {"podman": "docker", "docker": "podman"}[engine]
    assert containers(host, other) == []


def test_the_same_input_changes_nothing(host, engine, play):
    before = {unit: main_pid(host, unit) for unit in UNITS}
    result = play(runtime=engine)
    assert "changed=0" in result.stdout, result.stdout
    assert {unit: main_pid(host, unit) for unit in UNITS} == before


def test_a_container_has_no_rights_and_sees_little(host, engine):
    pid = program(host)
    status = dict(line.split(":\t", 1) for line in host.file(f"/proc/{pid}/status").content_string.splitlines())
    user = host.check_output("id --user demo")
    assert status["Uid"].split() == [user] * 4
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"], status["Umask"]) == (
        "0" * 16,
        "0" * 16,
        "1",
        "0077",
    )
    root = f"nsenter --target {pid} --mount --"
    assert host.run(f"{root} touch /usr/x").rc != 0
    assert host.run(f"{root} touch {ROOT}/x").rc != 0
    hidden = host.run(f"{root} ls /etc/metalworks")
    assert hidden.rc != 0
    assert hidden.stderr.strip().endswith("No such file or directory")
    assert host.check_output(f"{root} stat --format '%U %a' /var/tmp /tmp").split("\n") == ["demo 700", "root 1777"]


def test_a_secret_is_in_the_environment_and_in_no_command_line(host, engine):
    assert 'a"b$c`d\\e' in host.check_output(f"tr '\\0' '\\n' < /proc/{program(host)}/environ")
    assert 'a"b' not in host.check_output("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
    assert 'a"b' not in host.check_output("systemctl cat demo-web")


def test_output_is_in_the_units_journal(host, engine):
    host.check_output("curl --silent --output /dev/null http://127.0.0.1:8099/asked-by-" + engine)
    wait_until(host, f"journalctl --unit demo-web --output cat | grep --quiet asked-by-{engine}")


@pytest.mark.parametrize("victim", ["client", "program", "engine"])
def test_nothing_is_left_behind_after_a_kill(host, engine, victim):
    old = program(host)
    if victim == "engine":
        if engine == "podman":
            pytest.skip("podman has no engine that runs all the time")
        host.check_output("kill -9 $(pidof dockerd)")
    else:
        host.check_output(f"kill -9 {main_pid(host, 'demo-web') if victim == 'client' else old}")
    wait_until(host, f"! test -e /proc/{old}")
    serves(host)
    assert program(host) != old
    wait_until(host, "systemctl is-active --quiet demo-web demo-worker demo-alive")
    wait_until(host, f"test $({engine} ps --quiet | wc --lines) = 3")
    assert containers(host, engine) == sorted(f"metalworks-{unit}" for unit in UNITS)
    assert host.check_output(f"{engine} volume ls --quiet") == ""


def test_a_stuck_program_is_restarted_by_the_watchdog(host, engine):
    def restarts() -> int:
        return int(host.check_output("systemctl show demo-alive --property NRestarts --value"))

    before = restarts()
    host.check_output("sleep 4")  # longer than the watchdog waits
    assert restarts() == before
    host.check_output("touch /var/lib/demo-alive/stuck")
    wait_until(host, f"test $(systemctl show demo-alive --property NRestarts --value) -gt {before}")
    host.check_output("rm /var/lib/demo-alive/stuck")
    assert "Watchdog timeout" in host.check_output("journalctl --unit demo-alive --output cat --lines 50")


def test_a_scheduled_unit_runs_in_a_container_too(host, engine):
    host.check_output("rm --force /var/lib/demo-clean/ran; systemctl start demo-clean.service")
    assert host.file("/var/lib/demo-clean/ran").content_string == "x"
    assert host.file("/var/lib/demo-clean/ran").mode == 0o600
    host.check_output("rm /var/lib/demo-clean/ran")


# The next three do the same in each engine; one of them is enough.
@pytest.mark.parametrize("engine", ["podman"], indirect=True)
def test_another_release_and_back(host, engine, play, tmp_path):
    first = host.check_output(f"readlink {ROOT}/current")
    lock = tmp_path / "again.txt"
    lock.write_text((SCENARIO / "files/good.txt").read_text() + "# again\n")
    for option, changes in (({"lock": str(lock)}, True), ({}, False)):
        old = program(host)
        result = play(runtime=engine, **option)
        assert result.returncode == 0, result.stdout
        assert (host.check_output(f"readlink {ROOT}/current") != first) == changes
        assert program(host) != old
        assert host.check_output(f"readlink /proc/{program(host)}/cwd") == "/var/lib/demo-web"


@pytest.mark.parametrize("engine", ["docker"], indirect=True)
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"image": "registry.invalid/base:1"}, "cannot pull registry.invalid/base:1"),
        ({"worker_command": "bin/no-such-program"}, "systemd rejects demo-worker.service"),
    ],
)
def test_what_fails_leaves_the_old_release_serving(host, engine, play, wrong, reason):
    before = [main_pid(host, unit) for unit in UNITS], host.check_output(f"readlink {ROOT}/current")
    result = play(runtime=engine, **wrong)
    assert result.returncode != 0
    assert reason in " ".join(result.stdout.split())
    assert ([main_pid(host, unit) for unit in UNITS], host.check_output(f"readlink {ROOT}/current")) == before


@pytest.mark.parametrize("engine", ["docker"], indirect=True)
def test_an_image_of_the_teams_own_serves_the_same(host, engine, play, native):
    base = host.check_output(
        f"{engine} images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' localhost/metalworks-base"
    ).split()[0]
    host.check_output(f"{engine} tag {base} localhost/own/base:1")
    result = play(runtime=engine, image="localhost/own/base:1")
    assert result.returncode == 0, result.stdout
    assert "localhost/own/base:1" in host.check_output("systemctl cat demo-web")
    assert host.check_output(GET) == native
    assert play(runtime=engine).returncode == 0
    host.check_output(f"{engine} rmi localhost/own/base:1")


def test_a_stopped_unit_has_no_container(host, engine):
    host.check_output("systemctl stop demo-web")
    assert host.check_output("systemctl show demo-web --property ActiveState,Result --value").split() in (
        ["success", "inactive"],
        ["inactive", "success"],
    )
    assert "metalworks-demo-web" not in containers(host, engine)
    host.check_output("systemctl start demo-web")
    serves(host)


def test_figures_of_both_forms(host, engine, capsys):
    FIGURES.append(measured(host, engine))
    with capsys.disabled():
        print("", *FIGURES, sep="\n")
    serves(host)

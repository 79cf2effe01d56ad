"""A Python program on a host: releases, restarts only when needed, and failures that do not stop it."""

from __future__ import annotations

from pathlib import Path

import pytest

drifts = pytest.mark.drifts
SCENARIO = Path(__file__).resolve().parent.parent
ROOT = "/opt/metalworks/demo"


def pids(host) -> dict[str, str]:
    return {
        unit: host.check_output(f"systemctl show {unit} --property MainPID --value")
        for unit in ("demo-web", "demo-worker")
    }


def wait_until(host, condition: str) -> None:
    assert host.run(f"timeout 30 sh -c 'until {condition}; do sleep 0.2; done'").rc == 0, condition


@pytest.fixture(autouse=True)
def as_converged(host, request, play):
    """Return the services' processes; after a test marked `drifts`, a play must repair the host."""
    yield pids(host)
    if request.node.get_closest_marker("drifts"):
        result = play()
        assert result.returncode == 0, result.stdout


def test_both_services_run_from_the_release(host):
    for unit, port in (("demo-web", 8099), ("demo-worker", 8098)):
        assert host.service(unit).is_running
        assert host.service(unit).is_enabled
        assert host.run(f"curl --silent --fail http://127.0.0.1:{port}/").rc == 0
    assert (
        host.check_output(f"{ROOT}/current/bin/python -c 'import h11, metalworks; print(h11.__version__)'") == "0.16.0"
    )


def test_only_root_and_the_service_can_read_secrets(host):
    environment = host.file("/etc/metalworks/demo-web.env")
    assert (environment.user, environment.group, environment.mode) == ("root", "demo", 0o640)
    assert 'a"b$c`d\\e' in host.check_output(f"cat /proc/{pids(host)['demo-web']}/environ | tr '\\0' '\\n'")


@drifts
def test_a_changed_environment_restarts_that_service_only(host, as_converged, play):
    result = play(worker_mark="second")
    assert result.returncode == 0, result.stdout
    assert pids(host)["demo-web"] == as_converged["demo-web"]
    assert pids(host)["demo-worker"] != as_converged["demo-worker"]


def test_a_restart_owed_by_a_killed_play_is_made_up_for(host, as_converged, play):
    # The state after a play that was killed between changing a file and restarting the service.
    host.run_test("sh -c 'echo two >> /etc/worker-input'")
    result = play()
    assert result.returncode == 0, result.stdout
    assert pids(host)["demo-worker"] != as_converged["demo-worker"]
    assert pids(host)["demo-web"] == as_converged["demo-web"]


def test_a_killed_process_comes_back(host, as_converged):
    host.check_output(f"kill -9 {as_converged['demo-web']}")
    wait_until(host, "curl --silent --fail --output /dev/null http://127.0.0.1:8099/")
    assert pids(host)["demo-web"] != as_converged["demo-web"]


@drifts
def test_the_old_release_keeps_running_if_a_lock_cannot_be_installed(host, as_converged, play):
    state = f"readlink {ROOT}/current; ls {ROOT}/releases"
    before = host.check_output(state)
    result = play(lock=str(SCENARIO / "files" / "wrong_hash.txt"))
    assert result.returncode != 0
    assert "current release stays in use" in result.stdout
    assert host.check_output(state) == before
    assert pids(host) == as_converged


def test_a_release_belongs_to_root_alone(host):
    assert host.check_output(f"find {ROOT}/current/ ! -user root -o -perm /6000 -o -name .lock") == ""


def test_an_incomplete_release_is_rebuilt(host, play):
    release = host.check_output(f"readlink {ROOT}/current")
    host.check_output(f"rm -r {release}/.complete {release}/lib")
    result = play()
    assert result.returncode == 0, result.stdout
    assert host.check_output(f"{ROOT}/current/bin/python -c 'import h11; print(h11.__version__)'") == "0.16.0"


def test_an_invalid_unit_changes_nothing(host, as_converged, play):
    before = host.file("/etc/systemd/system/demo-worker.service").sha256sum
    result = play(worker_command="bin/no-such-program")
    assert result.returncode != 0
    assert "systemd rejects demo-worker.service" in result.stdout
    assert host.file("/etc/systemd/system/demo-worker.service").sha256sum == before
    assert pids(host) == as_converged


@drifts
def test_a_service_that_stays_unhealthy_shows_its_journal(host, play):
    result = play(worker_command="bin/python -c 'raise SystemExit(\"the reason\")'", worker_health_timeout="5")
    assert result.returncode != 0
    assert "demo-worker.service" in result.stdout
    assert "the reason" in result.stdout


def timer(host) -> dict[str, str]:
    names = "ActiveState,UnitFileState,NextElapseUSecRealtime"
    shown = host.check_output(f"systemctl show demo-clean.timer --property {names}")
    return dict(line.split("=", 1) for line in shown.splitlines())


def test_a_unit_with_a_schedule_runs_when_its_timer_says(host):
    now = timer(host)
    assert (now["ActiveState"], now["UnitFileState"]) == ("active", "enabled")
    assert now["NextElapseUSecRealtime"].startswith("Mon ")
    assert not host.file("/var/lib/demo-clean/ran").exists, "nothing but the timer starts it"
    host.check_output("systemctl start demo-clean.service")
    assert host.file("/var/lib/demo-clean/ran").content_string == "x"
    host.check_output("rm /var/lib/demo-clean/ran")
    assert host.run("systemctl is-enabled demo-clean.service").stdout.strip() == "static"


@drifts
def test_a_changed_schedule_applies_and_a_stopped_timer_is_started(host, as_converged, play):
    host.check_output("systemctl disable --quiet --now demo-clean.timer")
    result = play(clean_schedule={"calendar": "Tue 05:00"})
    assert result.returncode == 0, result.stdout
    now = timer(host)
    assert (now["ActiveState"], now["UnitFileState"]) == ("active", "enabled")
    assert now["NextElapseUSecRealtime"].startswith("Tue ")
    assert pids(host) == as_converged


def test_an_invalid_schedule_changes_nothing(host, play):
    before = host.file("/etc/systemd/system/demo-clean.timer").sha256sum
    result = play(clean_schedule={"calendar": "Mon 25:00"})
    assert result.returncode != 0
    assert "demo-clean.service has an invalid schedule" in result.stdout
    assert host.file("/etc/systemd/system/demo-clean.timer").sha256sum == before


@drifts
def test_a_schedule_can_be_taken_away_and_given_back(host, play):
    result = play(clean_schedule=None, clean_command="bin/python -m http.server 8097 --bind 127.0.0.1")
    assert result.returncode == 0, result.stdout
    assert host.service("demo-clean").is_running
    assert host.service("demo-clean").is_enabled
    assert not host.file("/etc/systemd/system/demo-clean.timer").exists
    result = play()
    assert result.returncode == 0, result.stdout
    assert not host.service("demo-clean").is_running
    assert timer(host)["ActiveState"] == "active"

"""Security updates are installed automatically, and nothing else is."""

from __future__ import annotations

import functools

import pytest


@pytest.fixture(scope="session")
def play(play):
    """Run only this role: a whole play takes twice as long."""
    return functools.partial(play, "--tags", "unattended_upgrades")


def test_apt_uses_the_roles_settings(host):
    dump = host.check_output("apt-config dump")
    for line in (
        'APT::Periodic::Update-Package-Lists "1";',
        'APT::Periodic::Unattended-Upgrade "1";',
        'Unattended-Upgrade::Automatic-Reboot "false";',
    ):
        assert line in dump
    origins = [line.split('"')[1] for line in dump.splitlines() if "::Origins-Pattern:: " in line]
    assert origins
    assert [origin for origin in origins if "security" not in origin.lower()] == []


def test_a_dry_run_takes_only_security_updates_and_skips_held_packages(host):
    said = host.check_output("unattended-upgrade --dry-run --debug 2>&1")
    allowed = next(line for line in said.splitlines() if line.startswith("Allowed origins are:"))
    suite = host.check_output(". /etc/os-release && echo $VERSION_CODENAME")
    assert f"origin=Debian,codename={suite}-security,label=Debian-Security" in allowed
    assert "label=Debian," not in allowed + ","
    held = next(line for line in said.splitlines() if line.startswith("Initial blacklist"))
    assert "nvidia- cuda- postgresql-[0-9]+$" in held


def test_it_runs_every_day_and_its_log_is_rotated(host):
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert host.service(timer).is_enabled
        assert host.service(timer).is_running
    rotated = host.check_output("logrotate --debug /etc/logrotate.conf 2>&1")
    assert "/var/log/unattended-upgrades/unattended-upgrades.log" in rotated


def test_needrestart_reads_its_settings(host):
    assert "syntax OK" in host.check_output("perl -c /etc/needrestart/conf.d/metalworks.conf 2>&1")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"unattended_upgrades_never": ["nvidia-("]}, "not a valid regular expression"),
        ({"unattended_upgrades_origins": ['a";']}, "apt rejects the settings"),
        ({"unattended_upgrades_keep_running": ["prefect-("]}, "Search pattern not terminated"),
    ],
)
def test_invalid_patterns_are_refused(host, play, variables, message):
    before = host.check_output("apt-config dump")
    result = play(**variables)
    assert result.returncode != 0
    assert message in " ".join((result.stdout + result.stderr).split())
    assert host.check_output("apt-config dump") == before


def test_stopped_timers_are_started(host, play):
    host.check_output("systemctl disable --quiet --now apt-daily-upgrade.timer")
    result = play()
    assert result.returncode == 0, result.stdout
    assert host.service("apt-daily-upgrade.timer").is_enabled
    assert host.service("apt-daily-upgrade.timer").is_running

"""roles/sshd and roles/unattended_upgrades: effective settings, root logins, and patterns."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from ansible.template import trust_as_template

from tests.unit.repository import ROOT, load, read_yaml, rendered, role_templar

sshd = load("plugins/modules/sshd_config.py")
updates = load("roles/unattended_upgrades/files/check_settings.py")
INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf\n"


@pytest.mark.parametrize("text", [f"# a comment\n\n{INCLUDE}Port 22\n", f'include "{INCLUDE.split()[1]}"\n'])
def test_a_main_file_that_includes_the_folder_first_is_kept(text: str) -> None:
    assert sshd.including(text) == text


@pytest.mark.parametrize("text", ["", "Port 22\n", f"PasswordAuthentication yes\n{INCLUDE}", f"#{INCLUDE}"])
def test_any_other_main_file_is_changed_to_include_it(text: str) -> None:
    assert sshd.including(text) == INCLUDE + text


def test_settings_that_are_not_in_force_are_named() -> None:
    wanted = "# managed\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxAuthTries 4\n"
    shown = "passwordauthentication yes\npermitrootlogin without-password\nmaxauthtries 4\n"
    assert sshd.not_in_force(wanted, shown) == ["passwordauthentication is yes instead of no"]


def test_time_of_the_last_change_is_read() -> None:
    show = "ActiveState=active\nStateChangeTimestamp=Mon 2026-11-23 22:00:01.250000 UTC\n"
    assert sshd.changed_at(show) == 1795471201.25
    assert sshd.changed_at("ActiveState=inactive\nStateChangeTimestamp=\n") == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SSH_CONNECTION": "…"}, True),
        ({"SSH_CONNECTION": "…", "SUDO_USER": "ops"}, False),
        ({"SUDO_USER": "root"}, True),
        ({"SUDO_USER": "ops"}, False),
        ({}, False),
    ],
)
def test_root_logins_are_recognised(environment: dict[str, str], expected: bool) -> None:
    assert sshd.came_as_root(environment) is expected


def test_only_current_algorithms_are_offered() -> None:
    defaults = read_yaml(ROOT / "roles/sshd/defaults/main.yml")
    named = [name for kind in ("kex_algorithms", "ciphers", "macs") for name in defaults[f"sshd_{kind}"]]
    assert [name for name in named if any(old in name for old in ("sha1", "cbc", "md5", "nist", "group14"))] == []


def test_invalid_patterns_are_named() -> None:
    assert updates.unreadable(["nvidia-", r"libstdc\+\+6$", "postgresql-[0-9]+$"]) == []
    assert len(updates.unreadable(["nvidia-(", "", "a b"])) == 3


def test_settings_are_validated_by_the_whole_program() -> None:
    role = ROOT / "roles/unattended_upgrades"
    (task,) = (one for one in read_yaml(role / "tasks/main.yml") if "metalworks.platform.managed_files" in one)
    file, _ = task["metalworks.platform.managed_files"]["files"]
    command = shlex.split(role_templar(role).template(trust_as_template(file["validate"])).replace("%s", "/draft"))
    assert command[1:] == ["-c", (role / "files/check_settings.py").read_text().rstrip(), "/draft"]


def test_needrestart_leaves_runs_and_models_alone(tmp_path: Path) -> None:
    wiring = read_yaml(ROOT / "group_vars/all/wiring.yml")
    role = ROOT / "roles/unattended_upgrades"
    kept = {"unattended_upgrades_keep_running": wiring["unattended_upgrades_keep_running"]}
    settings = tmp_path / "metalworks.conf"
    settings.write_text(rendered(role_templar(role, **kept), role / "templates/needrestart.conf.j2"))
    # needrestart evaluates the file, then takes the value of the patterns that match a unit's name.
    program = """
        our %nrconf = (override_rc => {qr(^dbus) => 0});
        do shift or die $@;
        for my $unit (@ARGV) { print "$unit\n" if grep { $unit =~ /$_/ } keys %{$nrconf{override_rc}} }
    """
    units = ["prefect-worker-cpu.service", "prefect-worker-gpu-1.service", "inference-delay.service"]
    units += ["models-delay.service", "model-follower.service"]
    others = ["mlflow.service", "prefect-server.service", "nginx.service", "postgresql@15-main.service"]
    shown = subprocess.run(
        ["/usr/bin/perl", "-e", program, settings, *units, *others], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == units

"""sshd: only keys and current algorithms are accepted, and an invalid setting never stops the server."""

from __future__ import annotations

import functools

import pytest
from conftest import ADDRESS

OURS = "/etc/ssh/sshd_config.d/00-metalworks.conf"
drifts = pytest.mark.drifts


@pytest.fixture(scope="session")
def play(play):
    """Run only this role: a whole play takes three times as long."""
    return functools.partial(play, "--tags", "sshd")


@pytest.fixture
def converged(host, request, play):
    """Return the server's process; after a test marked `drifts`, a play must repair the host."""
    yield host.check_output("systemctl show ssh --property MainPID")
    if request.node.get_closest_marker("drifts"):
        result = play()
        assert result.returncode == 0, result.stdout


@pytest.fixture
def ssh(attacker, key):
    """Log in from outside."""

    def ssh(*options: str, command: str = "true"):
        given = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes"
        return attacker.run(f"ssh {given} -i /root/id {' '.join(options)} ops@{ADDRESS} {command}")

    return ssh


def test_only_a_key_can_log_in(ssh):
    assert ssh().rc == 0
    refused = ssh("-o PubkeyAuthentication=no", "-o PreferredAuthentications=password,keyboard-interactive,none")
    assert "Permission denied (publickey)" in refused.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("-o KexAlgorithms=diffie-hellman-group14-sha1", "no matching key exchange method found"),
        ("-o KexAlgorithms=ecdh-sha2-nistp256", "no matching key exchange method found"),
        ("-o Ciphers=aes128-cbc", "no matching cipher found"),
        ("-o Ciphers=aes256-ctr -o MACs=hmac-sha1", "no matching MAC found"),
    ],
)
def test_old_algorithms_are_refused(ssh, option, message):
    assert message in ssh(option).stderr


def test_settings_override_those_of_other_files(host):
    shown = host.check_output("sshd -T")
    for line in ("passwordauthentication no", "permitemptypasswords no", "permitrootlogin without-password"):
        assert line in shown
    for line in ("x11forwarding no", "maxauthtries 4", "allowagentforwarding no", "clientaliveinterval 60"):
        assert line in shown


@drifts
def test_agent_forwarding_follows_the_setting(host, converged, play, ssh):
    assert play(sshd_allow_agent_forwarding=True).returncode == 0
    assert "allowagentforwarding yes" in host.check_output("sshd -T")
    assert ssh("-A").rc == 0
    assert host.check_output("systemctl show ssh --property MainPID") == converged, "reloaded, not restarted"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"sshd_ciphers": ["rot13"]}, "Bad SSH2 cipher spec"),
        ({"sshd_settings": {"PermitRotLogin": "no"}}, "Bad configuration option: PermitRotLogin"),
        ({"sshd_settings": {"maxauthtries": "9"}}, "overrides these settings: maxauthtries is 4 instead of 9"),
    ],
)
def test_invalid_settings_are_refused_and_the_server_keeps_running(host, converged, ssh, play, variables, message):
    before = host.file(OURS).content_string
    result = play(**variables)
    assert result.returncode != 0
    assert message in " ".join((result.stdout + result.stderr).replace("\\", "").split())
    assert host.file(OURS).content_string == before
    assert host.check_output("systemctl show ssh --property MainPID") == converged
    assert ssh().rc == 0


def test_another_programs_broken_file_is_named_and_not_loaded(host, converged, ssh, play):
    broken = "/etc/ssh/sshd_config.d/99-broken.conf"
    host.check_output(f"echo 'Nonsense yes' > {broken}")
    try:
        result = play()
        assert result.returncode != 0
        said = " ".join((result.stdout + result.stderr).split())
        assert f"{broken}: line 1: Bad configuration option" in said
        assert ssh().rc == 0
    finally:
        host.check_output(f"rm {broken}")
    assert play().returncode == 0
    assert host.check_output("systemctl show ssh --property MainPID") == converged


def test_a_main_file_without_the_include_is_repaired(host, converged, play):
    host.check_output("sed --in-place '/^Include/d' /etc/ssh/sshd_config")
    assert "passwordauthentication yes" in host.check_output("sshd -T")
    assert play().returncode == 0
    assert "passwordauthentication no" in host.check_output("sshd -T")
    assert " changed=0 " in play().stdout


def test_a_reload_owed_by_a_killed_play_is_made_up_for(host, converged, play):
    def reloads() -> int:
        return int(host.check_output("journalctl --unit ssh | grep --count 'Received SIGHUP'"))

    host.check_output("touch /etc/ssh/sshd_config.d/50-cloud-init.conf")
    host.check_output("systemctl reload ssh")
    before = reloads()
    host.check_output(f"touch {OURS}")
    assert play().returncode == 0
    assert reloads() == before + 1
    assert " changed=0 " in play().stdout


def test_a_killed_server_always_comes_back(host, converged, ssh):
    pid = "systemctl show ssh --property MainPID --value"
    for _ in range(7):  # two more than the limit of the distribution's unit
        before = host.check_output(pid)
        host.check_output(f"kill -KILL {before}")
        host.check_output(
            f"timeout 30 sh -c 'until systemctl is-active --quiet ssh && test $({pid}) != {before}; do sleep 0.1; done'"
        )
    assert ssh().rc == 0

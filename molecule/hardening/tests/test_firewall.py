"""The firewall: closed ports are closed, and rules are repaired, refused or rolled back."""

from __future__ import annotations

import functools
import json
import os
import re
import time

import pytest
from conftest import ADDRESS, SCENARIO

from scripts.tests.warm_ansible import ansible_playbook

OUTSIDE, PLATFORM, LISTED = "198.18.0.66", "198.18.0.20", "198.18.0.30"
PORTS = (22, 443, 5432, 8000, 9999)
ALONE = ("--tags", "firewall")
drifts = pytest.mark.drifts


@pytest.fixture(scope="session")
def play(play):
    """Run only this role: a whole play takes twice as long."""
    return functools.partial(play, *ALONE)


def table(host) -> str:
    """Return the kernel's rules, without counters."""
    return re.sub(r"packets \d+ bytes \d+", "", host.check_output("nft list table inet metalworks"))


def state(host) -> tuple[str, str]:
    """Return everything that the role manages; if it is as before, no second run is needed to show that."""
    return table(host), host.check_output(
        "cd /etc; stat --format=%a nftables.conf; cat nftables.conf systemd/system/nftables.service.d/metalworks.conf;"
        "systemctl show nftables metalworks-firewall-rollback.timer --property ActiveState,UnitFileState"
    )


@pytest.fixture
def converged(host, request, play):
    """Return the converged host; after a test marked `drifts`, a play must repair it."""
    before = state(host)
    yield before
    if request.node.get_closest_marker("drifts"):
        result = play()
        assert result.returncode == 0, result.stdout
    assert state(host) == before


def test_a_scan_of_all_ports_finds_only_documented_ports(host, attacker):
    """Programs also listen on other ports, see `host`."""
    # Both hosts are on one bridge: a response comes at once or never.
    patience = "-T4 --min-rate 30000 --max-retries 1 --max-rtt-timeout 200ms"
    command = f"nmap -n -Pn -p- {patience} -oG - -S {OUTSIDE} -e eth0 {ADDRESS}"
    scanned = attacker.check_output(command)
    assert re.findall(r"(\d+)/open/tcp", scanned) == ["22", "443"]
    assert "/closed/" not in scanned, "dropped, so that nobody learns what is not there"


def test_each_port_is_open_only_to_its_addresses(reached):
    everybody = {(source, port) for source in (OUTSIDE, PLATFORM, LISTED) for port in (22, 443)}
    assert reached((OUTSIDE, PLATFORM, LISTED), PORTS) == everybody | {(PLATFORM, 5432), (LISTED, 8000)}


def test_the_host_answers_pings_and_reaches_others(host, attacker):
    attacker.check_output(f"ping -c 1 -W 2 {ADDRESS}")
    host.check_output(f"ping -c 1 -W 2 {OUTSIDE}")
    assert host.run("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9999), 2)'").rc == 0


CONNECT = """
import socket, sys
for where in sys.argv[1:]:
    address, _, port = where.rpartition(":")
    try:
        socket.create_connection((address, int(port)), 3).close()
    except OSError as error:
        print(where, error.strerror or error)
"""


def refused(host, user: str, *where: str) -> dict[str, str]:
    """Return what a user cannot reach, and the error that the program gets."""
    command = f"setpriv --reuid {user} --regid nogroup --clear-groups python3 -c %s {' '.join(where)}"
    return dict(line.split(" ", 1) for line in host.check_output(command, CONNECT).splitlines())


def test_a_program_can_connect_where_listed_and_is_rejected_at_once_elsewhere(host):
    """The role creates the user, so that the program is limited before it is installed."""
    where = ("127.0.0.1:9999", "127.0.0.1:443", "127.0.0.1:8000", "169.254.169.254:80", f"{OUTSIDE}:80")
    began = time.monotonic()
    assert refused(host, "program", *where) == dict.fromkeys(where[1:], "No route to host")
    assert time.monotonic() - began < 2
    # Other users can connect anywhere except to that port.
    assert refused(host, "nobody", "127.0.0.1:9999", "127.0.0.1:443", "127.0.0.1:8000") == {
        "127.0.0.1:8000": "No route to host"
    }
    assert refused(host, "root", "127.0.0.1:8000") == {}
    assert int(re.search(r"counter packets (\d+)", host.check_output("nft list chain inet metalworks refused"))[1]) > 4


def test_dropped_packets_are_counted(host, reached):
    def dropped() -> int:
        chain = host.check_output("nft list chain inet metalworks dropped")
        return int(re.search(r"counter packets (\d+)", chain)[1])

    before = dropped()
    assert not reached([OUTSIDE], [9999])
    assert dropped() > before


def test_rules_survive_a_reboot_and_other_tables_a_restart(host, converged):
    assert host.service("nftables").is_enabled
    host.check_output("nft add table ip of_docker")
    host.check_output("systemctl stop nftables && systemctl start nftables")
    assert "table ip of_docker" in host.check_output("nft list tables")
    host.check_output("nft delete table ip of_docker")


@pytest.mark.parametrize(
    "damage",
    [
        "nft flush ruleset",
        "nft insert rule inet metalworks input tcp dport 9999 accept",
        "nft add element inet metalworks platform4 { 198.18.0.66 }",
        "echo '# nothing' > /etc/nftables.conf && systemctl disable nftables",
        "systemctl stop nftables",
    ],
)
def test_damage_is_repaired(host, converged, damage, play, reached):
    host.check_output(damage)
    result = play()
    assert result.returncode == 0, result.stdout
    assert state(host) == converged
    assert not reached([OUTSIDE], [5432, 9999])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"firewall_ssh_from": ["10.1.2.3.4"]}, "10.1.2.3.4 is not a valid address"),
        ({"also_open": [{"port": 70000, "from": "anyone", "reason": "too many"}]}, "70000 is not a valid address"),
        ({"also_open": [{"port": 80, "from": "everybody", "reason": "a typo"}]}, "everybody is not a valid address"),
        ({"firewall_outbound": [{"user": "a b", "reach": []}]}, "a b is not a valid address"),
        (
            {"firewall_outbound": [{"user": "a", "reach": [{"port": 0, "to": "anyone", "reason": "x"}]}]},
            "0 is not a valid address",
        ),
        ({"also_open": [{"port": 80, "from": ["300.1.1.1"], "reason": "a typo"}]}, "nft rejects the rules"),
        (
            {"firewall_platform_addresses": ["no-such-host.invalid"]},
            "cannot resolve every name in no-such-host.invalid",
        ),
    ],
)
def test_invalid_rules_are_refused_and_the_old_ones_stay(host, converged, variables, message, play):
    result = play(**variables)
    assert result.returncode != 0
    assert message in " ".join((result.stdout + result.stderr).split())
    assert state(host) == converged


@drifts
def test_the_other_hosts_let_an_added_host_in(host, converged, reached):
    host.check_output("nft add table ip of_docker")
    addresses = {"firewall_platform_addresses": [PLATFORM, OUTSIDE]}
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    for changed in ("changed=1", "changed=0"):
        play = ansible_playbook(
            "--inventory", inventory, SCENARIO / "register.yml", "--extra-vars", json.dumps(addresses)
        )
        assert play.returncode == 0, play.stdout
        assert changed in play.stdout
        assert reached([OUTSIDE], [5432, 8000]) == {(OUTSIDE, 5432)}
    # The same after a reboot, which loads the file
    host.check_output("nft --file /etc/nftables.conf")
    assert reached([OUTSIDE], [5432])
    host.check_output("nft delete table ip of_docker")


@drifts
def test_a_port_published_by_docker_is_closed_by_default(host, converged, play, reached):
    """Create a container's network and rules as Docker does."""
    for command in (
        "ip netns add box",
        "ip link add to-box type veth peer name eth0 netns box",
        "ip address add 10.88.0.1/24 dev to-box",
        "ip link set to-box up",
        "ip -n box address add 10.88.0.2/24 dev eth0",
        "ip -n box link set eth0 up",
        "ip -n box route add default via 10.88.0.1",
        "systemd-run --quiet --unit box ip netns exec box python3 -m http.server --directory /run 80",
        "nft 'table ip of_docker { chain pre { type nat hook prerouting priority dstnat; "
        "tcp dport { 8080, 8081 } dnat to 10.88.0.2:80; }; }'",
    ):
        host.check_output(command)
    try:
        assert not reached([OUTSIDE], [8080]), "a host that does not forward"
        published = [{"port": 8081, "from": "platform", "reason": "a container"}]
        result = play(firewall_forward=True, also_open=published)
        assert result.returncode == 0, result.stdout
        assert reached((OUTSIDE, PLATFORM), (8080, 8081)) == {(PLATFORM, 8081)}
    finally:
        host.check_output("nft delete table ip of_docker; systemctl stop box; ip netns delete box")


def test_a_first_connection_confirms_new_rules(host, converged, over_ssh):
    host.check_output("nft flush ruleset")
    result = over_ssh(*ALONE)
    assert result.returncode == 0, result.stdout
    assert not host.service("metalworks-firewall-rollback.timer").is_running
    assert " changed=0 " in over_ssh().stdout


def test_rules_that_lock_the_controller_out_are_rolled_back(host, converged, over_ssh):
    began = time.monotonic()
    result = over_ssh(*ALONE, timeout=5, firewall_ssh_port=2222, firewall_rollback_seconds=8)
    assert result.returncode != 0
    assert "unreachable=1" in result.stdout
    while state(host) != converged and time.monotonic() - began < 60:
        time.sleep(0.5)
    assert state(host) == converged
    assert over_ssh(*ALONE).returncode == 0


def test_a_play_killed_before_the_confirmation_is_completed(host, converged, play):
    # The state then: new rules in the kernel, and the timer.
    host.check_output("cp /etc/nftables.conf /run/old.nft && nft --file /run/old.nft && echo '#' > /etc/nftables.conf")
    host.check_output("systemd-run --quiet --unit metalworks-firewall-rollback --on-active=100 nft flush ruleset")
    result = play()
    assert result.returncode == 0, result.stdout
    assert not host.service("metalworks-firewall-rollback.timer").is_running
    assert host.file("/etc/nftables.conf").content_string == host.file("/run/old.nft").content_string

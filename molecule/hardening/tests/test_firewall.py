"""What is closed is closed, and the rules are mended, refused or taken back as they should be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time

import pytest
from conftest import ADDRESS, SCENARIO

from scripts.common import ROOT

OUTSIDE, PLATFORM, LISTED = "198.18.0.66", "198.18.0.20", "198.18.0.30"
drifts = pytest.mark.drifts


def table(host) -> str:
    """The rules that the kernel works with, without what it counted."""
    return re.sub(r"packets \d+ bytes \d+", "", host.check_output("nft list table inet metalworks"))


@pytest.fixture
def converged(host, request, play):
    """The rules of the converged host; a test marked `drifts` is followed by a play that must mend it."""
    before = table(host)
    yield before
    if request.node.get_closest_marker("drifts"):
        result = play()
        assert result.returncode == 0, result.stdout
    assert table(host) == before


def test_a_scan_of_all_ports_finds_what_is_documented(host, attacker):
    for port in (22, 443, 5432, 8000, 9999):
        assert host.socket(f"tcp://0.0.0.0:{port}").is_listening
    command = f"nmap -n -Pn -p- -T4 --min-rate 4000 --max-retries 2 -oG - -S {OUTSIDE} -e eth0 {ADDRESS}"
    scanned = attacker.check_output(command)
    assert re.findall(r"(\d+)/open/tcp", scanned) == ["22", "443"]
    assert "/closed/" not in scanned, "dropped, so that nobody learns what is not there"


@pytest.mark.parametrize(
    ("source", "ports"), [(OUTSIDE, {22, 443}), (PLATFORM, {22, 443, 5432}), (LISTED, {22, 443, 8000})]
)
def test_who_may_reach_what(host, reaches, source, ports):
    assert {port for port in (22, 443, 5432, 8000, 9999) if reaches(source, port)} == ports


def test_the_host_answers_pings_and_reaches_others(host, attacker):
    attacker.check_output(f"ping -c 1 -W 2 {ADDRESS}")
    host.check_output(f"ping -c 1 -W 2 {OUTSIDE}")
    assert host.run("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9999), 2)'").rc == 0


def test_what_is_dropped_is_counted(host, reaches):
    def dropped() -> int:
        chain = host.check_output("nft list chain inet metalworks dropped")
        return int(re.search(r"counter packets (\d+)", chain)[1])

    before = dropped()
    assert not reaches(OUTSIDE, 9999)
    assert dropped() > before


def test_the_rules_are_there_after_a_reboot_and_others_survive_a_restart(host, converged):
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
def test_damage_is_mended(host, converged, damage, play, reaches):
    host.check_output(damage)
    result = play()
    assert result.returncode == 0, result.stdout
    assert table(host) == converged
    assert not reaches(OUTSIDE, 9999)
    assert not reaches(OUTSIDE, 5432)
    assert host.service("nftables").is_enabled
    assert "dport" in host.file("/etc/nftables.conf").content_string
    assert " changed=0 " in play().stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"firewall_ssh_from": ["10.1.2.3.4"]}, "10.1.2.3.4 is no address"),
        ({"also_open": [{"port": 70000, "from": "anyone", "why": "too many"}]}, "70000 is no address"),
        ({"also_open": [{"port": 80, "from": "everybody", "why": "a typo"}]}, "everybody is no address"),
        ({"also_open": [{"port": 80, "from": ["300.1.1.1"], "why": "a typo"}]}, "nft refuses the rules"),
        ({"firewall_platform_addresses": ["no-such-host.invalid"]}, "no-such-host.invalid: a name among these"),
    ],
)
def test_wrong_rules_are_refused_while_the_old_ones_stay(host, converged, variables, message, play):
    before = host.file("/etc/nftables.conf").content_string
    result = play(**variables)
    assert result.returncode != 0
    assert message in " ".join((result.stdout + result.stderr).split())
    assert host.file("/etc/nftables.conf").content_string == before


@drifts
def test_a_host_that_is_added_is_let_in_by_the_others(host, converged, reaches):
    host.check_output("nft add table ip of_docker")
    addresses = {"firewall_platform_addresses": [PLATFORM, OUTSIDE]}
    command = ["ansible-playbook", "--inventory", os.environ["MOLECULE_INVENTORY_FILE"], SCENARIO / "register.yml"]
    for changed in ("changed=1", "changed=0"):
        play = subprocess.run(
            [*command, "--extra-vars", json.dumps(addresses)], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert play.returncode == 0, play.stdout
        assert changed in play.stdout
        assert reaches(OUTSIDE, 5432)
        assert not reaches(OUTSIDE, 8000)
    # The same after a reboot, which loads the file.
    host.check_output("nft --file /etc/nftables.conf")
    assert reaches(OUTSIDE, 5432)
    host.check_output("nft delete table ip of_docker")


@drifts
def test_a_port_that_docker_publishes_is_not_open_by_itself(host, converged, play, reaches):
    """A container's network and rules, as Docker makes them."""
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
        assert not reaches(OUTSIDE, 8080), "a host that does not forward"
        published = [{"port": 8081, "from": "platform", "why": "a container"}]
        result = play(firewall_forward=True, also_open=published)
        assert result.returncode == 0, result.stdout
        reached = {(source, port) for source in (OUTSIDE, PLATFORM) for port in (8080, 8081) if reaches(source, port)}
        assert reached == {(PLATFORM, 8081)}
    finally:
        host.check_output("nft delete table ip of_docker; systemctl stop box; ip netns delete box")


def test_a_first_connection_confirms_new_rules(host, converged, over_ssh):
    host.check_output("nft flush ruleset")
    result = over_ssh()
    assert result.returncode == 0, result.stdout
    assert not host.service("metalworks-firewall-rollback.timer").is_running
    assert " changed=0 " in over_ssh().stdout


def test_rules_that_shut_the_controller_out_are_taken_back(host, converged, over_ssh, reaches):
    before = host.file("/etc/nftables.conf").content_string
    began = time.monotonic()
    result = over_ssh(firewall_ssh_port=2222)
    assert result.returncode != 0
    assert "unreachable=1" in result.stdout
    while table(host) != converged and time.monotonic() - began < 90:
        time.sleep(1)
    assert table(host) == converged
    assert host.file("/etc/nftables.conf").content_string == before
    assert reaches(OUTSIDE, 22)
    assert over_ssh().returncode == 0


@drifts
def test_an_application_that_was_killed_before_its_confirmation_is_finished(host, converged, play):
    # What stands then: new rules in the kernel, and the timer.
    host.check_output("cp /etc/nftables.conf /run/old.nft && nft --file /run/old.nft && echo '#' > /etc/nftables.conf")
    host.check_output("systemd-run --quiet --unit metalworks-firewall-rollback --on-active=100 nft flush ruleset")
    result = play()
    assert result.returncode == 0, result.stdout
    assert not host.service("metalworks-firewall-rollback.timer").is_running
    assert host.file("/etc/nftables.conf").content_string == host.file("/run/old.nft").content_string

"""A new engine and one that was there: what the network reaches, and what survives."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import pytest
import testinfra

from scripts.tests.warm_ansible import ansible_playbook

SCENARIO = Path(__file__).resolve().parent.parent
HOST, OUTSIDE, PLATFORM = "198.18.0.10", "198.18.0.66", "198.18.0.20"
CLOSED, OPEN, LOCAL = 8080, 8081, 8082
"""Published to everyone, to everyone but let through for the platform's hosts, and on the loopback address."""
CONFIGURATION = "/etc/docker/daemon.json"
TRY = """
import concurrent.futures, json, socket, sys
def tried(way):
    try:
        socket.create_connection((way[1], way[2]), 2, (way[0], 0) if way[0] else None).close()
    except OSError:
        return False
    return True
ways = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(ways)) as pool:
    print(json.dumps([way for way, came in zip(ways, pool.map(tried, ways)) if came]))
"""


@pytest.fixture(scope="session")
def outside():
    """Return the host outside, which is also the one that had an engine, with a server of its own."""
    host = testinfra.get_host("docker://docker-earlier")
    host.check_output("systemd-run --quiet --unit listen python3 -m http.server --directory /run 9999")
    wait(host, "ss --no-header --listening --numeric --tcp | grep --quiet ':9999 '")
    return host


@pytest.fixture(scope="session")
def host():
    """Return the host whose engine the platform installed, with a container that publishes three ports."""
    host = testinfra.get_host("docker://docker-new")
    host.check_output("bash -c 'set -o pipefail; python3 /root/image.py | docker import - tool'")
    ports = f"-p {CLOSED}:80 -p {OPEN}:80 -p 127.0.0.1:{LOCAL}:80"
    host.check_output(f"docker run --detach --name web {ports} tool {python(host)} -m http.server --directory /tmp 80")
    wait(host, f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {LOCAL}), 1)'")
    return host


@pytest.fixture(autouse=True)
def starts(host, outside):
    """Forget the starts of earlier tests: the unit allows three in a minute."""
    for each in (host, outside):
        if each.package("docker.io").is_installed:
            each.check_output("systemctl reset-failed docker.service docker.socket")


def python(host) -> str:
    """Return the interpreter in the image."""
    return str(host.check_output("readlink --canonicalize /usr/bin/python3"))


def wait(host, condition: str) -> None:
    host.check_output("timeout 30 sh -c %s", f"until {condition}; do sleep 0.1; done")


def tried(run, *ways: tuple[str, str, int]) -> set[tuple[str, str, int]]:
    """Return which of these ways (from, to, port) lead to a server."""
    return {(*way,) for way in json.loads(run(TRY, json.dumps(ways)))}


def from_outside(outside, address: str = HOST, ports=(CLOSED, OPEN, LOCAL, 80)) -> set[tuple[str, int]]:
    """Return which sources reach which ports."""
    ways = [(source, address, port) for source, port in itertools.product((OUTSIDE, PLATFORM), ports)]
    return {(way[0], way[2]) for way in tried(lambda *args: outside.check_output("python3 -c %s %s", *args), *ways)}


def on_host(host) -> set[int]:
    """Return the ports that the host itself reaches: its own address' and the loopback's."""
    ways = [("", address, port) for address in ("127.0.0.1", HOST) for port in (CLOSED, OPEN, LOCAL)]
    return {(way[1], way[2]) for way in tried(lambda *args: host.check_output("python3 -c %s %s", *args), *ways)}


def reaches_out(host) -> bool:
    """Tell whether a container reaches another host."""
    command = f"docker exec web {python(host)} -c %s %s"
    return bool(tried(lambda *args: host.check_output(command, *args), ("", OUTSIDE, 9999)))


def process(host, name: str) -> str:
    """Return a container's process and when it was started."""
    return str(host.check_output(f"docker inspect --format '{{{{.State.Pid}}}} {{{{.State.StartedAt}}}}' {name}"))


def daemon(host) -> str:
    return str(host.check_output("systemctl show docker --property MainPID,ExecMainStartTimestampMonotonic"))


def configured(host) -> dict[str, object]:
    return json.loads(host.check_output(f"cat {CONFIGURATION}"))


def info(host) -> dict[str, object]:
    return json.loads(host.check_output("docker info --format '{{json .}}'"))


def as_promised(host, outside) -> None:
    """Check what the network reaches."""
    assert from_outside(outside) == {(PLATFORM, OPEN)}
    local = {("127.0.0.1", port) for port in (CLOSED, OPEN, LOCAL)}
    assert on_host(host) == local | {(HOST, CLOSED), (HOST, OPEN)}
    assert reaches_out(host)


# -- A new engine
def test_the_first_start_has_all_settings(host):
    assert set(configured(host)) == {"log-driver", "log-opts", "default-address-pools", "live-restore"}
    assert host.check_output("docker network inspect bridge --format '{{(index .IPAM.Config 0).Subnet}}'").startswith(
        "172.29."
    )
    assert info(host)["LiveRestoreEnabled"]
    assert host.check_output("journalctl --unit docker | grep --count 'Starting docker.service'") == "1"
    assert "dockerd" not in host.check_output("ss --listening --numeric --tcp --udp --processes | grep -v docker-proxy")


def test_only_named_people_are_in_the_group(host, outside):
    for each in (host, outside):
        assert each.check_output("getent group docker").split(":")[3] == "ada"


def test_published_ports_are_open_to_whom_the_site_names_and_containers_reach_out(host, outside):
    as_promised(host, outside)


def test_nobody_reaches_a_container_by_its_own_address(host, outside):
    address = host.check_output("docker inspect --format '{{.NetworkSettings.IPAddress}}' web")
    outside.check_output(f"ip route replace {address}/32 via {HOST}")
    try:
        assert from_outside(outside, address, (80,)) == set()
        host.check_output("nft insert rule inet metalworks forward accept")
        # Without the platform's rules, Docker opens all of this: the checks can fail.
        assert from_outside(outside, address, (80,)) == {(OUTSIDE, 80), (PLATFORM, 80)}
        assert from_outside(outside) == {*itertools.product((OUTSIDE, PLATFORM), (CLOSED, OPEN))}
    finally:
        outside.check_output(f"ip route delete {address}/32")
        host.check_output("nft --file /etc/nftables.conf")


@pytest.mark.parametrize(
    "disturbance",
    [
        "systemctl restart nftables",
        "systemctl restart docker",
        "nft --file /etc/nftables.conf",
        "systemctl stop docker.socket docker; systemctl restart nftables; systemctl start docker",
        "systemctl stop nftables; systemctl restart docker; systemctl start nftables",
    ],
)
def test_firewall_and_engine_live_together_in_any_order(host, outside, disturbance):
    before = process(host, "web")
    host.check_output(f"set -e; {disturbance}")
    as_promised(host, outside)
    assert process(host, "web") == before, "live-restore"


def test_a_converged_run_disturbs_nothing(host, outside, play):
    before = [(process(host, "web"), daemon(host)), (process(outside, "theirs"), daemon(outside))]
    result = play()
    assert len(re.findall(r"changed=0 .*failed=0", result.stdout)) == 2, result.stdout
    assert [(process(host, "web"), daemon(host)), (process(outside, "theirs"), daemon(outside))] == before


def test_containers_survive_settings_that_need_a_restart(host, outside, play):
    before, earlier = process(host, "web"), daemon(host)
    result = play("--limit", "docker-new", docker_engine_log_max_size="20m")
    assert result.returncode == 0, result.stdout
    assert configured(host)["log-opts"] == {"max-size": "20m", "max-file": "3"}
    assert daemon(host) != earlier
    assert process(host, "web") == before
    host.check_output("docker run --detach --name logs tool /usr/bin/sleep 100000")
    options = host.check_output("docker inspect --format '{{json .HostConfig.LogConfig}}' logs")
    assert json.loads(options)["Config"] == {"max-file": "3", "max-size": "20m"}
    assert " changed=0 " in play("--limit", "docker-new", docker_engine_log_max_size="20m").stdout
    as_promised(host, outside)


# -- An engine that was there
def test_settings_of_others_stay_and_the_engine_was_not_restarted(outside):
    assert configured(outside) == {
        "debug": True,
        "log-driver": "journald",
        "default-address-pools": [{"base": "172.29.0.0/16", "size": 24}],
        "live-restore": True,
    }
    assert outside.check_output(f"stat --format %a {CONFIGURATION}") == "600"
    assert outside.check_output("journalctl --unit docker | grep --count 'Starting docker.service'") == "1"
    assert outside.check_output("docker ps --format '{{.Names}}'") == "theirs"
    assert info(outside)["LiveRestoreEnabled"], "reloaded"


def test_its_container_survives_the_next_restart(outside, play):
    before = process(outside, "theirs")
    outside.check_output("systemctl restart docker")
    assert process(outside, "theirs") == before
    assert info(outside)["LoggingDriver"] == "journald"
    assert info(outside)["DefaultAddressPools"] == [{"Base": "172.29.0.0/16", "Size": 24}]
    assert " changed=0 " in play("--limit", "docker-earlier").stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"docker_engine_data_root": "/srv/docker"},
            "in /var/lib/docker, which an engine with its data in /srv/docker",
        ),
        (
            {"docker_engine_address_pools": [{"base": "198.18.0.0/24", "size": 28}]},
            "could no longer reach 198.18.0.10, 198.18.0.20, 198.18.0.0/24",
        ),
        ({"docker_engine_settings": {"hosts": ["tcp://0.0.0.0:2375"]}}, "command line of docker.service"),
    ],
)
def test_a_contradiction_is_refused_before_anything_is_changed(host, play, variables, message):
    before = configured(host), process(host, "web"), daemon(host)
    result = play("--limit", "docker-new", **variables)
    assert result.returncode != 0
    assert message in " ".join(re.sub(r"\\n", " ", result.stdout).split())
    assert (configured(host), process(host, "web"), daemon(host)) == before


def test_an_engine_that_is_open_to_the_network_is_refused(outside, play):
    text = '{"hosts": ["unix:///run/docker.sock", "tcp://0.0.0.0:2375"]}'
    outside.check_output(f"cp {CONFIGURATION} /root/kept.json")
    outside.check_output(f"echo '{text}' > {CONFIGURATION}")
    try:
        before = daemon(outside)
        result = play("--limit", "docker-earlier", docker_engine_users=["ada", "nobody"])
        assert result.returncode != 0
        assert "listens on tcp://0.0.0.0:2375, by `hosts` in /etc/docker/daemon.json" in " ".join(result.stdout.split())
        assert outside.file(CONFIGURATION).content_string == f"{text}\n"
        assert daemon(outside) == before
        assert outside.check_output("getent group docker").split(":")[3] == "ada"
    finally:
        outside.check_output(f"cat /root/kept.json > {CONFIGURATION}")


# -- Removal: the last test, because nothing is left after it
def test_an_engine_goes_without_its_data_and_the_other_is_as_it_was(host, outside):
    before = process(outside, "theirs"), daemon(outside)
    host.check_output("docker volume create kept && echo data > /var/lib/docker/volumes/kept/_data/file")
    result = ansible_playbook("--inventory", os.environ["MOLECULE_INVENTORY_FILE"], SCENARIO / "remove.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not host.package("docker.io").is_installed
    running = host.check_output("ps -e -o comm=").split()
    assert not {"dockerd", "containerd", "containerd-shim", "docker-proxy", "sleep"} & {*running}, "all has ended"
    assert host.file("/var/lib/docker/volumes/kept/_data/file").content_string == "data\n"
    assert not host.file("/etc/docker").exists
    assert host.run("getent group docker").rc != 0
    assert (process(outside, "theirs"), daemon(outside)) == before
    assert json.loads(outside.check_output(f"cat {CONFIGURATION}")) == {"debug": True, "log-driver": "journald"}
    assert outside.check_output("getent group docker").split(":")[3] == ""
    # A reload leaves alone what the file no longer names.
    outside.check_output("systemctl restart docker")
    assert not info(outside)["LiveRestoreEnabled"]

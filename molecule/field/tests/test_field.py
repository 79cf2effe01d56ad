"""What a company's images, networks and accounts have, and the platform on them. site.yml ended with its checks."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import testinfra
import yaml
from conftest import SSH_CONFIG
from testinfra.host import Host

from scripts.common import ROOT, environment

SCENARIO = Path(__file__).resolve().parent.parent
DOMAIN = "metalworks.internal"
SERVICES, PROXY = "fd00:f1e1:d::11", "198.18.7.99"
WORKER, MODEL = "prefect-worker-cpu.service", "inference-probe.service"
UNITS = (
    "postgresql@*-main", "minio", "mlflow", "prefect-server", "nginx", "platform-status", WORKER,
    "models-probe", MODEL, "model-follower",
)  # fmt: skip
CONNECT = "timeout 1 bash -c '</dev/tcp/%s/%s'"
CLIENTS = f"""
mlflow experiments search >/dev/null
prefect work-pool ls | grep --quiet cpu
curl --silent --show-error --fail https://mlflow.{DOMAIN}/health
python=/opt/metalworks/workstation/current/bin/python
$python -c 'import botocore.session as b; b.get_session().create_client("s3").list_objects_v2(Bucket="training-data")'
"""


def as_person(host: Host, name: str, script: str) -> str:
    """Run a script in a login shell."""
    return str(host.check_output("su - %s -c %s", name, f"set -euo pipefail\n{script}"))


def sent_to_the_proxy(host: Host) -> int:
    """Return how many packets a host has sent to the proxy's address since it was prepared."""
    found = re.search(r"counter packets (\d+)", host.check_output("nft list table inet field"))
    assert found
    return int(found[1])


def query(name: str, database: str) -> str:
    """Return the wiki's pages, read over TCP on a host. The password goes through standard input."""
    __tracebackhide__ = True  # pytest shows the arguments of a failed test
    vault = yaml.safe_load((SCENARIO / "inventory/group_vars/all/vault.yml").read_text())
    options = f"--no-align --tuples-only --command='TABLE pages' '{database}'"
    argv = ["ssh", "-F", str(SSH_CONFIG), name, f"read -r PGPASSWORD; export PGPASSWORD; psql {options}"]
    found = subprocess.run(argv, input=f"{vault['vault_raw_database_password']}\n", capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_the_firewall_opens_the_port_that_the_ssh_server_has(services: Host, dev: Host) -> None:
    reached = {port: dev.run(CONNECT, SERVICES, port).rc == 0 for port in ("2222", "22", "443", "8088", "5432")}
    assert reached == {"2222": True, "22": False, "443": True, "8088": False, "5432": False}
    assert {port: services.run(CONNECT, "127.0.0.1", port).rc == 0 for port in ("2222", "22")} == {
        "2222": True,
        "22": False,
    }


def test_people_reach_the_platform_by_ipv6_and_without_the_proxy(services: Host, dev: Host) -> None:
    assert dev.check_output(f"getent hosts mlflow.{DOMAIN}").split()[0] == SERVICES
    assert services.socket("tcp://:::443").is_listening
    assert sent_to_the_proxy(services) == sent_to_the_proxy(dev) == 0
    settings = dict(line.partition("=")[::2] for line in as_person(dev, "ada", "env").splitlines())
    assert settings["http_proxy"] == settings["https_proxy"] == settings["HTTPS_PROXY"] == f"http://{PROXY}:3128"
    assert settings["no_proxy"] == settings["NO_PROXY"]
    assert settings["no_proxy"].split(",")[0] == "intranet.example"
    assert as_person(dev, "ada", CLIENTS) == "OK"
    assert sent_to_the_proxy(dev) == 0
    # Everything else still goes there.
    assert as_person(dev, "ada", "! curl --silent --max-time 2 https://elsewhere.example") == ""
    assert sent_to_the_proxy(dev) > 0
    dev.check_output("nft delete table inet field && nft -f /run/count.nft")


def test_the_gateway_reaches_models_in_service_by_ipv6(dev: Host) -> None:
    """The host's own name has an IPv4 address as well. No version is registered, so the answer is the service's own."""
    token = '"Authorization: Bearer $(cat ~/.config/metalworks/inference_token)"'
    asked = as_person(dev, "ada", f"curl --silent --header {token} https://inference.{DOMAIN}/probe/version")
    assert "The model is not loaded yet" in asked


def test_flows_have_the_platform_without_the_proxy(services: Host) -> None:
    process = services.check_output(f"systemctl show {WORKER} --property MainPID --value")
    assert f",.{DOMAIN}" in services.check_output(f"tr '\\0' '\\n' </proc/{process}/environ | grep ^no_proxy=")


def test_files_are_readable_though_the_hosts_have_a_strict_umask(services: Host, dev: Host) -> None:
    for host in (services, dev):
        assert host.check_output("umask") == "0077"  # as in Ansible's own sudo
    assert as_person(dev, "ada", "umask") == "0027"
    assert as_person(dev, "ada", "cat /etc/metalworks/tls/ca.crt /etc/pip.conf /etc/uv/uv.toml >/dev/null") == ""
    page = f"curl --silent --show-error --fail --cacert /etc/metalworks/tls/ca.crt https://{DOMAIN}/"
    assert "<title>" in services.check_output(f"runuser -u nobody -- {page}")


def test_a_directory_account_is_used_as_it_is(dev: Host) -> None:
    assert not dev.file("/etc/passwd").contains("^grace:")
    home = dev.file("/home/corp/grace")
    assert (home.uid, home.gid, home.mode) == (20001, 20001, 0o700)
    assert as_person(dev, "grace", CLIENTS) == "OK"


def test_a_persons_uid_is_that_of_the_shared_home(dev: Host) -> None:
    assert dev.user("ada").uid == dev.file("/home/ada").uid == 2001


def test_a_database_of_others_is_kept(services: Host, dev: Host) -> None:
    assert query("field-services", "host=127.0.0.1 dbname=wiki user=wiki sslmode=require") == "old"
    assert services.file("/var/backups/pg_hba.conf.before-metalworks").contains("^hostssl wiki wiki 127.0.0.1/32")
    # A user with @ and a host by its IPv6 address, as one URL
    url = as_person(dev, "ada", 'echo "$RAW_DATABASE_URL"')
    assert query("field-services", url) == "old"


def test_sites_of_others_are_kept_as_files(services: Host) -> None:
    assert services.file("/etc/nginx/sites-enabled/wiki").contains("wiki")
    assert services.file("/var/backups/nginx.conf.before-metalworks").contains("include /etc/nginx/sites-enabled")
    assert not services.socket("tcp://0.0.0.0:8088").is_listening


def test_names_survive_a_boot_with_cloud_init(services: Host, dev: Host) -> None:
    for host in (services, dev):
        host.check_output("cloud-init single --name cc_update_etc_hosts --frequency always")
        assert host.file("/etc/hosts").contains("manage_etc_hosts")
        assert host.check_output(f"getent hosts mlflow.{DOMAIN}").split()[0] == SERVICES


def test_an_upgrade_ends_no_flow_run(services: Host) -> None:
    library = "$(readlink -f /usr/lib/x86_64-linux-gnu/libssl.so.3)"
    services.check_output(f"cp -a {library} /tmp/libssl && mv /tmp/libssl {library} && ldconfig")
    started = "systemctl show {} --property ExecMainStartTimestampMonotonic,MainPID".format
    units = (WORKER, MODEL, "mlflow.service")
    before = {unit: services.check_output(started(unit)) for unit in units}
    outdated = services.check_output("needrestart -b -r l")
    assert [unit for unit in units if f"NEEDRESTART-SVC: {unit}" not in outdated] == []
    services.check_output("needrestart -r a </dev/null")
    same = [unit for unit in units if services.check_output(started(unit)) == before[unit]]
    assert same == [WORKER, MODEL]


def test_the_platform_needs_no_ipv4() -> None:
    """Last, because it takes the address by which the tests and the operator reach the hosts."""
    addresses = {"field-services": "198.18.7.11", "field-dev": "198.18.7.41"}
    through_docker = {"ansible_connection": "community.docker.docker", "ansible_host": "{{ inventory_hostname }}"}
    smoke = ["ansible-playbook", "--inventory", str(SCENARIO / "inventory"), "playbooks/smoke.yml"]
    smoke += ["--extra-vars", json.dumps(through_docker | {"ansible_user": "root"})]
    try:
        for name in addresses:
            host = testinfra.get_host(f"docker://{name}")
            host.check_output("ip -4 address flush dev eth0")
            assert host.check_output("ip -4 -brief address show scope global") == ""
        testinfra.get_host("docker://field-services").check_output(f"systemctl restart {' '.join(UNITS)}")
        done = subprocess.run(smoke, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    finally:
        for name, address in addresses.items():
            back = f"ip address add {address}/24 dev eth0 && ip route add default via 198.18.7.1"
            testinfra.get_host(f"docker://{name}").check_output(back)

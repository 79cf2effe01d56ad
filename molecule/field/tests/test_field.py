"""What a company's images, networks and accounts have, and the platform on them. site.yml ended with its checks."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from conftest import SSH_CONFIG
from testinfra.host import Host

from scripts.common import ROOT, environment, wait_until

SCENARIO = Path(__file__).resolve().parent.parent
DOMAIN = "metalworks.internal"
SERVICES, DEV, PROXY = "2001:db8:f1e1:d::11", "2001:db8:f1e1:d::41", "2001:db8:f1e1:d::98"
WORKER, MODEL = "prefect-worker-cpu.service", "inference-probe.service"
FOLLOWED = 600.0
"""Seconds until a version is in service or refused: its packages have to be fetched first."""
CONNECT = "timeout 1 bash -c '</dev/tcp/%s/%s'"
PYTHON = "/opt/metalworks/workstation/current/bin/python"
ENVIRONMENTS = "/var/lib/model-follower/probe/environments"
REGISTER = f"""
cd ~/probe
cat >register.py <<'END'
import sys, mlflow, pandas
from mlflow.models import infer_signature


class Scaled(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        import acmescale
        return (model_input["a"] * float(acmescale.FACTOR)).tolist()


example = pandas.DataFrame({{"a": [1.0, 2.0]}})
logged = mlflow.pyfunc.log_model(
    name="model", python_model=Scaled(), signature=infer_signature(example, [1.0]),
    pip_requirements=[
        "--extra-index-url http://packages.field.example:8992/simple",
        f"mlflow=={{mlflow.__version__}}", "pandas", "cloudpickle", *sys.argv[1:],
    ],
    registered_model_name="probe",
)
mlflow.MlflowClient().set_registered_model_alias("probe", "champion", logged.registered_model_version)
print(logged.registered_model_version)
END
MLFLOW_EXPERIMENT_NAME=probe {PYTHON} register.py %s 2>register.log || {{ cat register.log >&2; exit 1; }}
"""
"""Registers a model of a private package, with its requirements as people record them, and prints the version."""
CLIENTS = f"""
mlflow experiments search >/dev/null
prefect work-pool ls | grep --quiet cpu
curl --silent --show-error --fail https://mlflow.{DOMAIN}/health
{PYTHON} -c 'import botocore.session as b; b.get_session().create_client("s3").list_objects_v2(Bucket="training-data")'
"""


def as_person(host: Host, name: str, script: str) -> str:
    """Run a script in a login shell."""
    return str(host.check_output("su - %s -c %s", name, f"set -euo pipefail\n{script}"))


def sent_to_the_proxy(host: Host) -> int:
    """Return how many packets a host has sent to the proxy's address since it was prepared."""
    found = re.search(r"counter packets (\d+)", host.check_output("nft list table inet field"))
    assert found
    return int(found[1])


def asked(dev: Host, path: str, body: str = "") -> Any:
    """Return the answer of the model in service to ada, through the gateway."""
    options = f"--header 'Content-Type: application/json' --data '{body}'" if body else ""
    token = '"Authorization: Bearer $(cat ~/.config/metalworks/inference_token)"'
    return json.loads(
        as_person(dev, "ada", f"curl --silent --header {token} {options} https://inference.{DOMAIN}/probe/{path}")
    )


def in_service(dev: Host) -> set[str]:
    """Return the versions that the hosts serve: the gateway asks them in turn."""
    return {asked(dev, "version").get("version", "") for _ in range(4)}


def registered(dev: Host, *requirements: str) -> str:
    """Register a model with these requirements for the service, and return its version."""
    dev.check_output("install -d -o ada -g ada /home/ada/probe")
    return as_person(dev, "ada", REGISTER % " ".join(requirements)).splitlines()[-1]


def tags(dev: Host, version: str) -> str:
    """Return the tags of a version in MLflow, where the followers say what became of it."""
    client = f"import mlflow; print(mlflow.MlflowClient().get_model_version('probe', '{version}').tags)"
    return as_person(dev, "ada", f'{PYTHON} -c "{client}"')


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
    assert settings["http_proxy"] == settings["https_proxy"] == settings["HTTPS_PROXY"] == f"http://[{PROXY}]:3128"
    assert settings["no_proxy"] == settings["NO_PROXY"]
    assert settings["no_proxy"].split(",")[0] == "intranet.example"
    assert as_person(dev, "ada", CLIENTS) == "OK"
    assert sent_to_the_proxy(dev) == 0
    # Everything else still goes there.
    assert as_person(dev, "ada", "! curl --silent --max-time 2 https://elsewhere.example") == ""
    assert sent_to_the_proxy(dev) > 0
    dev.check_output("nft delete table inet field && nft -f /run/count.nft")


def test_a_host_never_had_an_ipv4_address(services: Host) -> None:
    assert services.check_output("ip -4 -brief address show scope global") == ""
    assert services.check_output("apt-get --quiet --quiet update") == ""


def test_a_model_has_its_packages_from_where_the_site_says(services: Host, dev: Host) -> None:
    """The site's index has an old release of a public package too, and the one that the model names a stranger's."""
    version = registered(dev, "acmescale", "six==1.17.0")
    wait_until(lambda: in_service(dev) == {version}, f"version {version} is not in service", FOLLOWED, 2)
    for host in (services, dev):
        (folder,) = host.check_output(f"find {ENVIRONMENTS} -name 'acmescale-*.dist-info'").splitlines()
        assert folder.endswith("acmescale-2.5.dist-info")
        assert host.file(f"{Path(folder).parent}/six-1.17.0.dist-info").is_directory
    assert asked(dev, "invocations", '{"dataframe_split": {"columns": ["a"], "data": [[2.0]]}}') == {
        "predictions": [5.0]
    }


def test_a_strangers_package_of_a_private_name_is_refused(services: Host, dev: Host) -> None:
    (before,) = in_service(dev)
    version = registered(dev, "acmescale==99.0")
    wait_until(lambda: "refused" in tags(dev, version), f"version {version} is not refused", FOLLOWED, 2)
    assert "the site takes acmescale from http://packages.field.example:8991/simple alone" in tags(dev, version)
    assert in_service(dev) == {before}
    client = f"import mlflow; mlflow.MlflowClient().set_registered_model_alias('probe', 'champion', '{before}')"
    as_person(dev, "ada", f'{PYTHON} -c "{client}"')
    for host in (services, dev):
        host.check_output("/opt/metalworks/model-follower/current/bin/metalworks-model wait --service probe")


@pytest.mark.parametrize("name", ["field-services", "dev.field.example"])
def test_the_gateway_reaches_a_model_on_each_host_by_its_name(services: Host, dev: Host, name: str) -> None:
    """Over IPv6, with the certificate verified: one host has an IPv4 address as well, and a domain's name."""
    other = {"field-services": dev, "dev.field.example": services}[name]
    body = '{"dataframe_split": {"columns": ["a"], "data": [[4.0]]}}'
    other.check_output(f"systemctl stop {MODEL}")
    try:
        # The gateway does not ask a host within ten seconds of a failure, as when the test before had stopped it.
        wait_until(
            lambda: asked(dev, "invocations", body) == {"predictions": [10.0]}, f"{name} does not predict", 60, 1
        )
    finally:
        other.check_output(f"systemctl start {MODEL}")


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
    health = "curl --silent --fail --unix-socket /run/mlflow/api.sock http://localhost/health"
    wait_until(lambda: services.run(health).rc == 0, "MLflow does not come back", FOLLOWED, 2)


def test_no_host_needs_an_ipv4_address() -> None:
    """Last, because it takes the address by which the tests and the operator reach a host."""
    over_ipv6 = SSH_CONFIG.with_name("ssh_config_ipv6")
    over_ipv6.write_text(SSH_CONFIG.read_text().replace("HostName 198.18.7.41", f"HostName {DEV}"))
    new_connections = {"ansible_ssh_args": "-o ControlPath=none"}
    reached = {"ansible_ssh_common_args": f"-F {shlex.quote(str(over_ipv6))}"} | new_connections
    smoke = ["ansible-playbook", "--inventory", str(SCENARIO / "inventory"), "playbooks/smoke.yml"]
    host = testinfra.get_host("docker://dev.field.example")
    try:
        host.check_output("ip -4 address flush dev eth0")
        assert host.check_output("ip -4 -brief address show scope global") == ""
        host.check_output(f"systemctl restart models-probe {MODEL} model-follower")
        smoke += ["--extra-vars", json.dumps(reached)]
        done = subprocess.run(smoke, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    finally:
        host.check_output("ip address add 198.18.7.41/24 dev eth0 && ip route add default via 198.18.7.1")

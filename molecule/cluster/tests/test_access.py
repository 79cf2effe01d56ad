"""Who gets in: strangers on the network, people of each role, machines, and each of them only where they belong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from conftest import Reach
from testinfra.host import Host

from scripts import lab_hosts
from scripts.common import ROOT, environment, wait_until

DOMAIN = "metalworks.internal"
SERVICES, GPU = "198.51.100.11", "198.51.100.21"
OPEN = {"services-1": {22, 443}, "gpu-1": {22}, "cpu-1": {22}, "dev-1": {22}}
"""TCP ports that answer to a stranger."""
ADDRESSES = {host.name: host.address for host in lab_hosts.declared()}
AUTHORITY = lab_hosts.STATE / "ca.crt"
SECRETS: dict[str, Any] = yaml.safe_load((lab_hosts.INVENTORY / "group_vars/all/vault.yml").read_text())
SCAN = """
import resource, select, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
found = []
for first in range(1, 65536, 4096):
    probes, poll = {}, select.poll()
    for port in range(first, min(first + 4096, 65536)):
        probe = socket.socket()
        probe.setblocking(False)
        probe.connect_ex((sys.argv[1], port))
        probes[probe.fileno()] = probe, port
        poll.register(probe, select.POLLOUT)
    # What is dropped never answers; what answers does so at once.
    until = time.monotonic() + 1.5
    while (left := until - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            poll.unregister(number)
            if probes[number][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(probes[number][1])
    for probe, _ in probes.values():
        probe.close()
print(*found)
"""
LIST = (
    "/opt/metalworks/workstation/current/bin/python -c "
    '\'import botocore.session as b; b.get_session().create_client("s3").list_objects_v2(Bucket="training-data")\''
)
STRANGERS = [
    ("mlflow", "/", 401),
    ("mlflow", "/api/2.0/mlflow/experiments/search?max_results=1", 401),
    ("mlflow", "/version", 401),
    ("mlflow", "/metrics", 401),
    ("mlflow", "/api/2.0/mlflow-artifacts/artifacts?path=/", 401),
    ("mlflow", "/health", 200),
    ("prefect", "/", 401),
    ("prefect", "/api/admin/settings", 401),
    ("prefect", "/api/flows/filter", 401),
    ("prefect", "/docs", 401),
    ("prefect", "/api/health", 200),
    ("s3", "/", 403),
    ("s3", "/training-data/", 403),
    ("s3", "/minio/v2/metrics/cluster", 403),
    ("console", "/api/v1/buckets", 403),
    ("inference", "/delay/version", 401),
    ("inference", "/delay/docs", 401),
    ("inference", "/delay/ping", 200),
    ("", "/", 200),
    ("", "/ca.crt", 200),
]


@pytest.fixture(scope="module")
def attacker(reach: Reach) -> Host:
    """A machine on the network that is no part of the platform."""
    return reach("customer-db")


def answer(host: Host, site: str, path: str, *options: str) -> int:
    """The status that a URL of the platform is answered with; TLS is verified with the CA that the gateway gives."""
    name = f"{site}.{DOMAIN}".lstrip(".")
    command = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert", "/tmp/ca.crt"]
    command += ["--resolve", f"{name}:443:{SERVICES}", *options, f"https://{name}{path}"]
    return int(host.run(" ".join(["%s"] * len(command)), *command).stdout)


@pytest.fixture(scope="module", autouse=True)
def authority(reach: Reach, attacker: Host) -> Iterator[None]:
    """The CA's certificate, carried to the attacker as a person imports it."""
    text = reach("services-1").file("/etc/metalworks/tls/ca.crt").content_string
    AUTHORITY.write_text(text)
    attacker.run_expect([0], "printf %%s %s > /tmp/ca.crt", text)
    yield
    attacker.run_expect([0], "rm /tmp/ca.crt")


@pytest.mark.parametrize("name", OPEN)
def test_a_port_scan_sees_what_is_documented(attacker: Host, name: str) -> None:
    found = attacker.check_output("python3 -c %s %s", SCAN, ADDRESSES[name])
    assert {int(port) for port in found.split()} == OPEN[name]


@pytest.mark.parametrize(("site", "path", "status"), STRANGERS)
def test_strangers_get_health_and_the_start_page(attacker: Host, site: str, path: str, status: int) -> None:
    assert answer(attacker, site, path) == status


@pytest.mark.parametrize("credentials", ["ml1:wrong", "nobody:wrong", "metalworks-admin:metalworks-admin", ":", "ml1:"])
@pytest.mark.parametrize(("site", "path"), [("mlflow", "/version"), ("prefect", "/api/admin/version")])
def test_wrong_passwords_are_refused(attacker: Host, site: str, path: str, credentials: str) -> None:
    assert answer(attacker, site, path, "--user", credentials) == 401


@pytest.mark.parametrize("token", ["wrong", "", SECRETS["vault_user_passwords"]["ml1"]])
def test_wrong_tokens_are_refused(attacker: Host, token: str) -> None:
    assert answer(attacker, "inference", "/delay/version", "--header", f"Authorization: Bearer {token}") == 401


def test_the_right_ones_are_not(attacker: Host) -> None:
    user = ["--user", f"ml1:{SECRETS['vault_user_passwords']['ml1']}"]
    token = ["--header", f"Authorization: Bearer {SECRETS['vault_inference_tokens']['ml1']}"]
    assert answer(attacker, "mlflow", "/version", *user) == 200
    assert answer(attacker, "prefect", "/api/admin/version", *user) == 200
    assert answer(attacker, "inference", "/delay/version", *token) == 200


def test_another_name_is_not_answered(attacker: Host) -> None:
    command = f"curl --silent --insecure --resolve other.example:443:{SERVICES} https://other.example/"
    assert attacker.run(command).rc != 0


# -- People's roles, asked from this machine as from their own


def put_secret(host: str, path: str, text: str) -> None:
    """A file that everybody on the host may read, without its text in a command line."""
    command = ["ssh", "-F", str(lab_hosts.SSH_CONFIG), host, f"cat > {path}"]
    subprocess.run(command, input=text, text=True, check=True)


def ask(site: str, path: str, user: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and content of an answer to a person. curl reads all of it from stdin: the password is in it."""
    name = f"{site}.{DOMAIN}"
    lines = [f'url = "https://{name}{path}"', f'resolve = "{name}:443:{SERVICES}"', 'write-out = "\\n%{http_code}"']
    lines += [
        f'user = "{user}:{SECRETS["vault_user_passwords"][user]}"',
        f'cacert = "{AUTHORITY}"',
        "silent",
        "noproxy = *",
    ]
    if body is not None:
        quoted = json.dumps(body).replace('"', '\\"')
        lines += [f'data = "{quoted}"', 'header = "Content-Type: application/json"']
    done = subprocess.run(
        ["curl", "--config", "-"], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=60
    )
    text, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(text) if text.startswith(("{", "[")) else text


@pytest.fixture(scope="module")
def somebodys_run() -> str:
    """A run of the flights experiment, made by a developer."""
    status, found = ask("mlflow", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=flight-delay", "ml1")
    assert status == 200, found
    experiment = found["experiment"]["experiment_id"]
    query = {"experiment_ids": [experiment], "max_results": 1}
    status, found = ask("mlflow", "/api/2.0/mlflow/runs/search", "guest", query)
    assert status == 200, found  # a viewer looks
    return str(found["runs"][0]["info"]["run_id"])


def test_a_viewer_looks_and_changes_nothing(somebodys_run: str) -> None:
    assert ask("mlflow", f"/api/2.0/mlflow/runs/get?run_id={somebodys_run}", "guest")[0] == 200
    for path, body in (
        ("runs/delete", {"run_id": somebodys_run}),
        ("runs/set-tag", {"run_id": somebodys_run, "key": "seen", "value": "yes"}),
        ("experiments/create", {"name": "a viewer's"}),
        ("registered-models/create", {"name": "a viewer's"}),
    ):
        assert ask("mlflow", f"/api/2.0/mlflow/{path}", "guest", body)[0] == 403, path
    assert ask("prefect", "/api/flows/filter", "guest", {})[0] == 200
    assert ask("prefect", "/api/flows/", "guest", {"name": "a viewer's"})[0] == 403


def test_a_developer_changes_others_work_but_deletes_only_their_own(somebodys_run: str) -> None:
    tag = {"run_id": somebodys_run, "key": "looked-at-by", "value": "ml2"}
    assert ask("mlflow", "/api/2.0/mlflow/runs/set-tag", "ml2", tag)[0] == 200
    assert ask("mlflow", "/api/2.0/mlflow/runs/delete", "ml2", {"run_id": somebodys_run})[0] == 403
    friend = {"username": "friend", "password": "let-me-in-as-well"}
    assert ask("mlflow", "/api/2.0/mlflow/users/create", "ml2", friend)[0] == 403
    assert ask("mlflow", "/api/2.0/mlflow/users/get?username=ml2", "boss")[0] == 200


def play(*playbooks: str, **choices: Any) -> None:
    """Run playbooks on the cluster with other choices; they must succeed."""
    command = ["ansible-playbook", "-i", str(lab_hosts.INVENTORY), *playbooks, "--extra-vars", json.dumps(choices)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_who_is_taken_off_the_list_is_let_in_nowhere(reach: Reach, attacker: Host) -> None:
    people = yaml.safe_load((lab_hosts.INVENTORY / "group_vars/all/site.yml").read_text())["platform_users"]
    playbooks = ("playbooks/services.yml", "playbooks/workstations.yml", "playbooks/inference.yml")
    token = ["--header", f"Authorization: Bearer {SECRETS['vault_inference_tokens']['ml2']}"]
    login = "getent shadow ml2 | cut -d: -f8"
    command = "su - ml1 -c %s"
    key = f"AWS_ACCESS_KEY_ID=ml2 AWS_SECRET_ACCESS_KEY=$(cat /tmp/key) AWS_SHARED_CREDENTIALS_FILE=/dev/null {LIST}"
    dev = reach("dev-1")
    put_secret("dev-1", "/tmp/key", SECRETS["vault_object_store_secret_keys"]["ml2"])

    def let_in() -> list[bool]:
        return [
            ask("mlflow", "/version", "ml2")[0] == 200,
            ask("prefect", "/api/admin/version", "ml2")[0] == 200,
            answer(attacker, "inference", "/delay/version", *token) == 200,
            dev.run(command, key).succeeded,
            dev.check_output(login) == "",
        ]

    assert let_in() == [True] * 5
    play(*playbooks, platform_users=[person for person in people if person["name"] != "ml2"])
    try:
        wait_until(lambda: ask("mlflow", "/version", "ml2")[0] == 401, "MLflow still lets ml2 in", 40)
        assert let_in() == [False] * 5
        assert dev.file("/home/ml2/.aws/credentials").exists
    finally:
        play(*playbooks)
    assert let_in() == [True] * 5
    dev.run_expect([0], "rm /tmp/key")

"""Metrics and logs of two hosts arrive under the sender's name, also after an outage, and only people read them."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import struct
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from scripts.common import wait_until
from scripts.site import make_secrets
from tests.unit.repository import load

SCENARIO = Path(__file__).resolve().parent.parent
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
SECRETS = yaml.safe_load((SCENARIO / "inventory/group_vars/all/vault.yml").read_text())
WATCH, PLAIN = "watch-1", "plain-1"
ADDRESS, DOMAIN = "198.18.15.11", "metalworks.internal"
WRITE, UPLOAD = "/api/v1/write", "/insert/journald/upload"
JOURNAL = "application/vnd.fdo.journal"
INTERVAL = 5.0
CUT_OFF = 60.0
FRESH, PATIENCE = 90.0, 180.0
"""VictoriaMetrics shows a sample 30 seconds after its time, when those of all hosts have come."""
certificates = load("plugins/action/host_certificate.py")


def shell(host: str, command: str) -> str:
    done = subprocess.run(["docker", "exec", host, "sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ask(
    site: str, path: str, *, user: str = "", sender: str = "", body: bytes | None = None, **headers: str
) -> tuple[int, str]:
    """Return status and text of the gateway's answer to a user, or to whoever has a certificate."""
    context = ssl.create_default_context(cadata=SECRETS["vault_ca_certificate"])
    if sender:
        context.load_cert_chain(PLACE / f"{sender}.crt", PLACE / f"{sender}.key")
    if user:
        login = f"{user}:{SECRETS['vault_user_passwords'][user]}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    name = f"{site}.{DOMAIN}"
    with socket.create_connection((ADDRESS, 443), timeout=60) as plain:
        connection = http.client.HTTPSConnection(name)
        connection.sock = context.wrap_socket(plain, server_hostname=name)
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def query(text: str) -> list[dict[str, Any]]:
    """Return what a viewer reads."""
    status, answer = ask("metrics", f"/api/v1/query?{urlencode({'query': text, 'nocache': 1})}", user="vera")
    assert status == 200, answer
    found: list[dict[str, Any]] = json.loads(answer)["data"]["result"]
    return found


def lines(text: str) -> list[dict[str, Any]]:
    """Return the entries of journals that an admin finds."""
    status, answer = ask("logs", "/select/logsql/query", user="ada", body=urlencode({"query": text}).encode(),
                         Content_Type="application/x-www-form-urlencoded")  # fmt: skip
    assert status == 200, answer
    return [json.loads(line) for line in answer.splitlines()]


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def remote_write(value: float, **labels: str) -> bytes:
    """Return one sample as Prometheus sends it: a message of protobuf, in snappy's blocks without compression."""
    pairs = b"".join(field(1, field(1, key.encode()) + field(2, text.encode())) for key, text in sorted(labels.items()))
    sample = b"\x09" + struct.pack("<d", value) + b"\x10" + varint(int(time.time() * 1000))
    message = field(1, pairs + field(2, sample))
    assert len(message) <= 2**16
    return varint(len(message)) + bytes([61 << 2]) + struct.pack("<H", len(message) - 1) + message


def write(body: bytes, *, sender: str = "", user: str = "", more: str = "") -> int:
    headers = {"Content_Encoding": "snappy", "Content_Type": "application/x-protobuf"}
    return ask("metrics", WRITE + more, sender=sender, user=user, body=body, **headers)[0]


def given(name: str, ca: str, ca_key: str) -> None:
    """Issue a certificate for a name, as the platform does."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(certificates.subject([name])).sign(key, hashes.SHA256())
    )
    issuer, issuer_key = certificates.certificate(ca, "the CA"), certificates.private_key(ca_key, "its key")
    text = certificates.issue(request.public_bytes(Encoding.PEM).decode(), issuer, issuer_key, [name], 2)
    (PLACE / f"{name}.crt").write_text(text)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (PLACE / f"{name}.key").write_bytes(secret)


@pytest.fixture(scope="module", autouse=True)
def identities() -> None:
    """Provide the plain host's certificate, one of a host that is not in the inventory, and one of another CA."""
    for end in ("crt", "key"):
        (PLACE / f"{PLAIN}.{end}").write_text(shell(PLAIN, f"cat /etc/metalworks/tls/host.{end}") + "\n")
    given("stranger-1", SECRETS["vault_ca_certificate"], SECRETS["vault_ca_private_key"])
    other = make_secrets.ca({})
    given("foreign-1", other[make_secrets.CA_CERTIFICATE], other[make_secrets.CA_KEY])


@pytest.mark.parametrize(
    ("host", "jobs"),
    [(WATCH, {"node", "agent", "gateway", "postgresql", "object_store", "monitoring"}), (PLAIN, {"node", "agent"})],
)
def test_every_part_of_every_host_is_collected(host: str, jobs: set[str]) -> None:
    def found() -> dict[str, str]:
        return {one["metric"]["job"]: one["value"][1] for one in query(f'min by (job) (up{{host="{host}"}})')}

    wait_until(lambda: set(found()) == jobs, f"{host} does not send all", PATIENCE, 3)
    wait_until(lambda: set(found().values()) == {"1"}, f"an exporter of {host} does not answer", PATIENCE, 3)


@pytest.mark.parametrize("host", [WATCH, PLAIN])
def test_the_newest_sample_is_fresh(host: str) -> None:
    (age,) = query(f'time() - max(tlast_over_time(node_time_seconds{{host="{host}"}}[1h]))')
    assert float(age["value"][1]) < FRESH


@pytest.mark.parametrize(
    "metric",
    ["pg_up == 1", "nginx_up == 1", "minio_cluster_health_status == 1", 'pg_database_size_bytes{datname="mlflow"} > 0',
     'node_systemd_unit_state{name="nginx.service",state="active"} == 1', "node_systemd_service_restart_total",
     "metalworks_reboot_required", 'metalworks_certificate_not_after_seconds{name="host"} > time()',
     "metalworks_login_failures_total", 'node_filesystem_avail_bytes{mountpoint="/"} > 0'],
)  # fmt: skip
def test_what_alerts_ask_for_is_there(metric: str) -> None:
    wait_until(lambda: query(metric) != [], f"no {metric}", PATIENCE, 3)


def test_a_host_cannot_write_under_another_name() -> None:
    body = remote_write(1.0, __name__="forged", host=WATCH)
    assert write(body, sender=PLAIN) == 204
    assert write(body, sender=PLAIN, more=f"?extra_label=host={WATCH}") == 204
    wait_until(lambda: query("forged") != [], "the sample did not arrive", PATIENCE, 3)
    assert [one["metric"]["host"] for one in query("forged")] == [PLAIN]


def test_a_host_cannot_log_under_another_name() -> None:
    word = f"forged{time.time_ns()}"
    entry = f"__REALTIME_TIMESTAMP={time.time_ns() // 1000}\nhost={WATCH}\n_HOSTNAME={WATCH}\nMESSAGE={word}\n\n"
    more = f"?extra_fields=host={WATCH}"
    status, answer = ask("logs", UPLOAD + more, sender=PLAIN, body=entry.encode(), Content_Type=JOURNAL,
                         VL_Extra_Fields=f"host={WATCH}")  # fmt: skip
    assert status == 200, answer
    wait_until(lambda: lines(word) != [], "the line did not arrive", PATIENCE, 2)
    assert [one["host"] for one in lines(word)] == [PLAIN]


@pytest.mark.parametrize(("sender", "status"), [("", 403), ("stranger-1", 403), ("foreign-1", 400)])
def test_who_is_no_host_of_the_inventory_is_refused(sender: str, status: int) -> None:
    assert write(remote_write(1.0, __name__="intruded"), sender=sender) == status
    assert ask("logs", UPLOAD, sender=sender, body=b"MESSAGE=x\n\n", Content_Type=JOURNAL)[0] == status
    assert query("intruded") == []


def test_a_password_is_no_certificate() -> None:
    assert write(remote_write(1.0, __name__="intruded"), user="ada") == 403


@pytest.mark.parametrize("user", ["vera", "ada"])
@pytest.mark.parametrize(
    ("site", "path"),
    [
        ("metrics", "/api/v1/admin/tsdb/delete_series?match[]=up"),
        ("metrics", "/prometheus/api/v1/admin/tsdb/delete_series?match[]=up"),
        ("metrics", "/internal/force_merge"),
        ("metrics", "/internal/resetRollupResultCache"),
        ("metrics", "/snapshot/create"),
        ("metrics", "/api/v1/import/prometheus"),
        ("metrics", "/metrics"),
        ("metrics", "/flags"),
        ("metrics", "/debug/pprof/cmdline"),
        ("metrics", "/vmalert/-/reload"),
        ("logs", "/delete/run_task"),
        ("logs", "/internal/delete/run_task"),
        ("logs", "/insert/jsonline"),
        ("logs", "/flags"),
    ],
)
def test_nobody_deletes_or_writes_or_looks_inside(user: str, site: str, path: str) -> None:
    for body in (None, b"x"):
        assert ask(site, path, user=user, body=body)[0] == 403
    assert query("up") != []


@pytest.mark.parametrize(("site", "path", "viewer"), [("metrics", "/vmui/", 200), ("logs", "/select/vmui/", 403)])
def test_people_see_the_pages_and_others_do_not(site: str, path: str, viewer: int) -> None:
    status, page = ask(site, path, user="ada")
    assert (status, "<script" in page) == (200, True)
    assert ask(site, path, user="vera")[0] == viewer
    assert ask(site, path)[0] == 401
    assert ask(site, path, sender=PLAIN)[0] == 401


def test_a_host_that_cannot_send_loses_no_sample() -> None:
    began = time.time()
    shell(WATCH, "systemctl stop victoria-metrics")
    try:
        wait_until(lambda: time.time() > began + CUT_OFF, "the time does not pass", 2 * CUT_OFF, 2)
    finally:
        shell(WATCH, "systemctl start victoria-metrics")
    answers = "/api/v1/query?query=1"
    wait_until(lambda: ask("metrics", answers, user="vera")[0] == 200, "it does not come back", PATIENCE, 2)
    ended = time.time()

    def times() -> list[float]:
        found = query(f'node_time_seconds{{host="{PLAIN}"}}[10m]')
        return [float(at) for at, _ in found[0]["values"]] if found else []

    wait_until(lambda: any(at > ended + 30 for at in times()), "nothing arrives any more", PATIENCE, 3)
    inside = [at for at in times() if began - 20 <= at <= ended + 20]
    gaps = [later - earlier for earlier, later in pairwise(inside)]
    assert len(inside) >= (ended - began) / INTERVAL
    assert max(gaps) < 2 * INTERVAL


@pytest.mark.parametrize("host", [WATCH, PLAIN])
def test_a_line_of_a_unit_is_found_with_its_host(host: str) -> None:
    word = f"probe{time.time_ns()}"
    shell(host, f"systemd-run --quiet --wait --unit=metalworks-probe echo {word}")

    def units() -> list[tuple[str, str]]:
        found = lines(f'"{word}" _SYSTEMD_UNIT:="metalworks-probe.service"')
        return [(one["host"], one["_msg"]) for one in found]

    wait_until(lambda: units() == [(host, word)], f"{host} sent {quote(word)} not once", PATIENCE, 2)


@pytest.mark.parametrize("host", [WATCH, PLAIN])
def test_no_program_of_ours_listens_outside(host: str) -> None:
    listening = [line.split()[3] for line in shell(host, "ss -Htln").splitlines()]
    outside = {at.rpartition(":")[2] for at in listening if not at.startswith(("127.0.0.", "[::1]"))}
    assert outside <= {"22", "443", "5432"}


@pytest.mark.parametrize("port", [8428, 9428, 8880, 9093, 9000, 9100, 9187, 9113, 8429])
def test_other_users_of_the_host_cannot_connect(port: int) -> None:
    connect = f'import socket; socket.create_connection(("127.0.0.1", {port}), 5)'
    shell(WATCH, f"python3 -c '{connect}'")
    with pytest.raises(AssertionError, match=r"refused|prohibited|unreachable|denied|permitted|No route"):
        shell(WATCH, f"setpriv --reuid=nobody --clear-groups python3 -c '{connect}'")


def test_the_exporter_of_the_database_reads_no_data() -> None:
    psql = "setpriv --reuid=postgres-exporter --regid=postgres-exporter --clear-groups psql --dbname"
    with pytest.raises(AssertionError, match=r"no pg_hba.conf entry|authentication failed|no password supplied"):
        shell(WATCH, f"{psql} mlflow --command 'select 1'")
    with pytest.raises(AssertionError, match="permission denied"):
        shell(WATCH, f"{psql} postgres --command 'select * from pg_authid'")


def test_secrets_are_in_no_command_line() -> None:
    assert (
        "password"
        not in shell(WATCH, "ps -o args= -C victoria-metrics,vmalert,vmagent,prometheus-alertmanager").lower()
    )

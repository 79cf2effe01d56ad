"""A gateway in front of stand-ins that echo requests: access control, forwarding, isolation."""

from __future__ import annotations

import base64
import json
import re
from functools import partial
from types import SimpleNamespace

import pytest
import testinfra
import yaml

from scripts.common import ROOT

DOMAIN = "metalworks.internal"
CONVERGE = yaml.safe_load((ROOT / "molecule/gateway/converge.yml").read_text())
VARIABLES = CONVERGE[0]["roles"][1]["vars"]
SITES, USERS = VARIABLES["gateway_sites"], VARIABLES["gateway_users"]
REALM = 'basic realm="metalworks"'
ADA, VERA, WORKER = "ada:ada-password", "vera:vera-password", "worker-gpu:worker-password"
INFERENCE = "inference:inference-password"
RUN, VERSION, DELETE = "/api/2.0/mlflow/runs/get", "/api/version", "/api/2.0/mlflow/runs/delete"
"""Routes of MLflow and Prefect that every user can read, and one that writes."""
drifts = pytest.mark.drifts


@pytest.fixture(scope="module")
def host():
    """Return the host without Ansible in between, which would add a second to each of hundreds of commands."""
    return testinfra.get_host("docker://gateway")


def ask(host, site: str, path: str, *options: str):
    """Send a request through the gateway; return status, headers and text of the response."""
    name = f"{site}.{DOMAIN}".lstrip(".")
    quoted = " ".join(f"'{option}'" for option in options)
    result = host.run(
        f"curl --silent --include --path-as-is --cacert /etc/metalworks/tls/ca.crt --max-time 60 "
        f"--connect-to ::127.0.0.1:443 {quoted} 'https://{name}{path}'"
    )
    # Interim responses such as `100 Continue` come first.
    shown = re.sub(r"\A(?:HTTP/1.1 1\d\d [^\n]*\n\n)+", "", result.stdout.replace("\r", ""))
    head, _, text = shown.partition("\n\n")
    lines = head.splitlines()
    return SimpleNamespace(
        status=int(lines[0].split()[1]) if lines else 0,
        headers=[tuple(line.lower().split(": ", 1)) for line in lines[1:]],
        text=text,
        code=result.rc,
    )


def told(answer) -> dict[str, str]:
    """Return the headers that a stand-in received; none may be duplicated."""
    assert answer.status == 200, answer
    headers = json.loads(answer.text)["headers"]
    assert len({name for name, _ in headers}) == len(headers), headers
    return dict(headers)


def started(host) -> str:
    return str(host.check_output("systemctl show nginx --property ExecMainStartTimestampMonotonic,MainPID"))


@pytest.fixture(scope="session")
def play(play):
    """Return a function that runs the play again without the other role."""
    return partial(play, "--skip-tags", "platform_status")


@pytest.fixture
def converged(host, request, play):
    """Return nginx's process; after a test marked `drifts`, a play must repair the host."""
    yield started(host)
    if request.node.get_closest_marker("drifts"):
        result = play()
        assert result.returncode == 0, result.stdout
        again = play()
        assert re.search(r"changed=0 .*failed=0", again.stdout), again.stdout


# -- Login
def test_prefect_requires_a_login(host):
    for options in ((), ("--user", "ada:wrong"), ("--user", "nobody:ada-password"), ("--user", "ada:")):
        for method, path in (("GET", VERSION), ("POST", "/api/flows/filter")):
            refused = ask(host, "prefect", path, "--request", method, *options)
            assert refused.status == 401
            assert [v for n, v in refused.headers if n == "www-authenticate"] == ['basic realm="metalworks"']
            assert json.loads(refused.text)["detail"]
    for user in USERS:
        answer = ask(host, "prefect", VERSION, "--user", f"{user['name']}:{user['password']}")
        assert answer.status == (403 if user["role"] == "inference" else 200)


def test_passwords_are_not_passed_on(host):
    assert "authorization" not in told(ask(host, "prefect", VERSION, "--user", ADA))
    assert "authorization" not in told(ask(host, "prefect", "/api/health", "--user", ADA))


def test_a_site_that_checks_users_itself_gets_the_login(host):
    expected = "Basic " + base64.b64encode(ADA.encode()).decode()
    assert told(ask(host, "mlflow", RUN, "--user", ADA))["authorization"] == expected
    assert told(ask(host, "inference", "/delay/predict", "--header", "Authorization: Bearer t"))["authorization"] == (
        "Bearer t"
    )
    # MLflow's own refusal is passed on unchanged.
    refused = ask(host, "mlflow", "/static-files/unauthorized", "--user", ADA)
    assert json.loads(refused.text) == {"said_by": "mlflow"}
    assert [value for name, value in refused.headers if name == "www-authenticate"] == ['basic realm="mlflow"']


def test_two_authorization_headers_are_refused_or_the_first_counts(host):
    first, second = (base64.b64encode(login.encode()).decode() for login in (ADA, VERA))
    answer = ask(
        host, "mlflow", RUN, "--header", f"Authorization: Basic {first}", "--header", f"authorization: Basic {second}"
    )
    assert answer.status == 400 or told(answer)["authorization"] == f"Basic {first}"


def test_only_the_health_path_needs_no_login(host):
    assert ask(host, "prefect", "/api/health").status == 200
    assert ask(host, "prefect", "/api/ready").status == 200
    # Normalized it is an open path, but it would be passed on as another.
    for path in ("/api/flows/../health", "/api/%68ealth", "//api/health"):
        assert ask(host, "prefect", path).status == 404, path
    for path in ("/api/health/", "/api/health/x", "/api/healthy", "/api/health%2f..%2fflows", "/api/health/../flows"):
        assert ask(host, "prefect", path).status in (400, 401, 403), path
    for site in SITES:
        answer = ask(host, "", f"/health/{site['name']}", "--user", ADA, "--header", "Cookie: a=b")
        if "root" in site:
            assert (answer.status, answer.text.strip()) == (200, "OK")
        elif "says" not in site:
            assert json.loads(answer.text)["path"] == site["health"]
            assert told(answer) == {"host": f"{site.get('host', site['name'])}.{DOMAIN}"}
        assert ask(host, "", f"/health/{site['name']}?verbose=1").status == 404
        assert ask(host, "", f"/health/{site['name']}", "--request", "POST").status == 405
    assert ask(host, "", "/health").text.strip() == "OK"
    for path in ("/users", "/index.html/../users", "/../nginx.conf", "/health/nothing", "/host.key"):
        assert ask(host, "", path).status in (400, 404), path


# -- Permissions
@pytest.mark.parametrize(
    ("site", "reads", "writes"),
    [("mlflow", "/api/2.0/mlflow/runs/search", DELETE), ("prefect", "/api/flow_runs/filter", "/api/flow_runs/")],
)
def test_viewers_can_only_read(host, site, reads, writes):
    shown = {"mlflow": RUN, "prefect": VERSION}[site]
    for method in ("GET", "HEAD"):
        extra = ("--head",) if method == "HEAD" else ("--request", method)
        assert ask(host, site, shown, "--user", VERA, *extra).status == 200
    assert ask(host, site, f"{reads}?limit=3", "--user", VERA, "--data", "{}").status == 200
    refused = ask(host, site, writes, "--user", VERA, "--request", "POST")
    assert refused.status == 403
    assert json.loads(refused.text)["error_code"] == "PERMISSION_DENIED"
    assert ask(host, site, writes, "--user", ADA, "--request", "POST").status == 200
    assert ask(host, site, writes, "--user", WORKER, "--request", "POST").status == 200
    for path in (
        f"{writes}?x={reads}",
        f"{writes}#{reads}",
        f"{writes}%3f{reads}",
        f"{writes}%2f..%2f..%2f..%2f..%2f..{reads}",
        f"{writes}/../../../../../..{reads}",
        f"{reads}/x",
        f"/x{reads}",
        f"{reads}%0a",
        f"{reads}%00",
        f"/.{reads}",
        f"//{reads}",
    ):
        assert ask(host, site, path, "--user", VERA, "--data", "{}").status in (400, 403), path


@pytest.mark.parametrize(
    "path", ["/api/3.0/mlflow/gateway/secrets/list", "/ajax-api/3.0/mlflow/assistant/config", "/new"]
)
def test_routes_outside_the_platform_are_refused_for_everyone(host, path):
    for user in (ADA, VERA, WORKER, INFERENCE):
        assert ask(host, "mlflow", path, "--user", user).status == 403
        assert ask(host, "prefect", "/openapi.json", "--user", user).status == 403


def test_ambiguous_paths_are_refused(host):
    for path in (
        "/gateway/proxy/x/../../../api/2.0/mlflow/runs/get",
        "/api/2.0/mlflow/runs/../runs/get",
        "/api/2.0/mlflow//runs/get",
        "/api/2.0/mlflow/./runs/get",
        "/api/2.0/mlflow/runs%2fget",
        "/api/2.0/mlflow/%2e%2e/runs/get",
        "/api/2.0/mlflow/runs/get%252f",
        "/api/2.0/mlflow/runs/get%0d%0a",
        "/static-files/x%5c..%5cy",
        "/static-files/..",
    ):
        assert ask(host, "mlflow", path, "--user", ADA).status in (400, 403), path
    # File names must not matter.
    for path in (
        "/static-files/a%20b.css",
        "/static-files/%E9%A3%9B%E8%88%AA",
        "/static-files/..a/b..c",
        "/static-files/a+b@c",
    ):
        assert json.loads(ask(host, "mlflow", path, "--user", VERA).text)["path"] == path


def test_inference_hosts_can_only_report_on_versions(host):
    assert ask(host, "mlflow", RUN, "--user", INFERENCE).status == 200
    assert (
        ask(host, "mlflow", "/api/2.0/mlflow/model-versions/set-tag", "--user", INFERENCE, "--data", "{}").status == 200
    )
    assert ask(host, "mlflow", DELETE, "--user", INFERENCE, "--data", "{}").status == 403
    assert ask(host, "mlflow", "/api/2.0/mlflow/model-versions/set-tag", "--user", VERA, "--data", "{}").status == 403


def test_viewers_cannot_read_routes_with_secrets(host):
    for path in ("/api/block_documents/1?include_secrets=true", "/api/block_types/slug/secret/block_documents"):
        assert ask(host, "prefect", path, "--user", VERA).status == 403, path
        assert ask(host, "prefect", path, "--user", ADA).status == 200, path
    for path in ("/api/%62lock_documents/1", "/api/x/../block_documents/1"):
        assert ask(host, "prefect", path, "--user", VERA).status in (400, 403), path
    assert ask(host, "prefect", "/api/block_documents/filter", "--user", VERA, "--data", "{}").status == 403


def test_admin_routes_are_refused_to_others(host):
    assert ask(host, "prefect", "/api/admin/storage", "--user", ADA, "--request", "PUT").status == 200
    assert ask(host, "mlflow", "/api/2.0/mlflow/webhooks", "--user", ADA).status == 200
    for user in (VERA, WORKER):
        assert ask(host, "prefect", "/api/admin/storage", "--user", user, "--request", "PUT").status == 403
        assert ask(host, "mlflow", "/api/2.0/mlflow/webhooks", "--user", user).status == 403


def test_a_refused_client_cannot_upload_a_body(host):
    """nginx responds before reading the body: curl waits for `100 Continue`, and gets 401."""
    host.check_output("truncate --size 300M /tmp/large")
    for options in ((), ("--user", "ada:wrong")):
        answer = ask(
            host, "mlflow", "/api/2.0/mlflow-artifacts/artifacts/x", "--upload-file", "/tmp/large", *options,
            "--write-out", "sent=%{size_upload}", "--header", "Expect: 100-continue", "--expect100-timeout", "30",
        )  # fmt: skip
        assert (answer.status, answer.text.endswith("sent=0")) == (401, True)
    assert ask(host, "mlflow", "/get-artifact", "--user", VERA, "--request", "GET", "--data", "x").status == 400


def test_request_line_and_header_must_name_the_same_host(host):
    absolute = f"https://elsewhere.example{VERSION}"
    answer = ask(host, "prefect", "", "--user", ADA, "--request-target", absolute)
    assert answer.status in (0, 400, 421)
    same = ask(host, "prefect", "", "--user", ADA, "--request-target", f"https://prefect.{DOMAIN}{VERSION}",
               "--header", "Host: elsewhere.example")  # fmt: skip
    assert same.status in (0, 400, 421)


def test_passwords_cannot_be_tried_quickly(host):
    """Attempts are delayed, whether the name is right or not."""
    for login in ("ada:wrong", "nobody:wrong"):
        answer = ask(host, "mlflow", RUN, "--user", login, "--write-out", "seconds=%{time_total}")
        assert answer.status == 401
        assert float(answer.text.rsplit("seconds=", 1)[1]) >= 1


def test_requests_of_one_user_are_rate_limited(host):
    """A burst of more than ten seconds' worth of requests is refused; other users are still served."""
    url = f"https://mlflow.{DOMAIN}{RUN}"
    many = (
        f"curl --silent --parallel --parallel-immediate --parallel-max 300 --max-time 60 --output /dev/null "
        f"--cacert /etc/metalworks/tls/ca.crt --connect-to ::127.0.0.1:443 --user {WORKER} "
        f"--write-out '%{{http_code}}\\n' '{url}?x=[1-4000]' | sort | uniq -c"
    )
    counted = dict(reversed(line.split()) for line in host.check_output(many).splitlines())
    assert set(counted) <= {"200", "429"}
    assert int(counted["200"]) >= 2000
    assert ask(host, "mlflow", RUN, "--user", ADA).status == 200


def test_other_sites_pages_cannot_use_a_login(host):
    own = f"prefect.{DOMAIN}"
    for origin, status in (
        (f"https://{own}", 200),
        (f"https://{own}:443", 200),
        ("https://elsewhere.example", 403),
        (f"https://mlflow.{DOMAIN}", 403),
        (f"http://{own}", 403),
        (f"https://{own}.elsewhere.example", 403),
        ("null", 403),
    ):
        answer = ask(
            host, "prefect", "/api/flows/filter", "--user", ADA, "--data", "{}", "--header", f"Origin: {origin}"
        )
        assert answer.status == status, origin
    upgrade = ("--header", "Connection: upgrade", "--header", "Upgrade: websocket")
    foreign = ask(host, "prefect", "/api/events/in", "--user", ADA, *upgrade, "--header", "Origin: https://x.example")
    assert foreign.status == 403


def test_malformed_and_unknown_logins_are_refused(host):
    """Python's base64 decoder is more lenient than nginx's: a login that nginx cannot decode must not get through."""
    login = base64.b64encode(VERA.encode()).decode()
    for header in (f"Basic {login[:4]}!{login[4:]}", "Bearer x", "Basic " + "VERA:x"):
        assert ask(host, "mlflow", DELETE, "--request", "POST", "--header", f"Authorization: {header}").status == 401
    anonymous = ask(host, "mlflow", DELETE, "--request", "POST")
    assert anonymous.status == 401
    assert [value for name, value in anonymous.headers if name == "www-authenticate"] == [REALM]
    for login in ("Ada:ada-password", "ada2:x", "xada:x"):
        assert ask(host, "mlflow", DELETE, "--request", "POST", "--user", login).status == 401


# -- What is passed on
def test_the_gateway_sets_the_forwarding_headers_itself(host):
    lies = [f"X-Forwarded-{what}: lie" for what in ("For", "Proto", "Host", "Port", "Prefix")]
    lies += ["X-Real-IP: lie", "Forwarded: for=lie", "X_Forwarded_For: lie"]
    headers = told(ask(host, "mlflow", RUN, "--user", ADA, *[part for lie in lies for part in ("--header", lie)]))
    assert "lie" not in " ".join(headers.values())
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-forwarded-for"] == headers["x-real-ip"] == "127.0.0.1"
    assert headers["x-forwarded-host"] == headers["host"] == f"mlflow.{DOMAIN}"


def test_signed_requests_arrive_unchanged(host):
    path = "/bucket/a%2Fb%20c+d//e?X-Amz-Signature=s3cr3t&x=%2F"
    answer = ask(host, "s3", path, "--header", f"Host: s3.{DOMAIN}:443", "--header", "x-amz-meta-a_b: c")
    assert json.loads(answer.text)["path"] == path
    assert told(answer)["host"] == f"s3.{DOMAIN}:443"
    assert told(answer)["x-amz-meta-a_b"] == "c"
    asked = "/static-files/a%20b?x=%2F"
    assert json.loads(ask(host, "mlflow", asked, "--user", ADA).text)["path"] == asked


def test_several_services_share_a_name(host):
    assert json.loads(ask(host, "inference", "/delay/predict?a=b").text)["path"] == "/predict?a=b"
    assert told(ask(host, "inference", "/delay/docs"))["x-forwarded-prefix"] == "/delay"
    moved = ask(host, "inference", "/delay")
    assert (
        moved.status,
        ("location", "/delay/") in [(n, v.removeprefix(f"https://inference.{DOMAIN}")) for n, v in moved.headers],
    ) == (308, True)
    for path in ("/", "/delays", "/other/x"):
        assert ask(host, "inference", path).status == 404


def test_pages_have_security_headers(host):
    pages = [("", "/"), ("", "/health/mlflow"), ("mlflow", "/x"), ("prefect", "/x"), ("s3", "/x")]
    for site, path, *options in (*pages, ("docs", "/", "--user", VERA)):
        headers = ask(host, site, path, *options).headers
        assert headers.count(("strict-transport-security", "max-age=31536000")) == 1
        assert headers.count(("x-content-type-options", "nosniff")) == 1
        assert ("server", "nginx") in headers
        if site:
            assert [value for name, value in headers if name == "x-frame-options"] == ["sameorigin"]


WEBSOCKET = """
import base64, os, socket, ssl, sys
site, path, login = sys.argv[1:]
context = ssl.create_default_context(cafile="/etc/metalworks/tls/ca.crt")
name = site + ".metalworks.internal"
wire = context.wrap_socket(socket.create_connection(("127.0.0.1", 443), timeout=10), server_hostname=name)
head = ["GET " + path + " HTTP/1.1", "Host: " + name, "Connection: Upgrade", "Upgrade: websocket",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)).decode()]
if login:
    head.append("Authorization: Basic " + base64.b64encode(login.encode()).decode())
wire.sendall(("\\r\\n".join(head) + "\\r\\n\\r\\n").encode())
answer = b""
while b"\\r\\n\\r\\n" not in answer:
    answer += wire.recv(1)
if b" 101 " in answer:
    for _ in range(3):
        wire.sendall(b"hello")
        assert wire.recv(5) == b"hello"
print(answer.split()[1].decode())
"""


def test_websockets_pass(host):
    for site, path, login, status in (
        ("prefect", "/api/events/in", ADA, "101"),
        ("prefect", "/api/events/out", VERA, "101"),
        ("prefect", "/api/events/in", VERA, "403"),
        ("prefect", "/api/events/in", "", "401"),
        ("prefect", "/api/events/out", "vera:wrong", "401"),
        ("s3", "/ws/objectManager", "", "101"),
    ):
        assert host.check_output("python3 -c %s %s %s %s", WEBSOCKET, site, path, login) == status, (path, login)
    assert "upgrade" not in told(
        ask(host, "mlflow", RUN, "--user", ADA, "--header", "Upgrade: h2c", "--header", "Connection: Upgrade")
    )


STREAM = """
set -eu
curl --silent --show-error --cacert /etc/metalworks/tls/ca.crt --connect-to ::127.0.0.1:443 --max-time 120 "$@" \
    </tmp/large >/tmp/answer &
curl=$!
disk=0 memory=0
while kill -0 $curl 2>/dev/null; do
    now=$(du --summarize --bytes /var/lib/nginx | cut -f1)
    [ "$now" -le "$disk" ] || disk=$now
    now=$(ps -o rss= -C nginx | awk '{ all += $1 } END { print all }')
    [ "$now" -le "$memory" ] || memory=$now
done
wait $curl
echo "$disk $memory"
"""


@pytest.mark.parametrize(
    "what",
    [
        "--upload-file /tmp/large https://s3.metalworks.internal/bucket/large",
        "--upload-file - --header Transfer-Encoding:chunked https://s3.metalworks.internal/bucket/large",
        "--user ada:ada-password --upload-file /tmp/large "
        "https://mlflow.metalworks.internal/api/2.0/mlflow-artifacts/artifacts/large",
        "--limit-rate 100M https://s3.metalworks.internal/send/314572800",
        "--limit-rate 100M --user ada:ada-password "
        "https://mlflow.metalworks.internal/api/2.0/mlflow-artifacts/artifacts/send/314572800",
    ],
)
def test_large_files_fill_neither_disk_nor_memory(host, what):
    host.check_output("truncate --size 300M /tmp/large")
    disk, memory = host.check_output("sh -c %s sh " + what, STREAM).split()
    assert int(disk) < 100_000
    assert int(memory) < 60_000
    if "send" in what:
        assert host.file("/tmp/answer").size == 314572800
    else:
        assert json.loads(host.file("/tmp/answer").content_string)["size"] == 314572800


def test_streamed_paths_can_have_a_size_limit(host):
    host.check_output("truncate --size 401M /tmp/large")
    path = "/api/2.0/mlflow-artifacts/artifacts/large"
    refused = ask(host, "mlflow", path, "--user", ADA, "--upload-file", "/tmp/large")
    assert (refused.status, json.loads(refused.text)["error_code"]) == (413, "INVALID_PARAMETER_VALUE")


def test_other_paths_have_a_size_limit(host):
    host.check_output("truncate --size 300M /tmp/large")
    for site, path in (
        ("mlflow", "/api/2.0/mlflow/runs/log-batch"),
        ("prefect", "/api/flows/"),
        ("inference", "/delay/predict"),
    ):
        assert ask(host, site, path, "--user", ADA, "--request", "POST", "--upload-file", "/tmp/large").status == 413


# -- What the gateway itself says
def test_refusals_have_the_form_that_clients_read(host):
    long, headers = "x" * 70_000, ("--user", ADA)
    for site, path, status, code in (
        ("mlflow", f"{RUN}?x={long}", 414, "INVALID_PARAMETER_VALUE"),
        ("mlflow", "/new", 403, "PERMISSION_DENIED"),
        ("inference", "/nothing", 404, "RESOURCE_DOES_NOT_EXIST"),
    ):
        answer = ask(host, site, path, *headers)
        said = json.loads(answer.text)
        assert (answer.status, said["error_code"]) == (status, code)
        assert said["message"] == said["detail"]
    assert ask(host, "mlflow", f"{RUN}?x={long[:60_000]}", *headers).status == 200
    page = ask(host, "mlflow", "/new", *headers, "--header", "Accept: text/html")
    assert (page.status, ("content-type", "text/html") in page.headers) == (403, True)
    refused = ask(host, "s3", "/bucket/key", "--request", "POST")
    assert (refused.status, "<Code>AccessDenied</Code>" in refused.text) == (403, True)


def test_pages_have_a_policy_and_other_responses_none(host):
    for site in ("mlflow", "prefect"):
        policies = [value for name, value in ask(host, site, "/nowhere", "--header", "Accept: text/html").headers
                    if name == "content-security-policy"]  # fmt: skip
        assert len(policies) == 1
        assert policies[0].startswith("default-src 'self'")
    assert "content-security-policy" not in dict(ask(host, "mlflow", RUN, "--user", ADA).headers)


# -- TLS
def test_unknown_host_names_get_no_response(host):
    for name in (f"other.{DOMAIN}", "example.org", "127.0.0.1", f"x.mlflow.{DOMAIN}"):
        result = host.run("curl --insecure --silent --include --connect-to ::127.0.0.1:443 https://%s/", name)
        assert (result.rc != 0, result.stdout) == (True, ""), name
    foreign = ask(host, "mlflow", "/x", "--header", "Host: example.org")
    # An empty response or, with a newer curl, an unexpected end of TLS.
    assert (foreign.status, foreign.code in (52, 56)) == (0, True)
    assert ask(host, "mlflow", "/x", "--header", f"Host: prefect.{DOMAIN}").status == 421
    assert host.run("curl --silent --max-time 3 http://127.0.0.1/").rc == 7, "port 80 is closed"


def test_only_current_tls_versions_are_accepted(host):
    base = "curl --silent --output /dev/null --cacert /etc/metalworks/tls/ca.crt --connect-to ::127.0.0.1:443"
    url = f"https://mlflow.{DOMAIN}/x"
    for options, works in (
        ("--tlsv1.3", True),
        ("--tlsv1.2 --tls-max 1.2", True),
        ("--tlsv1.0 --tls-max 1.1 --ciphers DEFAULT@SECLEVEL=0", False),
        ("--tls-max 1.2 --ciphers ECDHE-ECDSA-AES128-SHA", False),
        ("--tls-max 1.2 --ciphers AES128-GCM-SHA256", False),
    ):
        assert (host.run(f"{base} {options} {url}").rc == 0) == works, options


def upstream_names(host, count: int) -> list[str]:
    names = []
    for _ in range(count):
        answer = ask(host, "inference", "/delay/predict", "--data", "{}")
        names.append(json.loads(answer.text)["name"] if answer.status == 200 else str(answer.status))
    return names


def test_another_host_takes_over_when_one_is_down(host):
    assert set(upstream_names(host, 20)) == {"delay1", "delay2"}
    host.check_output("systemctl stop stand-in@delay1")
    try:
        assert set(upstream_names(host, 20)) == {"delay2"}
        assert ask(host, "", "/health/delay").status == 200
    finally:
        host.check_output("systemctl start stand-in@delay1")


def test_a_host_with_the_wrong_certificate_is_not_used(host):
    host.check_output("systemctl stop stand-in@delay1")
    try:
        host.check_output("cp /opt/stand-in/tls/delay2.crt /opt/stand-in/tls/delay2.crt.kept")
        host.check_output("cp /opt/stand-in/tls/delay2.key /opt/stand-in/tls/delay2.key.kept")
        for kind in ("crt", "key"):
            host.check_output(f"cp /opt/stand-in/tls/delay1.{kind} /opt/stand-in/tls/delay2.{kind}")
        host.check_output("systemctl restart stand-in@delay2")
        assert set(upstream_names(host, 4)) == {"502"}
        assert "certificate does not match" in host.check_output("tail -20 /var/log/nginx/error.log")
    finally:
        for kind in ("crt", "key"):
            host.check_output(f"mv /opt/stand-in/tls/delay2.{kind}.kept /opt/stand-in/tls/delay2.{kind}")
        host.check_output("systemctl restart stand-in@delay2 stand-in@delay1")


def test_a_service_that_is_down_gives_502(host):
    host.check_output("systemctl stop stand-in@mlflow")
    try:
        answer = ask(host, "mlflow", RUN, "--user", ADA)
        assert answer.status == 502
        assert json.loads(answer.text)["detail"].startswith("The service does not answer; ")
        assert ask(host, "", "/health/mlflow").status == 502
        assert ask(host, "prefect", "/api/health").status == 200
    finally:
        host.check_output("systemctl start stand-in@mlflow")


def test_only_machines_are_told_to_wait_for_a_service_that_is_down(host):
    machine = ("--user", "worker-gpu:worker-password")
    wait = ("prefect-maintenance", "true")
    assert wait not in ask(host, "prefect", VERSION, *machine).headers
    host.check_output("systemctl stop stand-in@prefect")
    try:
        down = ask(host, "prefect", VERSION, *machine)
        assert (down.status, wait in down.headers) == (502, True)
        for anybody in ((), ("--user", "worker-gpu:wrong")):
            assert wait not in ask(host, "prefect", VERSION, *anybody).headers
        assert wait not in ask(host, "prefect", "/api/health").headers
    finally:
        host.check_output("systemctl start stand-in@prefect")


# -- The status of parts without a health page
def test_the_status_needs_no_login(host):
    for part, status, line in (
        ("postgresql", 200, "Accepts connections"),
        ("pool-gpu", 200, "1 worker is online"),
        ("pool-cpu", 503, "No worker is online"),
    ):
        answer = ask(host, "", f"/health/{part}")
        assert (answer.status, answer.text.strip()) == (status, line)
        assert ("content-type", "text/plain; charset=utf-8") in answer.headers
    # Only listed paths exist.
    assert ask(host, "", "/health/postgresql/").status == 404
    told_nothing = "curl --silent --unix-socket /run/platform-status/http.sock http://localhost/postgresql"
    assert host.run("runuser -u nobody -- " + told_nothing).rc == 7


def test_stopped_services_are_shown_on_the_page(host):
    page = f"curl --silent --cacert /etc/metalworks/tls/ca.crt --connect-to ::127.0.0.1:443 https://{DOMAIN}/health"
    until = f"timeout 10 sh -c 'until {page}/$0 | grep --quiet \"$1\"; do sleep 0.1; done' %s %s"
    host.check_output("systemctl stop stand-in@database stand-in@prefect")
    try:
        for part in ("postgresql", "pool-gpu", "pool-cpu"):
            host.check_output(until, part, "Does not answer")
            assert ask(host, "", f"/health/{part}").status == 503
    finally:
        host.check_output("systemctl start stand-in@database stand-in@prefect")
    host.check_output(until, "postgresql", "Accepts connections")
    host.check_output("systemctl stop platform-status")
    try:
        stopped = ask(host, "", "/health/postgresql")
        assert (stopped.status, "text/plain" in stopped.text) == (502, False)
    finally:
        host.check_output("systemctl start platform-status")
    log = host.check_output("journalctl --unit platform-status --no-pager --output cat")
    assert "postgresql: Does not answer ConnectionRefusedError" in log


def test_the_status_is_confined(host):
    said = host.check_output("systemd-analyze security platform-status --no-pager | tail -1")
    assert float(re.search(r"platform-status.service: ([\d.]+)", said)[1]) <= 2.0
    pid = host.check_output("systemctl show platform-status --property MainPID --value")
    assert host.check_output(f"stat --format %U /proc/{pid}") == "platform-status"


def test_a_site_of_another_gateway_is_only_listed(host):
    assert told(ask(host, "", "/health/console")) == {"host": f"console.{DOMAIN}"}
    assert ask(host, "console", "/").status == 0
    assert f'href="https://console.{DOMAIN}/"' in ask(host, "", "/").text


# -- The start page
def test_start_page_loads_no_other_file(host):
    page = ask(host, "", "/")
    policy = dict(page.headers)["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for site in SITES:
        assert site["title"] in page.text
        assert f'data-health="/health/{site["name"]}"' in page.text
    assert not re.search(r"(?:src|@import|url\()", page.text.split("</head>")[1])
    assert ask(host, "", "/ca.crt").text.strip() == host.file("/etc/metalworks/tls/ca.crt").content_string.strip()


# -- The docs
def test_the_docs_are_read_by_everyone_with_a_login(host):
    for options in ((), ("--user", "vera:wrong")):
        assert ask(host, "docs", "/", *options).status == 401
    assert ask(host, "docs", "/", "--user", INFERENCE).status == 403
    for user in (ADA, VERA, WORKER):
        page = ask(host, "docs", "/", "--user", user)
        assert (page.status, "<title>Metalworks</title>" in page.text) == (200, True)
    headers = dict(page.headers)
    policies = [value for name, value in page.headers if name == "content-security-policy"]  # a browser obeys them all
    assert any("frame-ancestors 'none'" in policy for policy in policies), policies
    assert any(f"default-src 'self' https://*.{DOMAIN} " in policy for policy in policies), policies
    assert headers["cache-control"] == "no-cache"
    index = ask(host, "docs", "/search/search_index.json", "--user", VERA)
    assert "docs/install.html" in {page["location"] for page in json.loads(index.text)["docs"]}
    source = ask(host, "docs", "/group_vars/all/main.yml", "--user", VERA)
    assert dict(source.headers)["content-type"] == "text/plain; charset=utf-8"
    moved = ask(host, "docs", "/docs/decisions", "--user", VERA)
    assert (moved.status, dict(moved.headers)["location"]) == (301, "/docs/decisions/")
    assert ask(host, "docs", "/docs/decisions/", "--user", VERA).status == 200
    for path in ("/nothing/here.html", "/docs/"):
        missing = ask(host, "docs", path, "--user", VERA)
        assert (missing.status, "Page not found" in missing.text) == (404, True), path
    for method in ("POST", "PUT", "DELETE"):
        assert ask(host, "docs", "/", "--user", ADA, "--request", method).status == 403


def test_the_docs_are_one_release(host):
    folder = "/opt/metalworks/docs"
    (release,) = host.file(f"{folder}/releases").listdir()
    assert host.file(f"{folder}/current").linked_to == f"{folder}/releases/{release}"
    assert host.check_output(f"find {folder} -type f ! -perm 0644 -o -type d ! -perm 0755 -o ! -user root") == ""


# -- Files and logs
def test_no_secret_is_left_in_logs_or_files(host):
    ask(host, "s3", "/bucket/key?X-Amz-Signature=s3cr3t-signature", "--header", "Referer: https://a/?s3cr3t-signature")
    host.check_output("systemctl stop stand-in@s3")
    try:
        assert ask(host, "s3", "/bucket/key?X-Amz-Signature=s3cr3t-signature").status == 502
    finally:
        host.check_output("systemctl start stand-in@s3")
    assert '"path":"/bucket/key","status":502' in host.check_output("tail /var/log/nginx/access.log")
    ask(host, "s3", "/bucket/a%ff")
    for line in host.check_output("tail -50 /var/log/nginx/access.log").encode().splitlines():
        json.loads(line.decode("utf-8", errors="strict"))
    for secret in ("s3cr3t", "ada-password", "vera-password"):
        assert host.run(f"grep --recursive --quiet {secret} /var/log/nginx /etc/nginx /run/metalworks").rc == 1
        assert host.run(f"journalctl --unit nginx --no-pager | grep --quiet {secret}").rc == 1
    users = host.file("/etc/nginx/metalworks/users")
    assert (users.mode, users.user, users.group) == (0o640, "root", "www-data")
    for path in ("/var/log/nginx/access.log", "/var/log/nginx/error.log"):
        assert host.file(path).mode == 0o640


def test_logs_are_rotated(host):
    host.check_output("logrotate --force /etc/logrotate.d/nginx")
    ask(host, "mlflow", "/after-the-rotation")
    host.check_output("test -s /var/log/nginx/access.log.1")
    assert "after-the-rotation" in host.file("/var/log/nginx/access.log").content_string


def test_nginx_is_confined(host):
    said = host.check_output("systemd-analyze security nginx --no-pager | tail -1")
    assert float(re.search(r"nginx.service: ([\d.]+)", said)[1]) <= 2.0
    pid = host.check_output("systemctl show nginx --property MainPID --value")
    assert host.check_output(f"stat --format %U /proc/{pid}") == "www-data"


# -- The role
@drifts
def test_users_change_without_an_interruption(host, converged, play):
    old = host.file("/etc/nginx/metalworks/users").content_string
    users = [
        {"name": "vera", "role": "admin", "password": "vera-password"},
        {"name": "noor", "role": "viewer", "password": "n"},
    ]
    result = play("--diff", gateway_users=users)
    assert result.returncode == 0, result.stdout
    assert "vera-password" not in result.stdout + result.stderr
    assert ask(host, "prefect", VERSION, "--user", ADA).status == 401
    assert ask(host, "mlflow", DELETE, "--user", ADA, "--request", "POST").status == 401
    assert ask(host, "prefect", "/api/flows/", "--user", VERA, "--request", "POST").status == 200
    assert ask(host, "prefect", VERSION, "--user", "noor:n").status == 200
    kept = [line for line in old.splitlines() if line.startswith("vera:")]
    assert kept[0] in host.file("/etc/nginx/metalworks/users").content_string
    users[1]["password"] = "other"
    assert play(gateway_users=users).returncode == 0
    assert ask(host, "prefect", VERSION, "--user", "noor:n").status == 401
    assert ask(host, "prefect", VERSION, "--user", "noor:other").status == 200
    assert started(host) == converged


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"gateway_max_body_size": "much"}, 'client_max_body_size" directive invalid value'),
        (
            {"gateway_sites": [SITES[0] | {"routes": ""}]},
            "with login basic, routes must say who may call what",
        ),
        ({"gateway_sites": [SITES[0] | {"upstreams": ["nowhere.invalid:1"]}]}, "cannot resolve the upstream of a site"),
        ({"gateway_sites": [SITES[0] | {"upstreams": ["a b"]}]}, "mlflow: upstreams must be host:port"),
        ({"gateway_sites": [SITES[0], SITES[0]]}, "two sites are named mlflow"),
        ({"gateway_sites": [SITES[0] | {"name": "ML flow"}]}, "ML flow: name and host must be"),
        ({"gateway_sites": [SITES[0] | {"health": "health; deny all"}]}, "must be paths, not health; deny all"),
        ({"gateway_users": [USERS[0], USERS[0]]}, "two users are named ada"),
        ({"gateway_users": [USERS[0] | {"name": "a:b"}]}, "a name is letters, digits and . _ @ -"),
        ({"gateway_users": [USERS[0] | {"password": ""}]}, "ada has no password"),
        ({"gateway_certificate": "/etc/metalworks/tls/none.crt"}, "nginx needs /etc/metalworks/tls/none.crt"),
        ({"gateway_certificate": "/opt/stand-in/tls/delay1.crt"}, "key values mismatch"),
        ({"gateway_groups": []}, "Permission denied"),
    ],
)
def test_invalid_variables_are_refused_and_the_old_configuration_serves(host, converged, play, variables, message):
    before = host.check_output(
        "sha256sum /etc/nginx/nginx.conf /etc/nginx/metalworks/* /etc/systemd/system/nginx.service.d/*"
    )
    result = play(**variables)
    assert result.returncode != 0
    shown = " ".join((result.stdout + result.stderr).replace("\\", "").split())
    assert message in shown, result.stdout
    assert "ada-password" not in shown
    assert ask(host, "prefect", VERSION, "--user", ADA).status == 200
    assert started(host) == converged
    after = host.check_output(
        "sha256sum /etc/nginx/nginx.conf /etc/nginx/metalworks/* /etc/systemd/system/nginx.service.d/*"
    )
    assert after == before
    assert host.run("systemctl reload nginx").rc == 0


@drifts
def test_a_killed_play_is_finished_by_the_next(host, converged, play):
    conf, kept = "/etc/nginx/nginx.conf", "/root/nginx.conf"
    host.check_output(f"cp {conf} {kept}.old")
    assert play(gateway_max_body_size="1k").returncode == 0
    host.check_output(f"cp {conf} {kept}.new && cp {kept}.old {conf} && systemctl reload nginx")
    old = host.check_output(f"grep --only-matching 'return 200 \"[0-9a-f]*' {kept}.old | cut -d '\"' -f 2")
    loaded = "until curl --silent --unix-socket /run/nginx/state.sock http://localhost/ | grep --quiet %s; do :; done"
    host.check_output("timeout 20 sh -c %s", loaded % old)
    # The state after a play that was killed between writing and loading the configuration.
    host.check_output(f"cp {kept}.new {conf}")
    result = play(gateway_max_body_size="1k")
    assert result.returncode == 0, result.stdout
    assert ask(host, "prefect", "/api/flows/", "--user", ADA, "--data", "x" * 2000).status == 413
    assert started(host) == converged


@drifts
def test_a_new_certificate_is_served_without_an_interruption(host, converged, play):
    tls = "/etc/metalworks/tls"
    host.check_output(
        f"openssl x509 -req -in /opt/stand-in/tls/host.csr -CA {tls}/ca.crt -CAkey /opt/stand-in/tls/ca.key -days 9 "
        f"-extfile /opt/stand-in/tls/host.ext -out {tls}/host.crt"
    )
    result = play()
    assert result.returncode == 0, result.stdout
    served = host.check_output(
        f"openssl s_client -connect 127.0.0.1:443 -servername mlflow.{DOMAIN} </dev/null 2>/dev/null "
        "| openssl x509 -noout -serial"
    )
    assert served == host.check_output(f"openssl x509 -noout -serial -in {tls}/host.crt")
    assert started(host) == converged


@drifts
def test_tampering_and_a_stopped_service_are_repaired(host, converged, play):
    host.check_output("systemctl disable --now nginx")
    host.check_output("ln -s ../sites-available/default /etc/nginx/sites-enabled/default")
    host.check_output("chmod 0644 /etc/nginx/metalworks/users")
    host.check_output(
        "sed --in-place s/NoNewPrivileges=true/NoNewPrivileges=false/ "
        "/etc/systemd/system/nginx.service.d/metalworks.conf"
    )
    host.check_output("cd /opt/metalworks/docs && mkdir releases/.half.new && ln -sfn /nowhere current")
    result = play()
    assert result.returncode == 0, result.stdout
    assert ask(host, "docs", "/", "--user", VERA).status == 200
    assert len(host.file("/opt/metalworks/docs/releases").listdir()) == 1
    assert host.service("nginx").is_enabled
    assert not host.file("/etc/nginx/sites-enabled/default").exists
    assert host.file("/etc/nginx/metalworks/users").mode == 0o640
    assert host.check_output("systemctl show nginx --property NoNewPrivileges --value") == "yes"


def test_killed_nginx_comes_back(host):
    host.check_output("systemctl kill --kill-whom all --signal KILL nginx")
    answered = "until curl --silent --fail --cacert %s --connect-to ::127.0.0.1:443 https://%s/health; do :; done"
    host.check_output("timeout 20 sh -c %s", answered % ("/etc/metalworks/tls/ca.crt", DOMAIN))

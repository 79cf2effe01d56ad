"""Access control: strangers on the network, users of each role, and machines."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from clients import ADDRESSES, DOMAIN, STRANGER, as_person, ask, secrets
from conftest import Reach
from testinfra.host import Host

pytestmark = pytest.mark.usefixtures("authority")

OPEN = {"services-1": {22, 443}, "gpu-1": {22}, "cpu-1": {22}, "dev-1": {22}, "dev-2": {22}}
"""TCP ports that respond to the outside host."""
SCAN = """
import resource, select, socket, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
at_once = min(16384, most - 64)
found = []
for first in range(1, 65536, at_once):
    probes, poll = {}, select.poll()
    for port in range(first, min(first + at_once, 65536)):
        probe = socket.socket()
        probe.setblocking(False)
        probe.connect_ex((sys.argv[1], port))
        probes[probe.fileno()] = probe, port
        poll.register(probe, select.POLLOUT)
    # Dropped packets get no response; open ports respond at once.
    until, left = time.monotonic() + 1.5, 1.5
    while left > 0:
        left = until - time.monotonic()  # if other processes took all the time, look once nevertheless
        for number, _ in poll.poll(max(left, 0) * 1000):
            poll.unregister(number)
            if probes[number][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(probes[number][1])
    for probe, _ in probes.values():
        probe.close()
print(*found)
"""
STRANGERS = [
    ("mlflow", "/", 401),
    ("mlflow", "/api/2.0/mlflow/experiments/search?max_results=1", 401),
    ("mlflow", "/version", 401),
    ("mlflow", "/metrics", 403),
    ("mlflow", "/api/2.0/mlflow-artifacts/artifacts?path=/", 401),
    ("mlflow", "/health", 200),
    ("prefect", "/", 401),
    ("prefect", "/api/admin/settings", 401),
    ("prefect", "/api/flows/filter", 401),
    ("prefect", "/docs", 403),
    ("prefect", "/api/health", 200),
    ("s3", "/", 403),
    ("s3", "/training-data/", 403),
    ("s3", "/minio/v2/metrics/cluster", 404),
    ("console", "/api/v1/buckets", 403),
    ("inference", "/delay/version", 401),
    ("", "/status/night", 401),
    ("", "/status/metrics", 404),
    ("inference", "/delay/docs", 200),  # the page asks for the token itself
    ("inference", "/delay/openapi.json", 401),
    ("inference", "/delay/ping", 200),
    ("docs", "/", 401),
    ("docs", "/search/search_index.json", 401),
    ("", "/health/docs", 200),
    ("", "/", 200),
    ("", "/ca.crt", 200),
]


@pytest.fixture(scope="module")
def attacker(reach: Reach) -> Host:
    """A host on the network that is not part of the platform."""
    return reach(STRANGER)


@pytest.fixture(scope="module")
def scanned(attacker: Host) -> dict[str, set[int]]:
    """Return the open ports of each host, scanned on all hosts at once, because most of it is waiting."""

    def scan(name: str) -> set[int]:
        return {int(port) for port in attacker.check_output("python3 -c %s %s", SCAN, ADDRESSES[name]).split()}

    with ThreadPoolExecutor() as pool:
        return dict(zip(OPEN, pool.map(scan, OPEN), strict=True))


@pytest.mark.parametrize("name", OPEN)
def test_a_port_scan_finds_only_documented_ports(scanned: dict[str, set[int]], name: str) -> None:
    assert scanned[name] == OPEN[name]


@pytest.mark.parametrize(("site", "path", "status"), STRANGERS)
def test_strangers_get_health_and_the_start_page(site: str, path: str, status: int) -> None:
    assert ask(site, path)[0] == status


@pytest.mark.parametrize("login", ["ml1:wrong", "nobody:wrong", "metalworks-admin:metalworks-admin", ":", "ml1:"])
@pytest.mark.parametrize(("site", "path"), [("mlflow", "/version"), ("prefect", "/api/admin/version")])
def test_wrong_passwords_are_refused(site: str, path: str, login: str) -> None:
    assert ask(site, path, login=login)[0] == 401


def test_wrong_tokens_are_refused() -> None:
    password = secrets()["vault_user_passwords"]["ml1"]
    assert [ask("inference", "/delay/version", token=token)[0] for token in ("wrong", "", password)] == [401] * 3


def test_right_passwords_and_tokens_are_accepted() -> None:
    assert as_person("ml1", "mlflow", "/version")[0] == 200
    assert as_person("ml1", "prefect", "/api/admin/version")[0] == 200
    assert ask("inference", "/delay/version", token=secrets()["vault_inference_tokens"]["ml1"])[0] == 200


def test_requests_for_an_unknown_host_name_are_not_answered(attacker: Host) -> None:
    command = f"curl --silent --insecure --resolve other.example:443:{ADDRESSES['services-1']} https://other.example/"
    assert attacker.run(command).rc != 0


# -- MLflow's own host name and origin checks, behind the gateway


def searched(*headers: str) -> int:
    query = {"max_results": 1}
    return as_person("ml1", "mlflow", "/api/2.0/mlflow/experiments/search", query, headers)[0]


def test_mlflow_accepts_requests_from_its_own_pages_only() -> None:
    own = f"mlflow.{DOMAIN}"
    assert [searched(f"Host: {own}"), searched(f"Host: {own}:443"), searched(f"Origin: https://{own}")] == [200] * 3
    # A page of another site in a logged-in browser.
    assert searched("Origin: https://elsewhere.example") == 403
    # A foreign name that resolves to this host: the connection is closed without a response (curl's 52, later 56).
    with pytest.raises(subprocess.CalledProcessError, match=r"status (52|56)"):
        searched("Host: elsewhere.example")


@pytest.mark.parametrize(("host", "status"), [("localhost", 401), ("elsewhere.example", 403)])
def test_mlflow_itself_checks_the_host_name(reach: Reach, host: str, status: int) -> None:
    asked = "curl --silent --output /dev/null --write-out '%%{http_code}' --header %s "
    asked += "--unix-socket /run/mlflow/api.sock http://localhost/"
    # 401: the name is accepted, and a password is required.
    assert int(reach("services-1").check_output(asked, f"Host: {host}")) == status


# -- Users' roles


@pytest.fixture(scope="module")
def somebodys_run() -> str:
    """A run of the flights experiment, made by ml1."""
    status, found = as_person("ml1", "mlflow", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=flight-delay")
    assert status == 200, found
    experiment = found["experiment"]["experiment_id"]
    query = {"experiment_ids": [experiment], "max_results": 1, "filter": "tags.`mlflow.user` = 'ml1'"}
    status, found = as_person("guest", "mlflow", "/api/2.0/mlflow/runs/search", query)
    assert status == 200, found  # a viewer looks
    return str(found["runs"][0]["info"]["run_id"])


def test_a_viewer_can_read_but_not_change(somebodys_run: str) -> None:
    assert as_person("guest", "mlflow", f"/api/2.0/mlflow/runs/get?run_id={somebodys_run}")[0] == 200
    for path, body in (
        ("runs/delete", {"run_id": somebodys_run}),
        ("runs/set-tag", {"run_id": somebodys_run, "key": "seen", "value": "yes"}),
        ("experiments/create", {"name": "a viewer's"}),
        ("registered-models/create", {"name": "a viewer's"}),
    ):
        assert as_person("guest", "mlflow", f"/api/2.0/mlflow/{path}", body)[0] == 403, path
    assert as_person("guest", "prefect", "/api/flows/filter", {})[0] == 200
    assert as_person("guest", "prefect", "/api/flows/", {"name": "a viewer's"})[0] == 403


def test_everyone_with_a_login_reads_and_searches_the_docs() -> None:
    for person in ("guest", "ml1"):
        status, page = as_person(person, "docs", "/docs/install.html")
        assert (status, "Install Metalworks" in page) == (200, True)
        status, index = as_person(person, "docs", "/search/search_index.json")
        assert (status, "docs/install.html" in {page["location"] for page in index["docs"]}) == (200, True)
        status, missing = as_person(person, "docs", "/nothing/here.html")
        assert (status, "Page not found" in missing) == (404, True)
        assert as_person(person, "docs", "/", method="POST")[0] == 403


def test_everyone_with_a_login_sees_what_ran() -> None:
    status, told = as_person("guest", "", "/status/night")
    assert status == 200
    assert "retrain/retrain" in {each["name"] for each in told["runs"]["deployments"]}
    assert {pool["name"]: pool["workers"] > 0 for pool in told["pools"]} == {"gpu": True, "cpu": True}


def test_a_viewer_reads_what_mlflow_asks_for_by_post() -> None:
    traces = {"experiment_ids": ["0"], "view_type": "TRACES", "metric_name": "trace_count"}
    both = {"filter_string1": "trace.status = 'OK'", "filter_string2": "trace.status = 'ERROR'"}
    for path, body in (
        ("2.0/mlflow/registered-models/get-latest-versions", {"name": "flight-delay"}),
        ("3.0/mlflow/traces/metrics", traces | {"aggregations": [{"aggregation_type": "COUNT"}]}),
        ("3.0/mlflow/traces/calculate-filter-correlation", {"experiment_ids": ["0"]} | both),
        ("3.0/mlflow/datasets/search", {"experiment_ids": ["0"]}),
    ):
        for prefix in ("api", "ajax-api"):
            assert as_person("guest", "mlflow", f"/{prefix}/{path}", body)[0] == 200, path


def test_a_long_filter_fits_into_a_url() -> None:
    ids = ", ".join(f"'{number:032x}'" for number in range(400))
    path = f"/api/2.0/mlflow/model-versions/search?filter={quote(f'run_id IN ({ids})')}"
    assert as_person("ml1", "mlflow", path) == (200, {})
    status, said = as_person("ml1", "mlflow", f"/version?x={'x' * 70_000}")
    assert (status, said["error_code"]) == (414, "INVALID_PARAMETER_VALUE")


def test_text_that_the_database_cannot_store_is_refused_at_once(somebodys_run: str) -> None:
    body = {"run_id": somebodys_run, "key": "odd", "value": "a\0b"}
    status, said = as_person("ml1", "mlflow", "/api/2.0/mlflow/runs/set-tag", body)
    assert (status, said["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_a_developers_first_commit_has_an_author(reach: Reach) -> None:
    assert reach("dev-2").check_output("runuser --login ml2 --command 'git config user.email'") == f"ml2@{DOMAIN}"


def test_viewers_cannot_read_prefects_secrets_and_other_sites_cannot_use_its_api() -> None:
    secret = "/api/block_documents/filter"
    assert [as_person(who, "prefect", secret, {"include_secrets": True})[0] for who in ("guest", "ml1")] == [403, 200]
    elsewhere = ["Origin: https://elsewhere.example"]
    assert as_person("ml1", "prefect", "/api/flows/filter", {}, elsewhere)[0] == 403
    assert as_person("ml1", "prefect", "/api/flows/filter", {}, [f"Origin: https://prefect.{DOMAIN}"])[0] == 200


def test_a_developer_can_change_others_work_but_delete_only_their_own(somebodys_run: str) -> None:
    tag = {"run_id": somebodys_run, "key": "looked-at-by", "value": "ml2"}
    assert as_person("ml2", "mlflow", "/api/2.0/mlflow/runs/set-tag", tag)[0] == 200
    assert as_person("ml2", "mlflow", "/api/2.0/mlflow/runs/delete", {"run_id": somebodys_run})[0] == 403
    friend = {"username": "friend", "password": "let-me-in-as-well"}
    assert as_person("ml2", "mlflow", "/api/2.0/mlflow/users/create", friend)[0] == 403
    assert as_person("boss", "mlflow", "/api/2.0/mlflow/users/get?username=ml2")[0] == 200

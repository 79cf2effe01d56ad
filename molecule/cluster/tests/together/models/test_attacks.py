"""Attacks by a user with a login, or by a compromised program; each test's attack must fail."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
import yaml
from clients import ADDRESSES, as_person, run, secrets
from conftest import Reach

from scripts.common import ROOT, wait_until
from tests.unit.repository import load

pytestmark = pytest.mark.usefixtures("authority")

# -- Each identity, each route

routes = load("plugins/filter/routes.py")
USERS = {"guest": "viewer", "ml1": "developer", "boss": "admin", "worker-cpu": "developer", "inference": "inference"}
MAY = {
    "viewer": {"viewer"},
    "inference": {"viewer", "inference"},
    "developer": {"viewer", "inference", "developer"},
    "admin": {"viewer", "inference", "developer", "admin"},
}
"""Role → roles whose routes it may use."""
ABSENT = "00000000-0000-0000-0000-000000000000"
READS = re.compile(r"/(filter|count|search|paginate|history)$")
ASK = """
import base64, http.client, json, ssl, sys
from concurrent.futures import ThreadPoolExecutor
asked = json.load(sys.stdin)
context = ssl.create_default_context(cafile="/etc/metalworks/tls/ca.crt")
def some(questions):
    open_ones, found = {}, []
    for user, site, verb, path in questions:
        if site not in open_ones:
            open_ones[site] = http.client.HTTPSConnection(f"{site}.metalworks.internal", context=context, timeout=60)
        login = base64.b64encode(f"{user}:{asked['passwords'][user]}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        if verb == "WS":
            headers |= {"Connection": "Upgrade", "Upgrade": "websocket"}
        body = b"{}" if verb == "POST" else None
        open_ones[site].request("GET" if verb == "WS" else verb, path, body, headers)
        answer = open_ones[site].getresponse()
        text = answer.read().decode(errors="replace")[:200]
        found.append([user, site, verb, path, answer.status, text])
    return found
at_once = 8
with ThreadPoolExecutor(at_once) as pool:
    print(json.dumps(sum(pool.map(some, [asked["questions"][n::at_once] for n in range(at_once)]), [])))
"""
REFUSED = ("Your role may not do this", "This is not part of the platform")


def passwords() -> dict[str, str]:
    vault = secrets()
    return {user: (vault["vault_user_passwords"] | vault["vault_machine_passwords"])[user] for user in USERS}


def table() -> list[tuple[str, str, str, str, bool]]:
    """Return user, site, method, path and whether the gateway allows it, for all refusals and for allowed reads."""
    asked = []
    for site, folder in (("mlflow", "mlflow"), ("prefect", "prefect_server")):
        found = yaml.safe_load((ROOT / f"roles/{folder}/files/routes.yml").read_text())
        for role, verb, path, _ in routes.lines(found):
            filled = re.sub(r"\{\w+(:path)?\}", lambda one: "a/b" if one[1] else ABSENT, path)
            for user, is_a in USERS.items():
                may = role in MAY[is_a] and not (site == "prefect" and is_a == "inference")
                for one in ("GET", "POST", "DELETE") if verb == "*" else (verb,):
                    # Send requests that would change something only as users who must be refused.
                    if not may or one == "GET" or (one == "POST" and READS.search(path)):
                        asked.append((user, site, one, filled, may))
    return asked


def test_every_route_is_open_only_to_its_roles() -> None:
    asked = {one[:4]: one[4] for one in table()}
    answers = run("dev-1", "python3", ASK, {"passwords": passwords(), "questions": sorted(asked)})
    assert len(answers) == len(asked) > 1500
    wrong = [
        (*one, status, text)
        for *one, status, text in answers
        if (status == 403 and text_says(text)) == asked[tuple(one)] or status in (401, 429, 502, 504)
    ]
    assert not wrong


def text_says(text: str) -> bool:
    """Tell whether the gateway refuses the request, not the service behind it."""
    return any(refusal in text for refusal in REFUSED)


# -- Connections of programs on the services host, as if they were compromised

CONNECT = """
import json, socket, sys
found = []
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), 3).close()
        found.append([host, port])
    except OSError:
        pass
print(json.dumps(found))
"""
HERE = "127.0.0.1"
SERVICES = ADDRESSES["services-1"]
EVERYWHERE = [
    *((HERE, port) for port in (22, 443, 5000, 5432, 9000, 9001)),
    *((SERVICES, port) for port in (22, 443, 5432)),
    ("pypi.org", 443),
    *((ADDRESSES[name], port) for name, port in (("gpu-1", 22), ("gpu-1", 8000), ("dev-1", 22), ("customer-db", 5432))),
]
"""Places that a program might connect to: local ports, the internet, the site's hosts."""
KEYS = ("169.254.169.254", 80)
"""Address where clouds hand out a machine's keys."""
CONNECTS = {
    ("services-1", "mlflow"): {(SERVICES, 5432), (SERVICES, 443)},
    ("services-1", "prefect"): {(SERVICES, 5432)},
    ("services-1", "prefect-lost-runs"): {(SERVICES, 443)},
    ("services-1", "minio"): {(HERE, 9000)},
    ("services-1", "platform-status"): {(SERVICES, 5432)},
    ("services-1", "www-data"): {(SERVICES, 443), (HERE, 9000), (HERE, 9001), (ADDRESSES["gpu-1"], 8000)},
    ("services-1", "nobody"): {
        *((HERE, port) for port in (22, 443, 5432)),
        *((SERVICES, port) for port in (22, 443, 5432)),
        ("pypi.org", 443), (ADDRESSES["gpu-1"], 22), (ADDRESSES["gpu-1"], 8000), (ADDRESSES["dev-1"], 22),
        (ADDRESSES["customer-db"], 5432),
    },
    ("gpu-1", "inference"): set(),
    ("gpu-1", "inference-model"): set(),
    ("gpu-1", "model-follower"): {(SERVICES, 443), ("pypi.org", 443)},
}  # fmt: skip
"""Host and user → reachable places. `nobody` is not a program of the platform."""


@pytest.mark.parametrize(("name", "user"), CONNECTS)
def test_a_program_can_connect_only_to_what_it_needs(reach: Reach, name: str, user: str) -> None:
    host = reach(name)
    reached = host.check_output(
        f"setpriv --reuid {user} --regid {user if user != 'nobody' else 'nogroup'} --clear-groups python3 -c %s %s",
        CONNECT,
        json.dumps([*EVERYWHERE, KEYS] if user != "nobody" else EVERYWHERE),
    )
    assert {tuple(one) for one in yaml.safe_load(reached)} == CONNECTS[name, user]


def test_a_flow_cannot_reach_link_local_addresses(reach: Reach) -> None:
    rules = reach("cpu-1").check_output("nft list table inet metalworks")
    worker = reach("cpu-1").check_output("id --user prefect-worker")
    chain = re.search(rf"{worker} : jump (\w+)", rules)
    assert chain
    assert re.search(rf"chain {chain[1]} {{[^}}]*ip daddr != @link4 accept", rules)


def test_an_automations_webhook_cannot_reach_internal_addresses(reach: Reach) -> None:
    """Prefect would call any URL in a webhook block; MLflow's assistant could be reached this way."""
    reach("services-1").check_output("journalctl --rotate --quiet")
    types = as_person("ml1", "prefect", "/api/block_types/slug/webhook")
    if types[0] == 404:
        assert as_person("ml1", "prefect", "/api/block_types/install_system_block_types", {}, method="POST")[0] == 200
        types = as_person("ml1", "prefect", "/api/block_types/slug/webhook")
    assert types[0] == 200, types
    schemas = as_person(
        "ml1", "prefect", "/api/block_schemas/filter",
        {"block_schemas": {"block_type_id": {"any_": [types[1]["id"]]}}},
    )  # fmt: skip
    block = {
        "name": "attack", "block_type_id": types[1]["id"], "block_schema_id": schemas[1][0]["id"],
        "data": {"url": f"http://{HERE}:9000/minio/health/live", "method": "GET", "allow_private_urls": True},
    }  # fmt: skip
    status, made = as_person("ml1", "prefect", "/api/block_documents/", block)
    assert status == 201, made
    automation = {
        "name": "attack", "enabled": True,
        "trigger": {"type": "event", "posture": "Reactive", "expect": ["attack.begins"], "threshold": 1, "within": 0},
        "actions": [{"type": "call-webhook", "block_document_id": made["id"], "payload": "{}"}],
    }  # fmt: skip
    status, told = as_person("ml1", "prefect", "/api/automations/", automation)
    assert status == 201, told
    try:
        event = {
            "event": "attack.begins",
            "resource": {"prefect.resource.id": "attack"},
            "occurred": now(),
            "id": ABSENT,
        }
        assert as_person("ml1", "prefect", "/api/events", [event])[0] == 204  # type: ignore[arg-type]

        def actions() -> list[dict[str, Any]]:
            asked = {
                "filter": {
                    "event": {"prefix": ["prefect.automation.action"]},
                    "occurred": {"since": "2020-01-01T00:00:00Z"},
                }
            }
            found = as_person("ml1", "prefect", "/api/events/filter", asked)[1]["events"]
            return [one for one in found if told["id"] in str(one)]

        wait_until(
            lambda: any("failed" in one["event"] or "executed" in one["event"] for one in actions()), "no action", 60
        )
        assert not [one for one in actions() if "executed" in one["event"]], actions()
    finally:
        as_person("ml1", "prefect", f"/api/automations/{told['id']}", method="DELETE")
        as_person("ml1", "prefect", f"/api/block_documents/{made['id']}", method="DELETE")


def now() -> str:
    """Return the time in Prefect's format."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# -- MLflow


def test_no_tag_turns_another_users_model_into_a_prompt() -> None:
    name = {"name": "attack"}
    assert as_person("ml1", "mlflow", "/api/2.0/mlflow/registered-models/create", name)[0] == 200
    try:
        for form in ({}, {"extra": 1}):
            tag = {**name, "key": "mlflow.prompt.is_prompt", "value": "true", **form}
            for prefix in ("api", "ajax-api"):
                status, told = as_person("ml2", "mlflow", f"/{prefix}/2.0/mlflow/registered-models/set-tag", tag)
                assert (status, "setting this tag later would take it from its owner" in str(told)) == (400, True)
        other = {**name, "key": "colour", "value": "red"}
        assert as_person("ml2", "mlflow", "/api/2.0/mlflow/registered-models/set-tag", other)[0] == 200
    finally:
        assert as_person("ml1", "mlflow", "/api/2.0/mlflow/registered-models/delete", name, method="DELETE")[0] == 200


@pytest.mark.parametrize(
    "place", ["file:///var/lib/mlflow/x", "http://127.0.0.1:9000/", "s3://training-data/x", "/tmp/x"]
)
def test_an_experiments_files_are_in_the_object_store(place: str) -> None:
    asked = {"name": f"attack {place}", "artifact_location": place}
    status, told = as_person("ml1", "mlflow", "/api/2.0/mlflow/experiments/create", asked)
    assert (status, "leave artifact_location out" in str(told)) == (400, True)


# -- The hosts


def test_the_kernel_accepts_every_network_parameter(reach: Reach) -> None:
    """In a separate network namespace, because a lab host shares /proc/sys with the machine."""
    script = (
        "mount -o remount,bind,rw /proc/sys && grep ^net[.]ipv /etc/sysctl.d/60-metalworks.conf >/tmp/net.conf && "
        "sysctl --quiet --load /tmp/net.conf && sysctl --values net.ipv4.conf.all.accept_redirects "
        "net.ipv4.conf.default.rp_filter && rm /tmp/net.conf"
    )
    assert reach("cpu-1").check_output("unshare --net --mount sh -c %s", script).split() == ["0", "2"]


def test_units_have_memory_limits_and_the_database_is_killed_last(reach: Reach) -> None:
    services = reach("services-1")
    units = "mlflow prefect-server minio nginx platform-status prefect-lost-runs"
    limits = services.check_output(f"systemctl show {units} --property MemoryMax --value").split()
    assert len(limits) == 6
    assert "infinity" not in limits
    assert services.check_output("systemctl show postgresql@15-main --property OOMScoreAdjust --value") == "-900"

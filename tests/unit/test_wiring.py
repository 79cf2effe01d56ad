"""The wiring: plugins/filter/wiring.py, and the consistency of the platform's parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from tests.unit.repository import ROOT, load, read_yaml

wiring = load("plugins/filter/wiring.py")
FILES = sorted((ROOT / "group_vars/all/parts").glob("*.yml"))

GROUPS = {
    "platform": ["hub", "db", "worker-1", "worker-2"],
    "outside": ["customer"],
    "gateway": ["hub", "db"],
    "tracker": ["hub"],
    "postgresql": ["db"],
    "store": ["db"],
    "models": ["worker-1", "worker-2"],
    "empty": [],
}
HOSTVARS: dict[str, dict[str, str]] = {
    "hub": {"ansible_host": "10.0.0.1"},
    "db": {"ansible_host": "10.0.0.2"},
    "worker-1": {"ansible_host": "bastion-alias", "platform_address": "10.0.0.3"},
    "worker-2": {},
    "customer": {"ansible_host": "10.9.0.1"},
}
PARTS: dict[str, dict[str, Any]] = {
    "tracker": {
        "order": 1,
        "names": ["tracker"],
        "sites": [{"name": "tracker", "host": "tracker", "upstreams": ["unix:/run/tracker.sock"], "health": "/"}],
        "databases": [{"name": "runs", "owner": "runs"}],
        "buckets": [{"name": "artifacts"}],
        "keys": [{"names": ["tracker"], "buckets": ["artifacts"]}],
        "packages": ["git"],
        "programs": [{"user": "tracker", "calls": ["postgresql"], "may_reach": "hooks", "reaches": []}],
    },
    "store": {
        "order": 2,
        "names": ["s3"],
        "sites": [{"name": "s3", "host": "s3", "upstreams": ["127.0.0.1:9000"], "health": "/live"}],
        "buckets": [{"name": "data"}],
        "loopback": [
            {"port": 9000, "users": ["www-data", "minio"], "reason": "store"},
            {"port": 9009, "users": ["minio"], "reason": "its own"},
        ],
        "programs": [{"user": "minio", "ways": [{"port": 9000, "to": ["127.0.0.1"], "reason": "console"}]}],
    },
    "gateway": {
        "order": 3,
        "listens": [{"port": 443, "from": "anyone", "reason": "gateway"}],
        "endpoint": [{"port": 443, "to": "platform", "reason": "services"}],
        "programs": [{"user": "www-data", "calls": ["gateway"], "proxies": True}],
    },
    "postgresql": {
        "order": 4,
        "sites": [{"name": "postgresql", "host": "", "status": True, "title": "Database"}],
        "listens": [{"port": 5432, "from": "clients", "reason": "PostgreSQL"}],
        "endpoint": [{"port": 5432, "to": "host", "reason": "PostgreSQL"}],
    },
    "models": {
        "order": 5,
        "names": ["models"],
        "behind_gateway": True,
        "sites": [{"name": "delay", "host": "models", "upstreams": ["worker-1:8000"], "health": "/ping"}],
        "accounts": [{"names": ["models"], "role": "inference", "models": ["delay"]}],
        "endpoint": [{"port": 8000, "to": "platform", "reason": "models"}],
    },
    "empty": {"order": 6, "names": ["nowhere"], "sites": [{"name": "nowhere", "host": "nowhere"}], "packages": ["x"]},
    "backup": {"order": 7, "keys": [{"names": ["backup"], "buckets": "all", "access": "readonly"}]},
}


def without(part: str, field: str) -> dict[str, dict[str, Any]]:
    """Return the parts, with a field removed from one."""
    return PARTS | {part: {name: value for name, value in PARTS[part].items() if name != field}}


def reach(host: str, user: str, parts: dict[str, Any] = PARTS, **may_reach: list[str]) -> list[tuple[Any, Any]]:
    """Return port and target of each connection that a user of a host may make."""
    found = {one["user"]: one["reach"] for one in wiring.outbound(parts, GROUPS, host, HOSTVARS, may_reach)}
    return [(way["port"], way["to"]) for way in found[user]]


# -- Parts and hosts


def test_parts_are_named_after_their_group_and_sorted() -> None:
    found = wiring.parts([{"order": 20}, {"order": 3}], ["part_tracker", "part_store"])
    assert list(found) == ["store", "tracker"]


def test_entries_are_gathered_from_all_parts_or_those_of_a_host() -> None:
    assert [one["name"] for one in wiring.gathered(PARTS, "buckets")] == ["artifacts", "data"]
    assert wiring.gathered(PARTS, "packages", GROUPS, "hub") == ["git"]
    assert wiring.gathered(PARTS, "packages", GROUPS, "db") == []


def test_every_host_and_site_has_an_address() -> None:
    found = wiring.host_entries(PARTS, GROUPS, HOSTVARS, "ml.example")
    assert [(one["name"], one["address"]) for one in found] == [
        ("hub", "10.0.0.1"),
        ("db", "10.0.0.2"),
        ("worker-1", "10.0.0.3"),
        ("worker-2", "worker-2"),
        ("customer", "10.9.0.1"),
        ("ml.example", "10.0.0.1"),
        ("tracker.ml.example", "10.0.0.1"),
        ("s3.ml.example", "10.0.0.2"),
        ("models.ml.example", "10.0.0.1"),
    ]


def test_a_host_answers_for_its_own_parts_and_the_gateway_for_those_behind_it() -> None:
    assert wiring.names_here(PARTS, GROUPS, "hub") == ["tracker", "models"]
    assert wiring.names_here(PARTS, GROUPS, "db") == ["s3"]
    assert wiring.names_here(PARTS, GROUPS, "worker-1") == []


def test_an_entry_is_filled_in_for_each_item() -> None:
    entry = {"name": "model-{name}", "port": "{port}", "upstreams": ["gpu:{port}"], "retry": True}
    assert wiring.filled([{"name": "a"}, {"name": "b", "port": 9}], entry, port=8000) == [
        {"name": "model-a", "port": 8000, "upstreams": ["gpu:8000"], "retry": True},
        {"name": "model-b", "port": 9, "upstreams": ["gpu:9"], "retry": True},
    ]
    with pytest.raises(KeyError, match="port"):
        wiring.filled([{"name": "a"}], entry)


# -- Users, machines and their secrets


def test_each_gets_its_own_secret() -> None:
    pools = [{"name": "gpu", "user": "worker-gpu"}]
    assert wiring.with_secrets(pools, "user", password={"worker-gpu": "one", "worker-cpu": "two"}) == [
        {"name": "gpu", "user": "worker-gpu", "password": "one"}
    ]
    assert pools == [{"name": "gpu", "user": "worker-gpu"}]
    with pytest.raises(KeyError, match="ada"):
        wiring.with_secrets([{"name": "ada"}], password={})


PEOPLE = [{"name": role, "role": role, "password": f"{role}'s"} for role in ("admin", "developer", "viewer")]
MACHINES = [
    {"name": "worker", "role": "machine", "models": [], "password": "worker's"},
    {"name": "models", "role": "inference", "models": ["delay"], "password": "models'"},
]


def test_machines_are_those_of_the_parts() -> None:
    assert wiring.machines(PARTS) == [{"name": "models", "role": "inference", "models": ["delay"]}]


def test_developers_and_machines_can_write_to_mlflow_and_only_admins_administer_it() -> None:
    found = {one["name"]: one for one in wiring.mlflow_users(PEOPLE, MACHINES)}
    assert [name for name, one in found.items() if one["write"]] == ["developer", "worker"]
    assert [name for name, one in found.items() if one["admin"]] == ["admin"]
    assert {name: one["models"] for name, one in found.items() if one["models"]} == {"models": ["delay"]}
    assert all(one["password"] for one in found.values())


def test_the_gateway_gets_only_names_roles_and_passwords() -> None:
    assert wiring.gateway_users(PEOPLE[:1], MACHINES[1:]) == [
        {"name": "admin", "role": "admin", "password": "admin's"},
        {"name": "models", "role": "inference", "password": "models'"},
    ]


def test_a_key_gets_access_to_its_own_buckets() -> None:
    found = wiring.store_keys(PARTS, {"tracker": "one", "backup": "two"})
    tracker, backup = found
    assert tracker == {"name": "tracker", "access_key": "tracker", "secret_key": "one", "buckets": ["artifacts"]}
    assert backup["buckets"] == ["artifacts", "data"]
    assert backup["access"] == "readonly"


def test_a_host_serves_the_pools_of_its_hardware_groups() -> None:
    (pool,) = wiring.worker_pools(["gpu", "cpu"], ["cpu", "platform"], {"gpu": 1, "cpu": 2})
    assert (pool["name"], pool["limit"], pool["per_gpu"], pool["port"]) == ("cpu", 2, False, 4301)


# -- Sites


def sites(host: str, *status: str, parts: dict[str, Any] = PARTS) -> dict[str, dict[str, Any]]:
    gateway = {"domain": "ml.example", "port": 443}
    found = wiring.sites_here(parts, GROUPS, host, gateway, {"socket": "/run/status.sock", "names": status})
    return {site["name"]: site for site in found}


def test_the_start_page_shows_what_other_hosts_serve() -> None:
    found = sites("hub")
    assert list(found) == ["tracker", "s3", "delay"]
    assert "served" not in found["tracker"]
    assert "served" not in found["delay"]
    assert found["s3"]["served"] is False
    assert (found["s3"]["protocol"], found["s3"]["upstreams"]) == ("https", ["s3.ml.example:443"])
    assert PARTS["store"]["sites"][0]["upstreams"] == ["127.0.0.1:9000"]


def test_other_gateways_serve_only_their_own_sites() -> None:
    assert sites("db") == {"s3": PARTS["store"]["sites"][0]}


def test_status_is_shown_where_it_is_enabled() -> None:
    assert "postgresql" not in sites("hub")
    found = sites("hub", "postgresql")["postgresql"]
    assert (found["served"], found["says"], found["health"]) == (False, True, "/postgresql")
    assert found["upstreams"] == ["unix:/run/status.sock"]
    assert "status" not in found


# -- Firewall


def opened(host: str, parts: dict[str, Any] = PARTS) -> dict[int, Any]:
    return {one["port"]: one["from"] for one in wiring.open_ports(parts, GROUPS, host, HOSTVARS)}


def test_a_port_is_open_to_its_callers() -> None:
    assert opened("hub") == {443: "anyone"}
    assert opened("db") == {443: "anyone", 5432: ["10.0.0.1"]}
    assert opened("worker-1") == {}


def test_a_list_of_addresses_does_not_shut_out_the_platform() -> None:
    """The gateway can always reach inference hosts, and workers and dev hosts the gateway."""
    parts = PARTS | {
        "gateway": PARTS["gateway"] | {"listens": [{"port": 443, "from": ["10.9.0.0/16"], "reason": "site"}]}
    }
    found = wiring.open_ports(parts, GROUPS, "hub", HOSTVARS)
    assert [one["from"] for one in found if one["port"] == 443] == ["platform", ["10.9.0.0/16"]]


def test_a_database_used_only_on_its_own_host_stays_closed() -> None:
    parts = without("tracker", "databases") | {"store": PARTS["store"] | {"databases": [{"name": "own"}]}}
    assert opened("db", parts) == {443: "anyone"}


def test_a_database_without_clients_stays_closed() -> None:
    assert opened("db", without("tracker", "databases"))[5432] == []


def test_a_program_can_reach_only_what_it_calls() -> None:
    assert reach("hub", "tracker") == [(5432, ["10.0.0.2"])]
    assert reach("db", "minio") == [(9000, ["127.0.0.1"])]
    assert wiring.outbound(PARTS, GROUPS, "worker-1", HOSTVARS, {}) == []


def test_a_gateway_can_reach_what_it_serves() -> None:
    """Of loopback ports, only those with nginx among their users."""
    assert reach("hub", "www-data") == [(443, "platform"), (9000, ["127.0.0.1"]), (8000, "platform")]


def test_an_external_part_has_neither_programs_nor_ports() -> None:
    parts = PARTS | {"store": PARTS["store"] | {"elsewhere": True}}
    assert [one["user"] for one in wiring.outbound(parts, GROUPS, "db", HOSTVARS, {})] == ["www-data"]
    assert wiring.loopback_ports(parts, GROUPS, "db") == []
    assert [one["port"] for one in wiring.loopback_ports(PARTS, GROUPS, "db")] == [9000, 9009]


WATCHED = PARTS | {
    "store": PARTS["store"]
    | {"scrapes": [{"job": "store", "port": 9000, "path": f"/{what}"} for what in ("figures", "more")]},
    "postgresql": PARTS["postgresql"] | {"scrapes": [{"job": "postgresql", "port": 9187, "exporter": "postgresql"}]},
    "platform": {"order": 8, "programs": [{"user": "vmagent", "calls": ["gateway"], "collects": True}]},
}
WATCHING = GROUPS | {"monitoring": ["hub"]}


def test_the_agent_collects_what_its_host_offers() -> None:
    found = wiring.scrapes_here(WATCHED, WATCHING, "db")
    assert [one["job"] for one in found] == ["store", "store", "postgresql"]
    assert wiring.scrapes_here(WATCHED, WATCHING, "hub") == []
    elsewhere = WATCHED | {"store": WATCHED["store"] | {"elsewhere": True}}
    assert [one["job"] for one in wiring.scrapes_here(elsewhere, WATCHING, "db")] == ["postgresql"]


def test_only_the_agent_may_ask_exporters_and_what_it_collects_from() -> None:
    ports = {one["port"]: one["users"] for one in wiring.loopback_ports(WATCHED, WATCHING, "db")}
    assert ports == {9000: ["www-data", "minio", "vmagent"], 9009: ["minio"], 9187: ["vmagent"]}
    found = {one["user"]: one["reach"] for one in wiring.outbound(WATCHED, WATCHING, "db", HOSTVARS, {})}
    assert [(way["port"], way["to"]) for way in found["vmagent"]] == [
        (443, "platform"), (9000, ["127.0.0.1"]), (9187, ["127.0.0.1"]),
    ]  # fmt: skip


@pytest.mark.parametrize("groups", [GROUPS, GROUPS | {"monitoring": []}])
def test_where_nobody_watches_nothing_is_collected_or_opened(groups: dict[str, list[str]]) -> None:
    assert wiring.scrapes_here(WATCHED, groups, "db") == []
    assert wiring.loopback_ports(WATCHED, groups, "db") == wiring.loopback_ports(PARTS, GROUPS, "db")


def test_a_site_can_allow_more_connections() -> None:
    names = (53, ["0.0.0.0/0", "::/0"])
    assert reach("hub", "tracker", hooks=["hooks.example:443", "[fd00::1]:25", "internet:any"])[1:] == [
        names,
        ("443", ["hooks.example"]),
        ("25", ["fd00::1"]),
        ("any", "internet"),
    ]
    program = {"user": "flows", "may_reach": "flows", "reaches": ["anyone:any"]}
    assert [way["to"] for way in wiring.reach_of_site(program, {})][1:] == ["anyone"]
    assert wiring.reach_of_site(program, {"flows": []}) == []


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://pypi.example/simple", "pypi.example:443"),
        ("http://pypi.example/simple", "pypi.example:80"),
        ("http://user:secret@pypi.example:8081/", "pypi.example:8081"),
    ],
)
def test_a_url_is_parsed_to_host_and_port(url: str, place: str) -> None:
    assert wiring.place_of(url) == place


def test_indexes_are_known_to_all_and_their_logins_to_those_who_build() -> None:
    indexes = [
        {"url": "https://own.example/simple", "packages": ["acme-*"], "user": "ci", "password": "s3cret"},
        {"url": "http://open.example:8080/simple"},
    ]
    assert wiring.known_indexes(indexes) == [
        {"url": "https://own.example/simple", "packages": ["acme-*"]},
        {"url": "http://open.example:8080/simple", "packages": []},
    ]
    assert wiring.index_logins(indexes) == "machine own.example login ci password s3cret\n"
    assert wiring.index_logins([]) == ""


def test_an_external_service_is_reachable_inside_and_on_the_internet() -> None:
    found = wiring.ways_to_url("https://s3.example.org", "store")
    assert [(way["port"], way["to"]) for way in found] == [
        (443, ["s3.example.org"]),
        (443, "internet"),
        (53, ["0.0.0.0/0", "::/0"]),
    ]


# -- The platform's own parts


def own_parts() -> dict[str, dict[str, Any]]:
    """Return group → part as in the files, without computed values."""
    found = [(path.stem, read_yaml(path)) for path in FILES]
    return {stem: values[f"part_{stem}"] for stem, values in found if f"part_{stem}" in values}


def test_a_part_is_in_the_file_of_its_name() -> None:
    for path in FILES:
        named = [name for name in read_yaml(path) if name.startswith("part_")]
        assert named in ([], [f"part_{path.stem}"]), path


def test_no_variable_is_set_in_two_files() -> None:
    names = [name for path in (*FILES, ROOT / "group_vars/all/wiring.yml") for name in read_yaml(path)]
    assert sorted(names) == sorted(set(names))


def test_a_part_has_only_documented_fields() -> None:
    explained = {line.split()[0] for line in wiring.__doc__.splitlines() if line[:1].islower()}
    fields = {field for part in own_parts().values() for field in part}
    assert "order" in explained
    assert fields <= explained
    assert explained - fields == set(), "nothing has these any more"


def test_no_two_parts_have_the_same_position() -> None:
    orders = [part["order"] for part in own_parts().values()]
    assert len(set(orders)) == len(orders)


def test_a_part_has_a_group_in_the_inventory() -> None:
    """Backups are only prepared: no host creates them yet."""
    groups = read_yaml(ROOT / "inventory/example/groups.yml")
    assert set(own_parts()) - set(groups) == {"backup"}


NEW = {
    "part_package_index": {
        "order": 35,
        "names": ["packages"],
        "sites": [{"name": "packages", "host": "packages", "upstreams": ["127.0.0.1:5000"], "health": "/"}],
        "databases": [{"name": "package_index", "owner": "package_index", "password": "one"}],
        "buckets": [{"name": "wheels", "versioning": True}],
        "keys": [{"names": ["package_index"], "buckets": ["wheels"]}],
        "loopback": [{"port": 5000, "users": ["www-data", "package_index"], "reason": "package_index"}],
        "programs": [{"user": "package_index", "calls": ["postgresql", "object_store"]}],
    }
}
"""A part that the platform does not have, which uses every field."""
KEYS = dict.fromkeys(("mlflow", "inference", "worker-gpu", "worker-cpu", "backup", "package_index"), "a key")


PACKAGES: dict[str, Any] = {
    "package_indexes": [
        {"url": "https://own.example:8443/simple", "packages": ["acme-*"], "user": "ci", "password": "s3cret"}
    ],
    "python_builds_url": "https://builds.example/",
    "inference_services": [{"name": "delay", "model": "flight-delay"}],
}


@pytest.fixture
def values(tmp_path: Path) -> Any:
    """Return host → variables of a site with an additional part."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([])
    place = tmp_path / "inventory/ours"
    shutil.copytree(ROOT / "inventory/example", place, symlinks=True)
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    groups = {"package_index": {"hosts": {"cpu-1": {}}}, "gateway": {"children": {"cpu": {}}}}
    (place / "new.yml").write_text(json.dumps(groups))
    secrets = {"vault_object_store_secret_keys": KEYS, "vault_postgresql_mlflow_password": "two"}
    secrets |= {"vault_postgresql_mlflow_auth_password": "three", "vault_postgresql_prefect_password": "four"}
    (place / "group_vars/all/package_index.yml").write_text(json.dumps(NEW | secrets | PACKAGES))
    loader = DataLoader()
    loader.set_basedir(str(place))
    inventory = InventoryManager(loader=loader, sources=[str(place)])
    manager = VariableManager(loader=loader, inventory=inventory)
    HostVars(inventory, manager, loader)

    def value(host: str, name: str) -> Any:
        variables = manager.get_vars(host=inventory.get_host(host)) | {"hostvars": manager._hostvars}
        return Templar(loader=loader, variables=variables).template(trust_as_template(f"{{{{ {name} }}}}"))

    return value


def test_packages_come_from_where_the_site_says(values: Any) -> None:
    index = {"url": "https://own.example:8443/simple", "packages": ["acme-*"]}
    for host in ("gpu-1", "cpu-1", "services-1"):
        assert values(host, "base_package_indexes") == [index]
    login = "machine own.example login ci password s3cret\n"
    assert values("gpu-1", "inference_index_logins") == values("cpu-1", "prefect_worker_index_logins") == login
    ways = {one["user"]: one["reach"] for one in values("gpu-1", "firewall_outbound")}
    reached = [(str(way["port"]), way["to"]) for way in ways["model-follower"]]
    assert reached[-3:] == [("443", "internet"), ("8443", ["own.example"]), ("443", ["builds.example"])]
    for name in ("prefect_worker_environment", "workstation_environment"):
        assert values("cpu-1", name)["UV_PYTHON_DOWNLOADS"] == "automatic"
        assert values("cpu-1", name)["UV_PYTHON_INSTALL_MIRROR"] == "https://builds.example/"


def test_system_libraries_are_installed_where_models_and_flows_run(values: Any) -> None:
    assert values("cpu-1", "runtime_packages")
    for host in ("gpu-1", "cpu-1", "dev-1"):
        assert set(values(host, "base_packages")) >= set(values(host, "runtime_packages")), host
    assert "libgomp1" not in values("services-1", "base_packages")


def test_a_new_part_is_one_file(values: Any) -> None:
    """It reaches every host and role without changes to other files."""
    name = "packages.metalworks.internal"
    assert {"name": name, "address": "192.0.2.31"} in values("gpu-1", "base_hosts")
    assert name in values("cpu-1", "certificates_names")
    assert values("cpu-1", "gateway_sites") == NEW["part_package_index"]["sites"]
    (shown,) = [site for site in values("services-1", "gateway_sites") if site["name"] == "packages"]
    assert (shown["served"], shown["upstreams"]) == (False, [f"{name}:443"])
    assert "package_index" in [one["name"] for one in values("services-1", "postgresql_databases")]
    assert "192.0.2.31" in values("services-1", "postgresql_clients")
    (key,) = [one for one in values("services-1", "object_store_consumers") if one["name"] == "package_index"]
    assert key["buckets"] == ["wheels"]
    assert values("cpu-1", "firewall_local") == NEW["part_package_index"]["loopback"]
    ways = {one["user"]: one["reach"] for one in values("cpu-1", "firewall_outbound")}
    assert [(way["port"], way["to"]) for way in ways["package_index"]] == [
        (5432, ["192.0.2.11"]),
        (443, ["192.0.2.11"]),
    ]
    assert (5000, ["127.0.0.1"]) in [(way["port"], way["to"]) for way in ways["www-data"]]


def test_the_docs_are_at_the_host_with_the_start_page(values: Any) -> None:
    """In this inventory another host has a gateway too, which neither installs nor serves them."""
    name = "docs.metalworks.internal"
    assert {"name": name, "address": "192.0.2.11"} in values("gpu-1", "base_hosts")
    assert [name in values(host, "certificates_names") for host in ("services-1", "cpu-1")] == [True, False]
    (site,) = [site for site in values("services-1", "gateway_sites") if site["name"] == "docs"]
    assert site["root"] == values("services-1", "gateway_docs") + "/current"
    assert site.get("served", True)
    assert values("cpu-1", "gateway_docs") == ""
    assert "docs" not in [site["name"] for site in values("cpu-1", "gateway_sites")]


def test_a_missing_secret_stops_only_what_needs_it(values: Any) -> None:
    """Otherwise, validation would report every variable that is computed from parts."""
    assert values("services-1", "firewall_open")
    with pytest.raises(Exception, match="vault_postgresql_backup_password"):
        values("services-1", "postgresql_readers")


@pytest.mark.parametrize(
    ("database", "url"),
    [
        (
            {"host": "db", "port": 5432, "name": "raw", "user": "reader"},
            "postgresql://reader@db:5432/raw?sslmode=require",
        ),
        (
            {"host": "2001:db8::5", "port": 5433, "name": "raw data", "user": "reader@corp", "sslmode": "verify-full"},
            "postgresql://reader%40corp@[2001:db8::5]:5433/raw%20data?sslmode=verify-full",
        ),
    ],
)
def test_database_url(database: dict[str, Any], url: str) -> None:
    assert wiring.database_url(database) == url

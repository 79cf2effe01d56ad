"""What a site may set: each wrong value gives one line, and what follows from it is not told beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError

from tests.unit.repository import ROOT, load, read_yaml

choices = load("plugins/plugin_utils/site_choices.py")
SCHEMA = read_yaml(ROOT / "roles/validate/files/choices.yml")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0pBvqT4dB8XnqLrGkYvC4m9X2bV1c0n5t7u8w9y0zA"
SHOWN = f'"{KEY[:57]}…"'
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n"

NAME = "Use 3 to 32 lower-case letters a-z, digits and . _ -, beginning with a letter"
ROLE = "Use admin, developer or viewer"
PEOPLE = 'Use a list of people, each `- {name: dev-a, role: developer, ssh_public_keys: ["ssh-ed25519 …"]}`'
KEYS = 'Use a list of public keys, such as ["ssh-ed25519 …"]'
KEY_FILE = "Use the content of a file such as id_ed25519.pub, on one line"
KEY_REPLACE = (
    "Put the public key here, the content of the file that ends with .pub. Have its owner replace the key pair: this "
    "private key was written down, so others may have read it"
)
DOMAIN = (
    "Use a domain with at least one dot, such as ml.example.org, in lower-case letters, digits, dots and inner hyphens"
)
PORT = "Use a whole number from 1 to 65535"


def told(variable: str, value: Any) -> list[str]:
    """Return what is said about a value, a line for each fault."""
    return [f"{one.variable}{one.place}: {one.what}. {one.cure}" for one in choices.faults({variable: value}, SCHEMA)]


@pytest.mark.parametrize(
    ("name", "place", "what"),
    [
        ("Ada", " (Ada)", '"Ada" is not a login name'),
        ("ada lovelace", " (ada lovelace)", '"ada lovelace" is not a login name'),
        ("jo", " (jo)", '"jo" is too short for a key of the object store'),
        ("müller", " (müller)", '"müller" is not a login name'),
        ("ada@example.org", " (ada@example.org)", '"ada@example.org" is an e-mail address, not a login name'),
        ("ada\n", "", '"ada\\n" is not a login name'),
        ("-ada", " (-ada)", '"-ada" is not a login name'),
        ("a" * 33, f" ({'a' * 33})", f'"{"a" * 33}" is not a login name'),
        (42, "", "42 is a number, not a login name"),
        (True, "", "is true, not a login name"),
        (None, "", "has no value"),
        ([], "", "is a list, not a login name"),
    ],
)
def test_name_of_a_person(name: Any, place: str, what: str) -> None:
    said = told("platform_users", [{"name": name, "role": "developer"}])
    assert said == [f"platform_users, entry 1{place}, name: {what}. {NAME}"]


@pytest.mark.parametrize("name", ["ada", "ml1", "dev-a", "ada.lovelace", "ada_l", "a" * 32])
def test_names_that_fit(name: str) -> None:
    assert told("platform_users", [{"name": name, "role": "viewer"}]) == []


ADA = {"name": "ada", "role": "developer"}
HERE = "platform_users, entry 1 (ada)"


@pytest.mark.parametrize(
    ("users", "line"),
    [
        ({"ada": {"role": "developer"}}, f"platform_users: is a mapping, not a list. {PEOPLE}"),
        ("ada", f'platform_users: "ada" is text, not a list. {PEOPLE}'),
        (None, f"platform_users: has no value. {PEOPLE}"),
        (["ada"], 'platform_users, entry 1: "ada" is text, not a person. Use `{name: dev-a, role: developer}`'),
        ([{"name": "ada"}], f"{HERE}: has no role. Set `role`: admin, developer or viewer"),
        ([{"role": "admin"}], f"platform_users, entry 1: has no name. Set `name`: {NAME.removeprefix('Use ')}"),
        ([{"name": "ada", "roel": "admin"}], f"{HERE}: has an unknown field, roel. Did you mean `role`?"),
        (
            [ADA | {"mail": "x"}],
            f"{HERE}: has an unknown field, mail. The fields are: name, role, ssh_public_keys, uid",
        ),
        ([ADA | {"role": "boss"}], f'{HERE}, role: "boss" is not a role. {ROLE}'),
        ([ADA | {"role": "developper"}], f'{HERE}, role: "developper" is not a role. Did you mean `developer`?'),
        ([ADA | {"role": 1}], f"{HERE}, role: 1 is a number, not a role. {ROLE}"),
        (
            [ADA, {"name": "eve", "role": "root"}],
            f'platform_users, entry 2 (eve), role: "root" is not a role. {ROLE}',
        ),
    ],
)
def test_people(users: Any, line: str) -> None:
    assert told("platform_users", users) == [line]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (KEY, f": {SHOWN} is text, not a list. Write a list: [{SHOWN}]"),
        ("ssh-ed25519 AAAA…", f': "ssh-ed25519 AAAA…" is text, not a list. {KEYS}'),
        ("~/.ssh/id_ed25519.pub", f': "~/.ssh/id_ed25519.pub" is text, not a list. {KEYS}'),
        (
            ["/home/ada/.ssh/id_ed25519.pub"],
            ', entry 1: "/home/ada/.ssh/id_ed25519.pub" is a file\'s path, not a public SSH key. '
            "Write the file's content, or \"{{ lookup('ansible.builtin.file', '/path/id_ed25519.pub') }}\"",
        ),
        (
            ["ssh-ed25519 AAAA…"],
            ', entry 1: "ssh-ed25519 AAAA…" is an example\'s placeholder. '
            "Use the content of the person's own .pub file, on one line",
        ),
        ([PRIVATE], f", entry 1: is a private key. {KEY_REPLACE}"),
        (PRIVATE, f": is a private key. {KEY_REPLACE}"),
        ([KEY, "none"], f', entry 2: "none" is not a public SSH key. {KEY_FILE}'),
        (
            [KEY[:60]],
            f", entry 1: {choices.show(KEY[:60])} is not a public SSH key, or a part of it is missing. {KEY_FILE}",
        ),
        ([5], f", entry 1: 5 is a number, not a public SSH key. {KEY_FILE}"),
    ],
)
def test_keys_of_a_person(keys: Any, line: str) -> None:
    said = told("platform_users", [ADA | {"ssh_public_keys": keys}])
    assert "c2VjcmV0" not in str(said)
    assert said == [f"{HERE}, ssh_public_keys{line}"]


@pytest.mark.parametrize("key", [KEY, f"{KEY} ada@laptop\n", f'from="10.0.0.0/8",no-pty {KEY} ada'])
def test_keys_that_fit(key: str) -> None:
    assert told("platform_users", [ADA | {"ssh_public_keys": [key]}]) == []


@pytest.mark.parametrize(
    ("domain", "what", "cure"),
    [
        ("ml.example.org.", '"ml.example.org." is not a domain', "Write ml.example.org"),
        ("https://ml.example.org/", '"https://ml.example.org/" is not a domain', "Write ml.example.org"),
        ("ML.Example.org", '"ML.Example.org" is not a domain', "Write ml.example.org"),
        ("our_ml.example.org", '"our_ml.example.org" is not a domain', "Write our-ml.example.org"),
        ("ml.example.org:8443", '"ml.example.org:8443" is not a domain', "Write ml.example.org"),
        ("ml.example.org ", '"ml.example.org " is not a domain', "Write ml.example.org"),
        ("metalworks", '"metalworks" is not a domain', DOMAIN),
        ("our ml.example.org", '"our ml.example.org" is not a domain', DOMAIN),
        ("192.0.2.1", '"192.0.2.1" is not a domain', DOMAIN),
        ("-ml.example.org", '"-ml.example.org" is not a domain', DOMAIN),
        ("", '"" is not a domain', DOMAIN),
        (None, "has no value", DOMAIN),
        (5, "5 is a number, not a domain", DOMAIN),
        (["ml.example.org"], "is a list, not a domain", DOMAIN),
    ],
)
def test_domain(domain: Any, what: str, cure: str) -> None:
    assert told("platform_domain", domain) == [f"platform_domain: {what}. {cure}"]


@pytest.mark.parametrize("domain", ["metalworks.internal", "ml.example.org", "ml-2.example.org", "xn--mller-kva.de"])
def test_domains_that_fit(domain: str) -> None:
    assert told("platform_domain", domain) == []


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("object_store_port", 70000, f"object_store_port: 70000 is not a port. {PORT}"),
        ("object_store_port", 0, f"object_store_port: 0 is not a port. {PORT}"),
        ("object_store_port", "5000", 'object_store_port: "5000" is text, not a port. Write it without quotes: 5000'),
        ("object_store_port", "70000", f'object_store_port: "70000" is text, not a port. {PORT}'),
        ("object_store_port", "http", f'object_store_port: "http" is text, not a port. {PORT}'),
        ("object_store_port", 9000.0, f"object_store_port: 9000.0 is a number, not a port. {PORT}"),
        (
            "extra_ca_certificates",
            "/etc/ssl/ca.pem",
            'extra_ca_certificates: "/etc/ssl/ca.pem" is text, not a list. Write a list: ["/etc/ssl/ca.pem"]',
        ),
        (
            "extra_ca_certificates",
            ["ca.pem"],
            'extra_ca_certificates, entry 1: "ca.pem" is not an absolute path. '
            "Use an absolute path on the controller",
        ),
        (
            "own_certificates",
            {"s1": "/c"},
            'own_certificates, s1: "/c" is text, not a mapping. '
            "Use {certificate: /path/chain.pem, key: /path/key.pem, ca: /path/ca.pem}",
        ),
        (
            "own_certificates",
            {"s1": {"cert": "/c"}},
            "own_certificates, s1: has an unknown field, cert. The fields are: ca, certificate, key",
        ),
        ("ssh_from", "10.0.0.0/8", 'ssh_from: "10.0.0.0/8" is text, not a list. Write a list: ["10.0.0.0/8"]'),
        (
            "gateway_from",
            ["10.0.0.0/33"],
            'gateway_from, entry 1: "10.0.0.0/33" is not a network or an address. '
            "Use a network such as 10.0.0.0/8, or an address",
        ),
        (
            "may_reach",
            {"models": ["hooks.example.org"]},
            'may_reach, models, entry 1: "hooks.example.org" is not a destination. Use host:port. '
            "A host is a name, an address, a network, `internet` or `anyone`; a port may be `any`",
        ),
        (
            "may_reach",
            {"flow": []},
            "may_reach: has an unknown field, flow. Did you mean `flows`?",
        ),
        (
            "raw_database",
            {"host": "db", "port": 5432, "name": "a", "user": "b", "password": "s3cret"},
            "raw_database: has an unknown field, password. The fields are: host, name, port, sslmode, user",
        ),
        (
            "raw_database",
            {"host": "db", "port": 5432, "name": "a"},
            "raw_database: has no user. Set `user`: text that is not empty",
        ),
        (
            "raw_database",
            {"host": "", "sslmode": "on"},
            'raw_database, sslmode: "on" is not a mode of libpq. '
            "Use disable, allow, prefer, require, verify-ca or verify-full",
        ),
        (
            "git_known_hosts",
            ["git.example.org"],
            'git_known_hosts, entry 1: "git.example.org" is not a line of known_hosts. '
            "Use a line that `ssh-keyscan HOST` prints",
        ),
        (
            "package_indexes",
            [{"url": "https://ci:s3cret@own.example.org/simple"}],
            'package_indexes, entry 1, url: "https://ci:…@own.example.org/simple" is not a URL without a login. '
            "Use a URL such as https://packages.example.org/simple, without user and password",
        ),
        (
            "package_indexes",
            [{"url": "https://own.example.org/simple", "user": "ci"}],
            "package_indexes, entry 1: has no password. Set `password`",
        ),
        (
            "runtime_packages",
            ["libgomp.so.1", "lib gomp"],
            'runtime_packages, entry 2: "lib gomp" is not a package. Use the name of a package of Debian or Ubuntu',
        ),
        ("git_identity", {"name": "Bot"}, "git_identity: has no email. Set `email`: an e-mail address"),
        (
            "git_remotes",
            [{"url": "https://git/", "user": "x", "token": 20261128}],
            "git_remotes, entry 1, token: is a number, not text. Write it in quotes",
        ),
        (
            "pip_index_url",
            "ftp://me:s3cret@pypi.example.org/",
            'pip_index_url: "ftp://me:…@pypi.example.org/" is not a URL. '
            "Use a URL that begins with https:// or http://, or \"\" for none",
        ),
        ("backup_target", {"path": "mnt"}, 'backup_target, path: "mnt" is not an absolute path. '
         "Use an absolute path on the hosts"),
        (
            "backup_target",
            {"path": "/mnt", "bucket": "b"},
            "backup_target: is not a target of backups. Use `{path: /mnt/backup}` or `{endpoint: "
            "https://s3.example.org, bucket: backups, access_key: metalworks}`, or {} for none",
        ),
        ("backup_keep_sets", 0, "backup_keep_sets: 0 is not a number. Use a whole number, 1 or more"),
        ("backup_schedule", 130, 'backup_schedule: 130 is a number, not a time. Write it in quotes: "130"'),
        ("metrics_days", 0, "metrics_days: 0 is not a number of days. Use a whole number from 1 to 3650"),
        (
            "alert_email_to",
            ["ops"],
            'alert_email_to, entry 1: "ops" is not an address. Use an address such as ops@example.org',
        ),
        (
            "alert_smtp",
            "mail.example.org",
            'alert_smtp: "mail.example.org" is not a mail server. '
            'Use host:port, such as mail.example.org:587, or "" for none',
        ),
        ("minio_source", "gopher", 'minio_source: "gopher" is not a source. Use go, url or file'),
        (
            "nvidia_require_device",
            "no",
            'nvidia_require_device: "no" is text, not true or false. Write it without quotes: false',
        ),
        ("nvidia_source", "nvida", 'nvidia_source: "nvida" is not a source. Did you mean `nvidia`?'),
        ("server_runtime", "dockr", 'server_runtime: "dockr" is not a runtime. Did you mean `docker`?'),
        (
            "server_image",
            "base:1",
            'server_image: "base:1" is not an image. '
            'Use registry/name with a tag or digest, such as registry.example.org/base:1, or "" for none',
        ),
        (
            "server_image",
            "registry.example.org/base",
            'server_image: "registry.example.org/base" is not an image. '
            'Use registry/name with a tag or digest, such as registry.example.org/base:1, or "" for none',
        ),
        (
            "nvidia_gpus_expected",
            -1,
            "nvidia_gpus_expected: -1 is not a number of devices. Use a whole number from 0 to 64",
        ),
        (
            "nvidia_pcie_lanes_expected",
            12,
            "nvidia_pcie_lanes_expected: 12 is a number, not a width of PCIe slots. Use 0, 1, 2, 4, 8 or 16",
        ),
        (
            "nvidia_inference_services",
            ["Delay"],
            'nvidia_inference_services, entry 1: "Delay" is not a service\'s name. '
            "Use lower-case letters, digits and hyphens",
        ),
        (
            "prediction_log_days",
            "90 days",
            'prediction_log_days: "90 days" is text, not a number of days. '
            "Use a whole number of days; 0 means for ever",
        ),
        ("prediction_log_days", -1, "prediction_log_days: -1 is not a number of days. "
         "Use a whole number of days; 0 means for ever"),
        ("journal_max_size", "1 GB", 'journal_max_size: "1 GB" is not a size. '
         "Use a whole number with K, M, G or T, such as 500M or 1G"),
        ("docker_published_ports", [{"port": 8080, "from": "world", "reason": "a tool"}],
         'docker_published_ports, entry 1, from: "world" is not who may connect. '
         "Use anyone, platform or a list of networks"),
        ("docker_published_ports", [{"port": 8080, "from": ["10.0.0.0/33"], "reason": "a tool"}],
         'docker_published_ports, entry 1, from, entry 1: "10.0.0.0/33" is not a network or an address. '
         "Use a network such as 10.0.0.0/8, or an address"),
        ("docker_address_pools", [{"base": "172.29.0.0/16"}],
         "docker_address_pools, entry 1: has no size. "
         "Set `size`: the length of the prefix of each container network, such as 24"),
        ("docker_data_root", "srv/docker", 'docker_data_root: "srv/docker" is not an absolute path. '
         'Use an absolute path, or "" for none'),
        ("disk_full_warning_days", 0, "disk_full_warning_days: 0 is not a number of days. "
         "Use a whole number from 1 to 60"),
        ("worker_limits", {"gpu": 0}, "worker_limits, gpu: 0 is not a number of flow runs. "
         "Use a whole number, 1 or more"),
        (
            "work_queues",
            {"urgent": "1"},
            'work_queues, urgent: "1" is text, not a priority. Write it without quotes: 1',
        ),
        ("work_queues", ["urgent"], "work_queues: is a list, not a mapping. "
         "Use a mapping from queues to priorities, such as {urgent: 1, default: 2}"),
        (
            "validate_minimums",
            {"gpu": {"memory_mb": "4G"}},
            'validate_minimums, gpu.memory_mb: "4G" is text, not a size in MB. Use a whole number of MB',
        ),
        ("vault_git_token", 12345678, "vault_git_token: is a number, not text. Write it in quotes"),
        ("vault_user_passwords", {"ada": 5}, "vault_user_passwords, ada: is a number, not text. Write it in quotes"),
        (
            "vault_user_passwords",
            "s3cret",
            "vault_user_passwords: is text, not a mapping. Use a mapping from names to secrets",
        ),
    ],
)  # fmt: skip
def test_choices(variable: str, value: Any, line: str) -> None:
    assert told(variable, value) == [line]


SERVICE = {"name": "delay", "model": "flight-delay"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"name": "Delay"},
            '(Delay), name: "Delay" is not a service\'s name. '
            "Use lower-case letters, digits and hyphens; the unit is inference-<name>.service",
        ),
        ({"model": ""}, '(delay), model: "" is not a model\'s name. Use the name of a registered model in MLflow'),
        ({"worker": 2}, "(delay): has an unknown field, worker. Did you mean `workers`?"),
        ({"port": "8000"}, '(delay), port: "8000" is text, not a port. Write it without quotes: 8000'),
        ({"workers": 0}, "(delay), workers: 0 is not a number of processes. Use a whole number from 1 to 256"),
        ({"workers": True}, "(delay), workers: is true, not a number of processes. Use a whole number from 1 to 256"),
        ({"log_share": "10%"}, '(delay), log_share: "10%" is text, not a share. Use a number from 0 to 1'),
        ({"log_share": 10}, "(delay), log_share: 10 is not a share. Use a number from 0 to 1"),
        (
            {"request_timeout": 0},
            "(delay), request_timeout: 0 is not a time in seconds. Use a number of seconds from 0.001 to 86400",
        ),
        ({"max_depth": 5000}, "(delay), max_depth: 5000 is not a limit. Use a whole number from 1 to 500"),
        (
            {"memory_max": "4 GB"},
            '(delay), memory_max: "4 GB" is not a value of systemd\'s MemoryMax. '
            'Use a size such as 4G, a share such as 40%, infinity, or "" for the default',
        ),
        ({"canary": 10}, "(delay), canary: 10 is a number, not a mapping. Use a mapping such as {percent: 10}"),
        (
            {"canary": {"percent": 0}},
            "(delay), canary.percent: 0 is not a percentage. Use a number from 0.001 to 99.9",
        ),
        ({"canary": {"percents": 1}}, "(delay), canary: has an unknown field, percents. Did you mean `percent`?"),
        ({"environment": {"TOKEN": ["s3cret"]}}, "(delay), environment.TOKEN: is a list, not text. Use text"),
    ],
)
def test_options_of_a_service(options: dict[str, Any], line: str) -> None:
    assert told("inference_services", [SERVICE | options]) == [f"inference_services, entry 1 {line}"]


def test_choices_that_fit() -> None:
    """Those of the product, and a service with every option."""
    product = choices.product_defaults(ROOT, lambda path: read_yaml(Path(path)))
    fixed = {name: value for name, value in product.items() if "{{" not in str(value)}
    known = {name: value for name, value in fixed.items() if choices.is_choice(name, SCHEMA)}
    assert len(known) > 30
    assert choices.faults(known, SCHEMA) == []
    canary = {"alias": "next", "percent": 0.5, "min_requests": 1, "min_seconds": 0, "max_error_rate_increase": 0,
              "max_latency_ratio": 2}  # fmt: skip
    numbers = {"port": 8001, "workers": 2, "log_share": 0.1, "max_queue": 9, "request_timeout": 0.5, "keep_previous": 0}
    numbers |= {"max_rows": 10, "max_columns": 5, "max_cells": 50, "max_depth": 8}
    full = {**SERVICE, "alias": "best", "shadow": "challenger", "canary": canary, "memory_max": "4G", **numbers}
    empty = {**SERVICE, "shadow": "", "canary": {}, "memory_max": "", "environment": {}}
    assert told("inference_services", [full, empty]) == []


def test_every_choice_has_a_schema() -> None:
    written = read_yaml(ROOT / "group_vars/all/main.yml")
    assert [name for name in written if name not in SCHEMA["properties"]] == []


def test_options_of_a_service_are_those_of_its_role() -> None:
    spec = read_yaml(ROOT / "roles/inference/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    options = spec["inference_services"]["options"]
    here = SCHEMA["properties"]["inference_services"]["items"]["properties"]
    assert set(here) == set(options)
    assert set(here["canary"]["properties"]) == set(options["canary"]["options"])


# -- What is used in place of a refused value

DEFAULTS = {"platform_domain": "metalworks.internal", "platform_users": [], "git_remotes": []}


def judge(variables: dict[str, Any], broken: str = "") -> Any:
    def compute(name: str) -> Any:
        if name == broken:
            raise AnsibleError("'vault_x' is undefined.")
        return variables[name]

    return choices.judge(variables, SCHEMA, compute, lambda: DEFAULTS)


def test_only_the_wrong_entry_is_left_out() -> None:
    judged = judge({"platform_users": [ADA, {"name": "Eve", "role": "admin"}], "unheard_of": 5})
    assert judged.repaired == {"platform_users": [ADA]}


def test_a_default_stands_for_anything_else() -> None:
    judged = judge({"platform_users": {"ada": "developer"}, "platform_domain": "ML"})
    assert judged.repaired == {"platform_users": [], "platform_domain": "metalworks.internal"}
    assert len(judged.faults) == 2


def test_a_good_choice_stays() -> None:
    assert judge({"platform_users": [ADA]}) == ([], [], {})


def test_what_cannot_be_computed_is_told_once() -> None:
    judged = judge({"git_remotes": "{{ vault_x }}", "platform_users": [ADA]}, broken="git_remotes")
    assert judged == ([], [("git_remotes", "'vault_x' is undefined")], {"git_remotes": []})


def test_a_secret_that_is_a_template_is_not_quoted() -> None:
    judged = judge({"vault_mlflow_admin_password": "s3{{cret"}, broken="vault_mlflow_admin_password")
    assert judged.unresolved == []
    assert [one.what for one in judged.faults] == ["is a template that cannot be computed"]
    assert "vault_x" not in str(judged)


def test_an_empty_secret_is_a_missing_one() -> None:
    assert judge({"vault_mlflow_admin_password": "", "vault_user_passwords": None}).faults == []

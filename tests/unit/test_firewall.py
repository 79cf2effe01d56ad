"""roles/firewall: addresses of the platform, and comparison of rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from tests.unit.repository import ROOT, load, rendered, role_templar

firewall = load("plugins/modules/firewall_table.py")
NAMES = {"gpu-1": ["10.1.2.21", "fe80::1%eth0"], "services-1": ["127.0.1.1"]}


def look_up(name: str) -> list[str]:
    if name not in NAMES:
        raise OSError(name)
    return NAMES[name]


def test_addresses_networks_and_names_fill_the_sets() -> None:
    found = firewall.networks(["fd00::/64", "10.1.3.9/24", "gpu-1", "10.1.2.21", "services-1"], look_up)
    assert firewall.members("platform", found) == (
        "add element inet metalworks platform4 { 10.1.2.21/32, 10.1.3.0/24, 127.0.1.1/32 }\n"
        "add element inet metalworks platform6 { fd00::/64, fe80::1/128 }\n"
    )


def test_no_addresses_give_empty_sets() -> None:
    assert firewall.members("platform", firewall.networks([], look_up)) == ""


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(OSError, match="typo-1"):
        firewall.networks(["10.1.2.3", "typo-1"], look_up)


def listing() -> dict[str, list[object]]:
    accept = {"match": {"left": {"payload": {"protocol": "icmp"}}, "right": {"set": ["a", "b"]}}}
    return {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "platform4", "handle": 3, "elem": ["10.0.0.1", {"prefix": {"addr": "10.1.0.0"}}]}},
            {"rule": {"handle": 9, "expr": [accept, {"counter": {"packets": 4, "bytes": 9}}, {"drop": None}]}},
        ]
    }


def altered(*changes: tuple[str, str]) -> Any:
    text = json.dumps(listing())
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return json.loads(text)


def test_counters_and_order_of_a_listing_do_not_matter() -> None:
    chance = ('"handle": 9', '"handle": 12'), ('"packets": 4', '"packets": 5'), ('["a", "b"]', '["b", "a"]')
    other = altered(("1.0.6", "1.1.0"), *chance)
    assert firewall.normal(other) == firewall.normal(listing())


@pytest.mark.parametrize("change", [('"drop"', '"accept"'), ("10.0.0.1", "10.0.0.2"), ('"icmp"', '"icmpv6"')])
def test_other_differences_in_a_listing_matter(change: tuple[str, str]) -> None:
    assert firewall.normal(altered(change)) != firewall.normal(listing())


def test_only_sets_are_compared_for_a_new_host() -> None:
    assert len(firewall.sets(firewall.normal(listing()))) == 1
    assert firewall.sets(None) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flush ruleset\ntable inet filter { chain input { type filter hook input priority filter; } }\n", False),
        ("table inet filter { # accept\n}", False),
        ("table inet filter { chain input { tcp dport 80 accept\n} }", True),
        ('include "/etc/nftables.d/*.nft"', True),
    ],
)
def test_foreign_rules_are_detected(text: str, expected: bool) -> None:
    assert firewall.has_rules(text) is expected


def test_user_names_become_uids() -> None:
    text = "meta skuid vmap { @uid:mlflow@ : jump out_1, @uid:www-data@ : jump out_2 }"
    numbers = {"mlflow": 997, "www-data": 33}
    assert firewall.numbered(text, numbers.__getitem__) == "meta skuid vmap { 997 : jump out_1, 33 : jump out_2 }"


def rules(**variables: Any) -> str:
    role = ROOT / "roles/firewall"
    return rendered(role_templar(role, **variables), role / "templates/nftables.conf.j2")


def test_without_user_limits_outbound_traffic_is_allowed() -> None:
    text = rules()
    assert "skuid" not in text
    assert "chain out_" not in text


def test_a_user_can_connect_only_where_listed() -> None:
    reach = [
        {"port": 5432, "to": ["10.1.2.11", "db-1"], "reason": "its database"},
        {"port": 443, "to": "internet", "reason": "hooks"},
        {"port": 53, "protocol": "any", "to": ["0.0.0.0/0"], "reason": "names"},
    ]
    text = rules(firewall_outbound=[{"user": "mlflow", "reach": reach}, {"user": "idle", "reach": []}])
    chain = text[text.index("chain out_1") : text.index("chain out_2")]
    assert "meta l4proto tcp ct original proto-dst 5432 ip daddr @out_1_1_4 accept" in chain
    assert "meta l4proto tcp ct original proto-dst 443 ip daddr != @inside4 ip daddr != @platform4 accept" in chain
    for protocol in ("tcp", "udp"):
        assert f"meta l4proto {protocol} ct original proto-dst 53 ip daddr @out_1_3_4 accept" in chain
    assert chain.rstrip().endswith("jump refused\n    }")
    assert "meta skuid vmap { @uid:mlflow@ : jump out_1, @uid:idle@ : jump out_2 }" in text
    assert "set out_1_1_4 {" in text
    assert "set out_1_2_4 {" not in text


def test_anyone_excludes_link_local_addresses() -> None:
    reach = [{"port": "any", "protocol": "any", "to": "anyone", "reason": "flows"}]
    text = rules(firewall_outbound=[{"user": "worker", "reach": reach}])
    assert "\n        ip daddr != @link4 accept\n        ip6 daddr != @link6 accept\n" in text


def test_a_port_of_the_loopback_address_is_for_its_users_and_root() -> None:
    text = rules(firewall_local=[{"port": 9000, "users": ["www-data", "minio"], "reason": "MinIO"}])
    users = "{ 0, @uid:www-data@, @uid:minio@ }"
    assert f'oifname "lo" tcp dport 9000 meta skuid != {users} jump refused' in text


def test_an_unknown_field_of_a_port_is_refused_with_the_fields_that_exist() -> None:
    options = yaml.safe_load((ROOT / "roles/firewall/meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    port = {"port": 80, "from": "anyone", "why": "a dashboard"}
    found = ArgumentSpecValidator(options["options"]).validate({"firewall_open": [port]}).error_messages
    assert "firewall_open.why. Supported parameters include: from, port, protocol, reason." in found


def test_only_containers_begin_connections_that_a_host_forwards() -> None:
    text = rules(firewall_forward=True)
    forward = text[text.index("chain forward") :]
    lines = [line.strip() for line in forward.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    assert lines[:7] == [
        "type filter hook forward priority filter; policy drop;",
        "ct state established,related accept",
        "ct original ip daddr 127.0.0.0/8 jump dropped",
        "ct status dnat jump opened",
        "ct status dnat jump dropped",
        'meta iifkind "bridge" accept',
        "jump dropped",
    ]

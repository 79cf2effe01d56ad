"""Compute the input of each host's roles from the platform's parts.

A part is a variable `part_<group>` in group_vars/all/parts/<group>.yml. It runs on the hosts of that group, if any.
All fields but `order` are optional:

order           number by which parts are sorted, on the start page and in every list
names           host names below the platform's domain that lead to it; `[mlflow]` is mlflow.<domain>
behind_gateway  true: the gateway's host answers for `names`; otherwise the part's first host does
sites           what the gateway serves and the start page lists: entries of the gateway's `gateway_sites`. `host` is
                a name of some part; empty: it is on the start page only. With `status: true`, the entry
                shows what the status program says about it.
socket_groups   UNIX groups that may open the part's socket; the gateway on the same host joins them
databases       entries of `postgresql_databases`; the part's hosts may connect to PostgreSQL
readers         entries of `postgresql_readers`
buckets         entries of `object_store_buckets`
keys            keys of the object store: `names` of their holders, `buckets` that they write (or `all`), and optionally
                `reads`, `access`
accounts        logins of machines at the gateway and MLflow: `names`, `role` and, for readers of models, `models`
tokens          names of those who may call models in service
packages        Debian packages that the part's roles would install one by one
listens         open ports: `port`, `reason` and `from`: anyone, platform, addresses (besides the platform's own), or
                `clients`, the hosts of all parts that have a database
loopback        ports on the loopback address that only `users` may connect to, with `port` and `reason`
endpoint        where others reach the part: a list of `port`, `reason` and `to`: addresses, platform, or `host`, the
                part's first host
programs        users that may connect only where they are told: `user`, `calls` (names of parts), `ways` (entries as in
                `endpoint`), `proxies` (true: also whatever the gateway serves), `collects` (true: also what the host
                offers in `scrapes`), `reaches` (host:port) and `may_reach`, the key by which the site's variable
                `may_reach` replaces `reaches`
scrapes         metrics on the loopback address that the host's agent collects if the platform has group `monitoring`:
                `job`, `port` and optionally `path`, `labels`, `secure` (true: over TLS, with a token) and `exporter`,
                the program that the agent's role runs there because the part itself does not offer any. Nobody else
                may ask an exporter
elsewhere       true: the site uses a service of its own instead, so `programs`, `loopback` and `scrapes` do not apply
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

Entry = dict[str, Any]
Parts = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, Sequence[str]]

PREFIX = "part_"
GATEWAY = "gateway"
MONITORING = "monitoring"
AGENT = "vmagent"
"""The user that collects metrics on every host."""
PROXY_USER = "www-data"  # nginx runs as this user on Debian
NAME_SERVERS: Entry = {"port": 53, "protocol": "any", "to": ["0.0.0.0/0", "::/0"], "reason": "names"}  # link-local, too


# -- Parts and hosts


def parts(values: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return group → part, in order, from the values and names of the variables."""
    found = {name.removeprefix(PREFIX): part for name, part in zip(names, values, strict=True)}
    return dict(sorted(found.items(), key=lambda one: int(one[1]["order"])))


def gathered(parts: Parts, field: str, groups: Groups | None = None, host: str = "") -> list[Any]:
    """Return the entries of all parts for a list field; with `groups`, only of parts that run on the host."""
    return [
        entry
        for group, part in parts.items()
        if groups is None or host in groups.get(group, ())
        for entry in part.get(field, ())
    ]


def first_host(group: str, groups: Groups) -> str:
    """Return the first host of a group, or an empty string."""
    return next(iter(groups.get(group, ())), "")


def address(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> str:
    """Return the IP address by which the other hosts reach a host."""
    return str(hostvars[host].get("platform_address") or hostvars[host].get("ansible_host", host))


def addresses(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the addresses of hosts, each once."""
    return list(dict.fromkeys(address(hostvars, host) for host in hosts))


def answering_hosts(parts: Parts, groups: Groups) -> dict[str, str]:
    """Return name below the domain → host that answers for it."""
    return {
        name: host
        for group, part in parts.items()
        if (host := first_host(GATEWAY if part.get("behind_gateway") else group, groups))
        for name in part.get("names", ())
    }


def names_here(parts: Parts, groups: Groups, host: str) -> list[str]:
    """Return the names below the domain for which a host answers."""
    return [name for name, answers in answering_hosts(parts, groups).items() if answers == host]


def host_entries(parts: Parts, groups: Groups, hostvars: Mapping[str, Any], domain: str) -> list[Entry]:
    """Return the entries of /etc/hosts: every host, and every name that the platform answers for."""
    machines = [*groups.get("platform", ()), *groups.get("outside", ())]
    found = {name: address(hostvars, name) for name in machines}
    entries = [{"name": name, "address": where} for name, where in found.items()]
    if page := first_host(GATEWAY, groups):
        entries.append({"name": domain, "address": found[page]})
    return entries + [
        {"name": f"{name}.{domain}", "address": found[host]} for name, host in answering_hosts(parts, groups).items()
    ]


def filled(items: Iterable[Mapping[str, Any]], entry: Any, **defaults: Any) -> list[Any]:
    """Return a copy of the entry for each item, with every `{field}` in its texts replaced by the item's field.

    A text that is only a field becomes the field's value, so that a number stays a number.
    """

    def fill(value: Any, fields: Mapping[str, Any]) -> Any:
        if isinstance(value, Mapping):
            return {key: fill(inner, fields) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner, fields) for inner in value]
        if not isinstance(value, str):
            return value
        whole = re.fullmatch(r"\{(\w+)\}", value)
        return fields[whole[1]] if whole else value.format_map(fields)

    return [fill(entry, defaults | dict(item)) for item in items]


# -- People, machines and their secrets


def with_secrets(entries: Iterable[Mapping[str, Any]], by: str = "name", **secrets: Mapping[str, str]) -> list[Entry]:
    """Add to each entry its secret of each kind, looked up by the entry's field `by`."""
    return [dict(entry) | {field: held[entry[by]] for field, held in secrets.items()} for entry in entries]


def machines(parts: Parts) -> list[Entry]:
    """Return name, role and models of each machine that logs in."""
    return [
        {"name": name, "role": account["role"], "models": list(account.get("models", ()))}
        for account in gathered(parts, "accounts")
        for name in account["names"]
    ]


def gateway_users(people: Iterable[Entry], machines: Iterable[Entry]) -> list[Entry]:
    """Return the gateway's users, from people and machines with their passwords."""
    return [{field: one[field] for field in ("name", "role", "password")} for one in (*people, *machines)]


def mlflow_users(people: Iterable[Entry], machines: Iterable[Entry]) -> list[Entry]:
    """Return MLflow's users and their rights, from people and machines with their passwords."""
    return [
        {
            "name": one["name"],
            "password": one["password"],
            "admin": one["role"] == "admin",
            "write": one["role"] in ("developer", "machine"),
            "models": one.get("models", []),
        }
        for one in (*people, *machines)
    ]


def store_keys(parts: Parts, secrets: Mapping[str, str]) -> list[Entry]:
    """Return the object store's consumers: a key for each name, which is also the key's id."""
    buckets = [bucket["name"] for bucket in gathered(parts, "buckets")]
    return [
        {field: key[field] for field in ("reads", "access") if field in key}
        | {
            "name": name,
            "access_key": name,
            "secret_key": secrets[name],
            "buckets": buckets if key["buckets"] == "all" else list(key["buckets"]),
        }
        for key in gathered(parts, "keys")
        for name in key["names"]
    ]


def worker_pools(pools: Sequence[str], group_names: Sequence[str], limits: Mapping[str, int]) -> list[Entry]:
    """Return the pools that a host's workers serve: those of its hardware groups."""
    return [
        {
            "name": pool,
            "limit": limits[pool],
            "per_gpu": pool == "gpu",
            "port": 4201 + 100 * number,
            "user": f"worker-{pool}",
            "s3_access_key": f"worker-{pool}",
        }
        for number, pool in enumerate(pools)
        if pool in group_names
    ]


# -- Sites of the gateway


def sites_here(
    parts: Parts, groups: Groups, host: str, gateway: Mapping[str, Any], status: Mapping[str, Any]
) -> list[Entry]:
    """Return the sites of a host's gateway; the one with the start page also lists the sites of the others.

    `gateway` has the domain and the port of all gateways. `status` has the socket of the status program, which checks
    parts without HTTP, and the names of its checks on this host.
    """
    answers = answering_hosts(parts, groups)
    page = first_host(GATEWAY, groups)
    found: list[Entry] = []
    for site in gathered(parts, "sites"):
        entry = {field: value for field, value in site.items() if field != "status"}
        if site.get("status"):
            if site["name"] in status["names"]:
                shown = {"served": False, "says": True, "upstreams": [f"unix:{status['socket']}"]}
                found.append(entry | shown | {"health": f"/{site['name']}"})
        elif answers.get(site["host"]) == host:
            found.append(entry)
        elif site["host"] in answers and host == page:
            peer = f"{site['host']}.{gateway['domain']}:{gateway['port']}"
            found.append(entry | {"served": False, "protocol": "https", "upstreams": [peer]})
    return found


def without_upstreams(sites: Iterable[Entry], host: str) -> list[Entry]:
    """Return the sites without the upstreams on a host; a site whose only upstreams are there keeps them."""
    found = []
    for site in sites:
        others = [one for one in site.get("upstreams", []) if one.rpartition(":")[0] != host]
        found.append(site | {"upstreams": others} if others else site)
    return found


# -- Firewall


def database_clients(parts: Parts, groups: Groups) -> list[str]:
    """Return the hosts whose parts have a database."""
    return [host for group, part in parts.items() if part.get("databases") for host in groups.get(group, ())]


def client_addresses(parts: Parts, groups: Groups, hostvars: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the hosts whose parts have a database."""
    return addresses(database_clients(parts, groups), hostvars)


def open_ports(parts: Parts, groups: Groups, host: str, hostvars: Mapping[str, Any]) -> list[Entry]:
    """Return a host's open ports and who may connect. A port that only the host itself would use stays closed."""
    found = []
    for port in gathered(parts, "listens", groups, host):
        if isinstance(port["from"], list):  # the site's choice; the platform's hosts call each other all the same
            found.append(dict(port) | {"from": "platform"})
        clients = client_addresses(parts, groups, hostvars) if port["from"] == "clients" else port["from"]
        if clients != [address(hostvars, host)]:
            found.append(dict(port) | {"from": clients})
    return found


def run_here(parts: Parts) -> dict[str, Mapping[str, Any]]:
    """Return the parts without those in whose place the site uses a service of its own."""
    return {group: part for group, part in parts.items() if not part.get("elsewhere")}


def loopback_ports(parts: Parts, groups: Groups, host: str) -> list[Entry]:
    """Return the restricted ports on a host's loopback address. The agent may ask those that it collects from."""
    scraped = scrapes_here(parts, groups, host)
    ports = {one["port"] for one in scraped}
    found = [
        port | {"users": [*port["users"], AGENT]} if port["port"] in ports else port
        for port in gathered(run_here(parts), "loopback", groups, host)
    ]
    return found + [
        {"port": one["port"], "users": [AGENT], "reason": f"metrics of {one['job']}"}
        for one in scraped
        if "exporter" in one
    ]


def scrapes_here(parts: Parts, groups: Groups, host: str) -> list[Entry]:
    """Return what a host's agent collects; nothing if nobody keeps it."""
    return gathered(run_here(parts), "scrapes", groups, host) if groups.get(MONITORING) else []


def outbound(
    parts: Parts, groups: Groups, host: str, hostvars: Mapping[str, Any], may_reach: Mapping[str, Sequence[str]]
) -> list[Entry]:
    """Return the allowed destinations of a host's programs; `may_reach` has those that the site adds."""
    return [
        {
            "user": program["user"],
            "reach": [
                *(way for called in program.get("calls", ()) for way in endpoint(parts, groups, hostvars, called)),
                *(behind_gateways(parts, groups, hostvars) if program.get("proxies") else ()),
                *(collected(parts, groups, host) if program.get("collects") else ()),
                *program.get("ways", ()),
                *reach_of_site(program, may_reach),
            ],
        }
        for group, part in parts.items()
        if host in groups.get(group, ()) and not part.get("elsewhere")
        for program in part.get("programs", ())
    ]


def endpoint(parts: Parts, groups: Groups, hostvars: Mapping[str, Any], group: str) -> Iterator[Entry]:
    """Yield the destinations of a part."""
    for way in parts[group]["endpoint"]:
        host = first_host(group, groups)
        yield dict(way) | ({"to": [address(hostvars, host)] if host else []} if way["to"] == "host" else {})


def collected(parts: Parts, groups: Groups, host: str) -> Iterator[Entry]:
    """Yield the destinations of a host's agent."""
    jobs = {one["port"]: one["job"] for one in scrapes_here(parts, groups, host)}
    for port, job in jobs.items():
        yield {"port": port, "to": ["127.0.0.1"], "reason": f"metrics of {job}"}


def behind_gateways(parts: Parts, groups: Groups, hostvars: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield the destinations of a gateway's own requests."""
    for group, part in parts.items():
        for port in part.get("loopback", ()):
            if PROXY_USER in port["users"]:
                yield {"port": port["port"], "to": ["127.0.0.1"], "reason": port["reason"]}
        if part.get("behind_gateway"):
            yield from endpoint(parts, groups, hostvars, group)


def reach_of_site(program: Mapping[str, Any], may_reach: Mapping[str, Sequence[str]]) -> list[Entry]:
    """Return the destinations, written host:port, that a site allows a program, and name servers with them."""
    places = may_reach.get(program.get("may_reach", ""), program.get("reaches", ()))
    found = [dict(NAME_SERVERS)] if places else []
    for place in places:
        host, _, port = place.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        to = host if host in ("internet", "anyone") else [host]
        found.append({"port": port, "protocol": "any", "to": to, "reason": f"may_reach of {program['may_reach']}"})
    return found


def port_of(url: str) -> int:
    """Return the port of a URL, or its scheme's default."""
    parsed = urlsplit(url)
    return parsed.port or (80 if parsed.scheme == "http" else 443)


def place_of(url: str) -> str:
    """Return host:port of a URL."""
    return f"{urlsplit(url).hostname}:{port_of(url)}"


def known_indexes(indexes: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Return the package indexes without their logins."""
    return [{"url": index["url"], "packages": list(index.get("packages", ()))} for index in indexes]


def index_logins(indexes: Iterable[Mapping[str, Any]]) -> str:
    """Return the logins of package indexes as a netrc file, which has one for each host."""
    logins = {
        urlsplit(index["url"]).hostname: f"login {index['user']} password {index['password']}"
        for index in indexes
        if "user" in index
    }
    return "".join(f"machine {host} {login}\n" for host, login in logins.items())


def database_url(database: Mapping[str, Any]) -> str:
    """Return libpq's URL of a database, without a password."""
    host = f"[{database['host']}]" if ":" in database["host"] else database["host"]
    user, name = (quote(str(database[field]), safe="") for field in ("user", "name"))
    return f"postgresql://{user}@{host}:{database['port']}/{name}?sslmode={database.get('sslmode', 'require')}"


def ways_to_url(url: str, reason: str) -> list[Entry]:
    """Return the destinations of an external service of the site's.

    In the site's network, the address of its name when site.yml runs; on the internet, any, because it may change.
    """
    port = port_of(url)
    return [
        {"port": port, "to": [urlsplit(url).hostname], "reason": reason},
        {"port": port, "to": "internet", "reason": reason},
        dict(NAME_SERVERS),
    ]


class FilterModule:
    """Ansible's filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "parts": parts,
            "gathered": gathered,
            "addresses": addresses,
            "host_entries": host_entries,
            "names_here": names_here,
            "filled": filled,
            "with_secrets": with_secrets,
            "machines": machines,
            "gateway_users": gateway_users,
            "mlflow_users": mlflow_users,
            "store_keys": store_keys,
            "worker_pools": worker_pools,
            "sites_here": sites_here,
            "without_upstreams": without_upstreams,
            "database_clients": database_clients,
            "client_addresses": client_addresses,
            "open_ports": open_ports,
            "loopback_ports": loopback_ports,
            "outbound": outbound,
            "scrapes_here": scrapes_here,
            "place_of": place_of,
            "known_indexes": known_indexes,
            "index_logins": index_logins,
            "ways_to_url": ways_to_url,
            "database_url": database_url,
        }

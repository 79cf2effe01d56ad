"""Add a host to an inventory's YAML files, remove one, or give a role to another one, and leave all else as it is.

A YAML library that writes files would change quotes, blanks and line breaks that people chose, so this finds the place
with the parser's own marks and inserts or deletes lines there. The result is parsed again before it is written.
"""

from __future__ import annotations

import argparse
import copy
import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from plugins.plugin_utils import site_rules
from scripts.common import ROOT, ProblemError, end, listed_inventory

FACTS = ROOT / "roles" / "validate" / "vars" / "main.yml"
PLATFORM = "platform"


class Place(NamedTuple):
    """The `hosts` of a group in a file: the keys that lead there, and the nodes of its key and its value."""

    file: Path
    keys: tuple[str, ...]
    key: yaml.ScalarNode
    value: yaml.Node

    def line(self, name: str, address: str) -> str:
        """Return the line of a new host, without its indentation."""
        quoted = f'"{address}"' if ":" in address else address
        return f"{name}: {{ansible_host: {quoted}}}"


def files(inventory: Path) -> list[Path]:
    """Return the YAML files of an inventory, as Ansible reads them."""
    if not inventory.is_dir():
        raise ProblemError(f"{inventory} is not an inventory directory: use one such as inventory/lab")
    found = sorted(path for path in inventory.iterdir() if path.suffix in (".yml", ".yaml") and path.name[0] != ".")
    return [path for path in found if path.is_file()]


def places(file: Path) -> Iterator[Place]:
    """Return the `hosts` of all groups in a file."""
    try:
        root = yaml.compose(file.read_text(), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ProblemError(f"{file} is not valid YAML: {error}") from error

    def below(groups: yaml.Node | None, keys: tuple[str, ...]) -> Iterator[Place]:
        for name, group in pairs(groups):
            for key, value in pairs(group):
                if key.value == "hosts":
                    yield Place(file, (*keys, name.value, "hosts"), key, value)
                elif key.value == "children":
                    yield from below(value, (*keys, name.value, "children"))

    yield from below(root, ())


def pairs(node: yaml.Node | None) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Return the entries of a mapping; none of anything else."""
    return node.value if isinstance(node, yaml.MappingNode) else []


def last_line(node: yaml.Node) -> int:
    """Return the number of the last line of a node, counted from 0; a block ends with its last entry."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return last_line(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return last_line(node.value[-1])
    mark = node.end_mark
    return int(mark.line - (mark.column == 0 and mark.line > node.start_mark.line))


def checked(old: str, lines: list[str], change: Mapping[str, Any], file: Path) -> str:
    """Return the new text, if it means what it should."""
    new = "".join(lines)
    if yaml.safe_load(new) != change:
        raise ProblemError(f"{file} is written in a form that this command does not understand; nothing was changed")
    return new if new.endswith("\n") or not old.endswith("\n") else f"{new}\n"


def write(file: Path, text: str) -> None:
    """Replace a file at once; its permissions stay."""
    draft = file.with_name(f".{file.name}.new")
    draft.write_text(text)
    draft.chmod(file.stat().st_mode & 0o7777)
    draft.replace(file)


def inside(tree: Any, keys: tuple[str, ...]) -> Any:
    """Return the mapping above the last of these keys."""
    for key in keys[:-1]:
        tree = tree[key]
    return tree


def with_host(place: Place, name: str, address: str) -> str:
    """Return the text of the file with one more host at this place, after the others."""
    old = place.file.read_text()
    lines = old.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    value = place.value
    if isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
        column, after = value.value[0][0].start_mark.column, last_line(value)
    elif isinstance(value, yaml.ScalarNode) and value.value == "":
        column, after = place.key.start_mark.column + 2, place.key.start_mark.line
    else:
        raise by_hand(place.file, place.keys[-2], place.line(name, address))
    lines.insert(after + 1, f"{' ' * column}{place.line(name, address)}\n")
    wanted = copy.deepcopy(yaml.safe_load(old))
    above = inside(wanted, place.keys)
    above["hosts"] = {**(above["hosts"] or {}), name: {"ansible_host": address}}
    return checked(old, lines, wanted, place.file)


def without_host(place: Place, name: str) -> str:
    """Return the text of the file without this host at this place; a comment above its line stays."""
    old = place.file.read_text()
    key, value = next(pair for pair in pairs(place.value) if pair[0].value == name)
    if isinstance(place.value, yaml.MappingNode) and place.value.flow_style:
        raise ProblemError(
            f"{place.file} lists the hosts of `{place.keys[-2]}` on one line: remove {name} there by hand, then run "
            "this again"
        )
    lines = old.splitlines(keepends=True)
    del lines[key.start_mark.line : max(last_line(value), key.start_mark.line) + 1]
    wanted = copy.deepcopy(yaml.safe_load(old))
    above = inside(wanted, place.keys)
    above["hosts"] = {host: each for host, each in above["hosts"].items() if host != name} or None
    return checked(old, lines, wanted, place.file)


def by_hand(where: Path, group: str, line: str) -> ProblemError:
    """Return the problem of an inventory in another form."""
    return ProblemError(
        f"{where} has no list of hosts of the group `{group}` in a form that this command can extend. Add this line to "
        f"the hosts of `{group}` by hand:\n    {line}"
    )


def descendants(listed: Mapping[str, Any], group: str) -> set[str]:
    """Return a group and all groups below it, from the output of `ansible-inventory --list`."""
    found = {group}
    for child in listed.get(group, {}).get("children", []):
        found |= descendants(listed, child)
    return found


def hosts_of(listed: Mapping[str, Any], group: str) -> list[str]:
    """Return the hosts of a group and of those below it."""
    return sorted({host for one in descendants(listed, group) for host in listed.get(one, {}).get("hosts", [])})


def groups_of(listed: Mapping[str, Any]) -> set[str]:
    """Return the names of all groups, empty ones too."""
    named = {child for entry in listed.values() for child in entry.get("children", [])}
    return (named | set(listed)) - {"_meta", "all", "ungrouped"}


def refuse(listed: Mapping[str, Any], name: str, address: str, group: str) -> None:
    """Raise a ProblemError if this host cannot join, with what to do."""
    problems = site_rules.bad_host_names([name])
    known = listed.get("_meta", {}).get("hostvars", {})
    groups = groups_of(listed)
    if name in known or name in hosts_of(listed, "all"):
        problems.append(site_rules.Problem(f"host {name}", "is in the inventory already", "Choose another name"))
    if name in groups:
        problems.append(site_rules.Problem(f"host {name}", "has the name of a group", "Choose another name"))
    domain = next((str(each["platform_domain"]) for each in known.values() if "platform_domain" in each), "")
    if domain and (name == domain or name.endswith(f".{domain}")):
        cure = "Choose a name outside the platform's domain"
        problems.append(site_rules.Problem(f"host {name}", f"has a name in {domain}, which is the platform's", cure))
    reached = {host: str(each.get("ansible_host", host)) for host, each in known.items()}
    # A site's own address wins; the product's default is a template.
    given = {host: str(each.get("platform_address", "")) for host, each in known.items()}
    addresses = {host: given[host] if site_rules.is_address(given[host]) else reached[host] for host in known}
    if not site_rules.is_address(address):
        line = f"{name}: {{ansible_host: {address}, platform_address: …}}"
        cure = f"Give its IP address; to reach it by a name, add `{line}` to the hosts of `{group}` by hand"
        problems.append(site_rules.Problem(f"address {address}", "is not an IP address", cure))
    else:
        problems += site_rules.bad_address(name, address, {"has": True, "routed": []})
        if others := sorted({host for host in known if address in (addresses[host], reached[host])}):
            cure = "Correct the address; a machine has one name in all groups"
            what = f"is that of {', '.join(others)} already"
            problems.append(site_rules.Problem(f"address {address}", what, cure))
        ours = {host: addresses[host] for host in hosts_of(listed, PLATFORM) if host in addresses}
        other = [each for each in ours.values() if site_rules.is_address(each)]
        if other and ipaddress.ip_address(other[0]).version != ipaddress.ip_address(address).version:
            problems += site_rules.mixed_addresses({**ours, name: address})
    problems += refused_group(listed, groups, group)
    if problems:
        raise ProblemError(site_rules.report(problems).replace("no host was changed", "the inventory was not changed"))


def refused_group(listed: Mapping[str, Any], groups: set[str], group: str) -> list[site_rules.Problem]:
    """Return why a host cannot join this group."""
    if group not in groups:
        meant = site_rules.did_you_mean(group, groups)
        cure = f"Did you mean `{meant}`?" if meant else f"Choose one of {', '.join(sorted(groups))}"
        return [site_rules.Problem(f"group `{group}`", "does not exist", cure)]
    if group not in descendants(listed, PLATFORM) - {PLATFORM}:
        cure = f"Choose a hardware group: {', '.join(sorted(descendants(listed, PLATFORM) - {PLATFORM}))}"
        return [site_rules.Problem(f"group `{group}`", "is not one of the platform's hardware groups", cure)]
    single = yaml.safe_load(FACTS.read_text())["__validate_single_groups"]
    crowded = [one for one in single if group in descendants(listed, one) and hosts_of(listed, one)]
    if crowded:
        one = crowded[0]
        return site_rules.crowded_groups({one: [*hosts_of(listed, one), "the new host"]}, [one])
    return []


def add(inventory: Path, name: str, address: str, group: str) -> Path:
    """Add a host to a group of an inventory; return the file that has changed."""
    found = files(inventory)
    refuse(listed_inventory(inventory), name, address, group)
    ours = [place for file in found for place in places(file) if place.keys[-2] == group]
    if not ours:
        raise by_hand(inventory, group, f"{name}: {{ansible_host: {address}}}")
    full = [place for place in ours if pairs(place.value)]
    place = (full or ours)[0]
    write(place.file, with_host(place, name, address))
    return place.file


def remove(inventory: Path, name: str, *, check: bool = False) -> list[Path]:
    """Remove a host from all groups of an inventory; return the files that have changed, or with `check` would."""
    changed = []
    for file in files(inventory):
        while theirs := [place for place in places(file) if name in {key.value for key, _ in pairs(place.value)}]:
            text = without_host(theirs[0], name)
            changed += [file] if file not in changed else []
            if check:
                break
            write(file, text)
    if not changed:
        raise ProblemError(f"no YAML file of {inventory} lists the host {name}: remove it by hand where it is listed")
    return changed


def definitions(node: yaml.Node | None, group: str) -> Iterator[yaml.Node]:
    """Return what is written below a group, wherever it stands in the tree."""
    for name, value in pairs(node):
        if name.value == group:
            yield value
        for key, below in pairs(value):
            if key.value == "children":
                yield from definitions(below, group)


def replaced(text: str, spans: list[tuple[yaml.Node, str]]) -> str:
    """Return the text with some scalars replaced, the last first, so that places before them stay."""
    for node, new in sorted(spans, key=lambda one: -one[0].start_mark.index):
        text = text[: node.start_mark.index] + new + text[node.end_mark.index :]
    return text


def with_role(file: Path, group: str, name: str) -> str | None:
    """Return the text of the file with this host as the only one of a group; None if the group has none there.

    The group names one hardware group or host, which is replaced; comments stay.
    """
    old = file.read_text()
    root = yaml.compose(old, Loader=yaml.SafeLoader)
    lists = [
        (key, value)
        for found in definitions(root, group)
        for key, value in pairs(found)
        if key.value in ("hosts", "children") and pairs(value)
    ]
    if not lists:
        return None
    key, value = lists[0]
    (entry, its), *more = pairs(value)
    if len(lists) > 1 or more or pairs(its):
        raise ProblemError(
            f"{file} gives the group `{group}` in a form that this command cannot change: let it have one child or one "
            "host, without variables there"
        )
    new = replaced(old, [(key, "hosts"), (entry, name)])

    def moved(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        mine = {"hosts": {name: None}}
        return {
            one: {k: v for k, v in below.items() if k not in ("hosts", "children")} | mine
            if one == group and (below or {}).get(key.value)
            else moved(below)
            for one, below in tree.items()
        }

    return checked(old, [new], moved(yaml.safe_load(old)), file)


def move(inventory: Path, group: str, name: str, *, check: bool = False) -> Path:
    """Make a host the only one of a group; return the file that has changed, or with `check` would."""
    texts = {file: text for file in files(inventory) if (text := with_role(file, group, name)) is not None}
    if len(texts) != 1:
        where = f"{len(texts)} files of {inventory} list" if texts else f"no YAML file of {inventory} lists"
        raise ProblemError(f"{where} hosts of the group `{group}`: write one list there by hand")
    ((file, text),) = texts.items()
    if not check:
        write(file, text)
    return file


def main() -> None:
    """Add, remove or move, and say what comes next."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    adding = verbs.add_parser("add", help="add a host to a group")
    removing = verbs.add_parser(
        "remove", help="delete the lines of a host; playbooks/remove_host.yml does so at its end"
    )
    moving = verbs.add_parser("move", help="make a host the only one of a role; playbooks/move_role.yml does so")
    for verb in (adding, removing, moving):
        verb.add_argument("inventory", type=Path, help="the inventory's directory, for example inventory/lab")
        verb.add_argument("name", help="what the other hosts call it")
    moving.add_argument("group", help="the role's group, for example object_store")
    adding.add_argument("address", help="its IP address")
    adding.add_argument("group", help="a hardware group: services, gpu, cpu or dev")
    for verb in (removing, moving):
        verb.add_argument("--check", action="store_true", help="only check that its lines can be changed")
    wants = parser.parse_args()
    if wants.verb == "remove":
        files_ = remove(wants.inventory, wants.name, check=wants.check)
        print(f"{wants.name} {'can be' if wants.check else 'is'} removed from {', '.join(map(str, files_))}")
        return
    if wants.verb == "move":
        file = move(wants.inventory, wants.group, wants.name, check=wants.check)
        print(f"{wants.name} {'can be' if wants.check else 'is'} the host of {wants.group} in {file}")
        return
    file = add(wants.inventory, wants.name, wants.address, wants.group)
    print(
        f"{wants.name} is in {file}. Connect to it once with ssh and check the host key, then run\n"
        f"  .venv/bin/ansible-playbook -i {wants.inventory} site.yml --limit {wants.name}"
    )


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)

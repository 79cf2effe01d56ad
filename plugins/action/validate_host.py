"""Check one host: the input of its roles, and what module validate_host finds on it. Reports and never fails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.common.yaml import yaml_load  # libyaml's parser: this is read for every host
from ansible.plugins.action import ActionBase

from ..filter.wiring import address as platform_address
from ..plugin_utils import site_choices
from ..plugin_utils import site_rules as rules

PEOPLE, TAKE_OVER = "platform_users", "take_over"
DRIVERS, SOURCE, VERSION = "nvidia_driver_versions", "nvidia_source", "postgresql_version"
ANYWHERE = "nvidia_driver_install_without_device"
DOCKER, POOLS = "docker_engine", "default-address-pools"
UPGRADES = "__upgrade_postgresql"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Return `refused` (choices), `problems`, `unresolved` (variables that cannot be computed) and the host's facts."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the host that the task runs for, if it belongs to the platform."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.host = self.variables["inventory_hostname"]
        self.problems: list[Any] = []
        self.unresolved: list[tuple[str, str]] = []
        self.repaired: dict[str, Any] = {}
        refused = self._judge_choices() if "schema" in self._task.args else []
        if self._task.args["home"] in self.variables["group_names"]:
            self._judge_roles()
            self.problems += self._judge_certificate()
            result |= self._judge_host(self._wanted_ports())
        problems = [list(problem) for problem in self.problems]
        return result | {"refused": refused, "problems": problems, "unresolved": self.unresolved}

    def _judge_choices(self) -> list[list[str]]:
        """Check the site's choices; from here on, a refused one has a value that nothing stumbles over."""
        judged = site_choices.judge_in(self, self.variables, Path(self._task.args["roles"]).parent)
        self.unresolved += judged.unresolved
        self.repaired = judged.repaired
        self.variables = self.variables | judged.repaired
        self._templar.available_variables = self.variables
        return [[fault.variable, fault.place, fault.what, fault.cure] for fault in judged.faults]

    def _value(self, name: str) -> Any:
        """Return a variable's value on this host; note why and return None when it cannot be computed."""
        try:
            return self._templar.template(self.variables[name])
        except AnsibleError as error:
            self.unresolved.append((name, str(error.message).rstrip(".")))
            return None

    def _judge_roles(self) -> None:
        """Check the input of each role of this host against its argument spec, before any of them starts."""
        for path in sorted(Path(self._task.args["roles"]).glob("*/meta/argument_specs.yml")):
            role = path.parent.parent.name
            if self._task.args["role_groups"].get(role, role) in self.variables["group_names"]:
                options = yaml_load(path.read_text())["argument_specs"]["main"].get("options", {})
                self._judge_role(role, options)

    def _judge_role(self, role: str, options: dict[str, Any]) -> None:
        before = {name for name, _ in self.unresolved}
        values = {name: self._value(name) for name in options if name in self.variables and name not in before}
        failed = {name for name, _ in self.unresolved}
        verdict = ArgumentSpecValidator({name: options[name] for name in options if name not in failed}).validate(
            {name: value for name, value in values.items() if name not in failed}
        )
        for message in remove_values(list(verdict.error_messages), verdict._no_log_values):
            cure = f"docs/roles.md lists the variables of role {role}"
            self.problems.append(rules.Problem(f"host {self.host}, role {role}", message.rstrip("."), cure))

    def _wanted_ports(self) -> list[dict[str, Any]]:
        """Return the ports that the platform's units will listen on here."""
        wanted = []
        for port in self._task.args["ports"]:
            if port["group"] not in self.variables["group_names"] or port["variable"] not in self.variables:
                continue
            value = self._value(port["variable"])
            # A list that cannot be computed is reported elsewhere.
            for entry in value if isinstance(value, list) else [{"port": value}] if value else []:
                number = entry.get("port", port.get("default")) if isinstance(entry, dict) else None
                if isinstance(number, int):
                    fields = defaultdict(str, entry)
                    entry_of = f"the port of {fields['name']} in " if isinstance(value, list) else ""
                    setting = "" if port.get("fixed") else f"{entry_of}{port['variable']}"
                    wanted.append({"port": number, "unit": port["unit"].format_map(fields), "setting": setting})
        self.problems += rules.two_on_one_port(self.host, wanted)
        return wanted

    def _judge_certificate(self) -> list[Any]:
        """Check the team's own certificate for this host, if there is one."""
        own, names = self._value("certificates_own"), self._value("certificates_names") or []
        return list(rules.bad_own_certificate(self.host, own, names, self._contents)) if own else []

    def _contents(self, path: str) -> bytes:
        """Return the contents of a file on the controller, decrypted with ansible-vault where needed."""
        with Path(path).open("rb"):  # fails with the system's reason, unlike the loader
            return bytes(self._loader.get_text_file_contents(path).encode())

    def _wants_device(self) -> bool:
        device = self._task.args["device"]
        if device["group"] not in self.variables["group_names"] or device["variable"] in self.repaired:
            return False
        return bool(self._value(device["variable"]))

    def _judge_ssh_port(self, listeners: list[dict[str, Any]]) -> list[Any]:
        """Check that the firewall keeps the port of the SSH server open, if Ansible comes by SSH."""
        over_ssh = self.variables.get("ansible_connection", "ssh") in ("ssh", "smart", "paramiko", "paramiko_ssh")
        port = self._value("firewall_ssh_port") if "firewall_ssh_port" in self.variables else None
        return list(rules.closed_ssh_port(self.host, port, listeners)) if over_ssh and port else []

    def _wanted_runtimes(self) -> dict[str, str]:
        """Return what this host's programs run in, by the variable that says so."""
        groups = self.variables["group_names"]
        names = [name for group, name in self._task.args.get("runtimes", {}).items() if group in groups]
        return {name: str(self._value(name)) for name in names if name in self.variables}

    def _other_addresses(self) -> Iterator[str]:
        """Yield the addresses by which the platform's other hosts are reached, except those that nobody can compute."""
        for host in self.variables["groups"][self._task.args["home"]]:
            if host != self.host:
                with suppress(AnsibleError):
                    yield platform_address(self.variables["hostvars"], host)

    def _people(self) -> dict[str, int | None]:
        """Return the UID, if the site sets one, of each person who gets an account here."""
        entries = self._value(PEOPLE) if PEOPLE in self.variables else []
        found = {}
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("role") in ("admin", "developer"):
                found[str(entry.get("name", ""))] = entry["uid"] if isinstance(entry.get("uid"), int) else None
        return found

    def _docker(self) -> dict[str, Any]:
        """Return what is wanted of this host's Docker engine; empty if none is, or if a value cannot be computed."""
        if DOCKER not in self.variables["group_names"]:
            return {}
        defaults = yaml_load(Path(self._task.args["roles"], DOCKER, "defaults/main.yml").read_text())
        wants = {
            key.removeprefix(f"{DOCKER}_"): self._value(key) if key in self.variables else default
            for key, default in defaults.items()
        }
        if None in wants.values():
            return {}
        # The module logs its options, and other settings may hold passwords.
        wants["settings"] = {key: wants["settings"][key] for key in ("hosts", POOLS) if key in wants["settings"]}
        return wants

    def _judge_earlier(self, earlier: dict[str, Any], facts: dict[str, Any]) -> list[Any]:
        """Check for software of others that the platform would replace."""
        names = (TAKE_OVER, DRIVERS, SOURCE, VERSION)
        known = {name: self._value(name) for name in names if name in self.variables}
        accepted = known.get(TAKE_OVER) or []
        drivers = known.get(DRIVERS) if known.get(SOURCE, "nvidia") == "nvidia" else []
        groups = self.variables["group_names"]
        found = list(rules.earlier_software(self.host, earlier, groups, accepted, drivers or []))
        role = Path(self._task.args["roles"], "postgresql/vars/main.yml")
        # upgrade_postgresql.yml comes because of another version, and looks at the clusters itself.
        if "postgresql" in groups and role.exists() and not self.variables.get(UPGRADES):
            defaults = yaml_load(role.read_text())["__postgresql_distribution_versions"]
            system = f"{facts['distribution']} {facts['distribution_major_version']}"
            if version := str(known.get(VERSION) or defaults.get(system, "")):
                found += rules.earlier_clusters(self.host, earlier["postgresql"], version, accepted)
        return found

    def _judge_host(self, wanted: list[dict[str, Any]]) -> dict[str, Any]:
        """Check the host itself, in one connection."""
        args = self._task.args
        address = self.variables.get("ansible_host", self.host)
        reached_at = platform_address({self.host: self.variables}, self.host)
        try:
            written = args.get("written_units", {})
            units = [unit for group, unit in written.items() if group in self.variables["group_names"]]
            people = self._people() if args["accounts"] in self.variables["group_names"] else {}
            driver = ANYWHERE in self.variables and bool(self._value(ANYWHERE))
            options = {
                "people": people,
                "paths": args["paths"],
                "address": reached_at,
                "units": units,
                "docker": self._docker(),
                "driver": driver,
            }
            seen = self._execute_module(module_args=options, task_vars=self.variables)
        except AnsibleConnectionFailure as error:
            self.problems.append(rules.unreachable(self.host, address, " ".join(str(error.message).split())))
            return {}
        except AnsibleError as error:
            seen = {"failed": True, "msg": str(error.message)}
        if seen.get("failed"):
            reason = " ".join(str(seen.get("module_stderr") or seen["msg"]).split())
            self.problems.append(rules.unusable(self.host, reason))
            return {}
        facts = seen["ansible_facts"]
        minimums = self.repaired.get("validate_minimums", args["minimums"])
        self.problems += [
            *rules.unsupported_system(self.host, facts, args["distributions"]),
            *rules.old_python(self.host, seen["python"], args["python"]),
            *rules.too_small(self.host, facts, seen["disks"], rules.strictest(self.variables["group_names"], minimums)),
            *rules.missing_device(self.host, seen["nvidia_devices"], self._wants_device()),
            *rules.missing_engine(
                self.host, seen["docker_listens"] or DOCKER in self.variables["group_names"], self._wanted_runtimes()
            ),
            *rules.taken_ports(self.host, seen["listeners"], wanted),
            *rules.bad_address(self.host, reached_at, seen["address"], self._other_addresses()),
            *self._judge_ssh_port(seen["listeners"]),
            *self._judge_earlier(seen["earlier"], facts),
            *(rules.Problem(f"host {self.host}", what, cure) for what, cure in [*seen["uids"], *seen["docker"]]),
        ]
        # The last fact tells `gathering = smart` not to gather again.
        found = {"ansible_facts": facts | {"_ansible_facts_gathered": True}, "login": seen["login"]}
        if args["accounts"] in self.variables["group_names"]:
            found["system_accounts"] = seen["system_accounts"]
        return found

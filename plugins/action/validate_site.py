"""Check the site as a whole, and fail with all problems of the site and its hosts at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ..plugin_utils import site_rules as rules


class ActionModule(ActionBase):  # type: ignore[misc]
    """Fail with a numbered list of problems, or report how many hosts were checked."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check groups, names, addresses, variables, secrets and files; add the problems that the hosts reported."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.hostvars = self.variables["hostvars"]
        self.product = Path(self._task.args["product"])
        args, groups = self._task.args, {name: list(hosts) for name, hosts in self.variables["groups"].items()}
        ours = [host for home in args["homes"] for host in groups.get(home, ())]
        required = [name for name in args["required_groups"] if name not in args["replaced_groups"]]
        empty = rules.empty_groups(groups, required, args["required_home"])
        missing, names = self._secrets(groups["all"])
        problems = [
            *empty,
            *rules.crowded_groups(groups, args["single_groups"]),
            *rules.stray_hosts(groups, args["homes"]),
            *rules.bad_host_names(ours),
            *rules.shared_addresses({host: self._host_value(host, "ansible_host", host) for host in ours}),
            *self._unknown(groups["all"]),
            *missing,
            *rules.unreadable_ca_files(self._value("extra_ca_certificates"), "extra_ca_certificates"),
            *[found for name, field in args["unique"].items() for found in self._duplicates(name, field)],
            *[found for name, taken in args["reserved"].items() for found in self._reserved(name, taken)],
        ]
        problems += rules.queue_order(self._templar.template(self.variables.get("work_queues")), "work_queues")
        problems += rules.bad_services(self._value("inference_services"), "inference_services")
        days = "prediction_log_days"
        problems += rules.not_days(self._templar.template(self.variables.get(days, 0)), days)
        problems += rules.uneven_own_certificates(self._templated("own_certificates"), ours)
        problems += rules.unknown_roles(self._value("platform_users"), "platform_users")
        problems += rules.weak_secrets(self._all_secrets(groups["all"]), args["given"], self._cure())
        looked_at = [self._host_value(host, "__validate_host", {}) for host in self.variables["ansible_play_hosts_all"]]
        problems += [rules.Problem(*problem) for host in looked_at for problem in host.get("problems", ())]
        if not empty:  # without a host, no address can be computed, and reporting that helps nobody
            problems += rules.unresolved(self._unresolved(), names)
        problems = list(dict.fromkeys(problems))
        losses = {name: loss for name, loss in args["optional_groups"].items() if not groups.get(name)}
        if losses:
            result["warnings"] = [f"no host in group `{name}`: {loss}" for name, loss in losses.items()]
        if problems:
            return result | {"failed": True, "msg": rules.report(problems)}
        return result | {"msg": f"{len(ours)} hosts checked, no problem found"}

    def _value(self, name: str) -> list[Any]:
        """Return a list of the site's; empty when it cannot be computed, which its role's spec then reports."""
        value = self._templated(name)
        return value if isinstance(value, list) else []

    def _templated(self, name: str) -> Any:
        """Return a variable of the site's; None when it cannot be computed."""
        try:
            return self._templar.template(self.variables.get(name))
        except AnsibleError:
            return None

    def _host_value(self, host: str, name: str, default: Any) -> Any:
        return self.hostvars[host].get(name, default) if host in self.hostvars else default

    def _duplicates(self, name: str, field: str) -> list[Any]:
        values = [entry[field] for entry in self._value(name) if isinstance(entry, dict) and field in entry]
        return list(rules.duplicates(f"`{name}`, field {field}", values))

    def _reserved(self, name: str, taken: list[str]) -> list[Any]:
        names = [entry.get("name") for entry in self._value(name) if isinstance(entry, dict)]
        return list(rules.reserved_names(names, taken, name))

    def _unresolved(self) -> dict[tuple[str, str], list[str]]:
        """Return (variable, reason) → the hosts on which it cannot be computed."""
        found: dict[tuple[str, str], list[str]] = {}
        for host in self.variables["ansible_play_hosts_all"]:
            for variable, reason in self._host_value(host, "__validate_host", {}).get("unresolved", ()):
                found.setdefault((variable, reason), []).append(host)
        return found

    def _site_files(self) -> list[Path]:
        """Return the inventory's own files, without those behind the link to the product's variables."""
        found = []
        for source in map(Path, self.variables["ansible_inventory_sources"]):
            places = [Path(place) for place, _, _ in os.walk(source)] if source.is_dir() else [source.parent]
            found += [path for place in places for path in sorted(place.iterdir()) if path.suffix in (".yml", ".yaml")]
        return found

    def _all_secrets(self, hosts: list[str]) -> dict[str, Any]:
        """Return the secrets that the site sets, for all hosts or for a single one."""
        secrets = {name: value for name, value in self.variables.items() if name.startswith("vault_")}
        for host in hosts:
            for name in self.hostvars[host]:
                if name.startswith("vault_") and name not in secrets:
                    secrets[name] = self._host_value(host, name, None)
        return secrets

    def _cure(self) -> str:
        """Return how to add secrets to this inventory."""
        inventory = self._short(Path(self.variables["ansible_inventory_sources"][0]))
        return str(self._task.args["cure"].format(inventory=inventory))

    def _secrets(self, hosts: list[str]) -> tuple[list[Any], list[str]]:
        """Return the problems with secrets, and the names of those that are missing."""
        args, secrets, cure = self._task.args, self._all_secrets(hosts), self._cure()
        needed = rules.referenced_secrets(sorted((self.product / "group_vars/all").rglob("*.yml")))
        missing = rules.missing_secrets(needed, secrets, cure)
        names = [name for name in needed if not secrets.get(name)]
        for name, wanted in args["keys"].items():
            if name not in names:
                people = [entry.get("name") for entry in self._value(wanted["people"]) if isinstance(entry, dict)]
                absent = rules.missing_keys(name, secrets.get(name), [*wanted["always"], *people], cure)
                missing += absent
                names += [name] * bool(absent)
        return missing, names

    def _unknown(self, hosts: list[str]) -> list[Any]:
        """Return the variables that the site sets and nothing reads."""
        names = {name for host in hosts for name in self.hostvars[host] if not name.startswith(("_", "ansible_"))}
        choices = rules.settings((self.product / "group_vars/all/main.yml").read_text())
        known: set[str] = set()
        for path in (self.product / "group_vars/all").rglob("*.yml"):
            known |= rules.settings(path.read_text())
        roles = [path for path in (self.product / "roles").iterdir() if path.is_dir()]
        for role in roles:
            for path in (*role.glob("defaults/*.yml"), *role.glob("vars/*.yml")):
                known |= rules.settings(path.read_text())
            for path in role.glob("meta/argument_specs.yml"):
                for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
                    known |= set(entry.get("options", {}))
        prefixes = [f"{role.name}_" for role in roles]
        return list(rules.unknown_variables(names, known, prefixes, choices, self._task.args["renamed"], self._origin))

    def _origin(self, name: str) -> str:
        """Return the place that sets a variable, in a form to append to its name."""
        setting = re.compile(rf"\b{name}['\"]?\s*:")
        for path in self._site_files():
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if setting.search(line.split("#")[0]):
                    return f" ({self._short(path)}:{number})"
        return ""

    @staticmethod
    def _short(path: Path) -> str:
        relative = os.path.relpath(path)
        return str(path) if relative.startswith("..") else relative

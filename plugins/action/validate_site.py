"""Check the site as a whole, and fail with all problems of the site and its hosts at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ..filter.wiring import address as platform_address
from ..plugin_utils import site_choices
from ..plugin_utils import site_rules as rules

PEOPLE = "platform_users"
PRODUCT = "00-product"  # the folder of the product's variables in every inventory


class ActionModule(ActionBase):  # type: ignore[misc]
    """Fail with a numbered list of problems, or report how many hosts were checked."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check groups, names, addresses, variables, secrets and files; add the problems that the hosts reported."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.hostvars = self.variables["hostvars"]
        self.product = Path(self._task.args["product"])
        args, groups = self._task.args, {name: list(hosts) for name, hosts in self.variables["groups"].items()}
        looked_at = [self._host_value(host, "__validate_host", {}) for host in self.variables["ansible_play_hosts_all"]]
        judged = self._judge_choices()
        ours = [host for home in args["homes"] for host in groups.get(home, ())]
        reached_at = {host: platform_address(self.hostvars, host) for host in ours}
        required = [name for name in args["required_groups"] if name not in args["replaced_groups"]]
        empty = rules.empty_groups(groups, required, args["required_home"])
        named, names_taken = self._taken_names(judged, looked_at, groups.get(args["homes"][0], []))
        missing, names = self._secrets(groups["all"], names_taken)
        problems = [
            *empty,
            *rules.crowded_groups(groups, args["single_groups"]),
            *rules.stray_hosts(groups, args["homes"]),
            *rules.bad_host_names(ours),
            *rules.shared_addresses(reached_at),
            *rules.mixed_addresses({host: reached_at[host] for host in groups.get(args["homes"][0], ())}),
            *self._unknown(groups["all"]),
            *self._refused(looked_at),
            *named,
            *missing,
            *rules.unreadable_ca_files(self._value("extra_ca_certificates"), "extra_ca_certificates"),
            *[
                found
                for name, fields in args["unique"].items()
                for field in fields
                for found in self._duplicates(name, field)
            ],
        ]
        domain, below = self._templated("platform_domain"), self._templated("__validate_names") or []
        problems += rules.domain_of_a_host(str(domain), below, groups["all"])
        problems += rules.queue_order(self._templated("work_queues"), "work_queues")
        problems += rules.pools_without_a_limit(self._templated("worker_limits"), groups, "worker_limits")
        problems += rules.contradicting_services(self._value("inference_services"), "inference_services")
        problems += rules.strangers(self._value("docker_users"), self.raw_users, "docker_users", PEOPLE)
        problems += rules.uneven_own_certificates(self._templated("own_certificates"), ours)
        unchecked = {*args["given"], *(fault.variable for fault in judged.faults if len(fault.path) == 1)}
        problems += rules.weak_secrets(self._all_secrets(groups["all"]), unchecked, self._cure())
        told = any(problem.where.startswith(("variable", "secret")) for problem in problems)
        problems += [rules.Problem(*problem) for host in looked_at for problem in host.get("problems", ())]
        if not empty:  # without a host, no address can be computed, and reporting that helps nobody
            problems += rules.unresolved(self._unresolved(told), names)
        problems = list(dict.fromkeys(problems))
        losses = {name: loss for name, loss in args["optional_groups"].items() if not groups.get(name)}
        if losses:
            result["warnings"] = [f"no host in group `{name}`: {loss}" for name, loss in losses.items()]
        if problems:
            return result | {"failed": True, "msg": rules.report(problems)}
        # Ansible shows a message without -v only if this is set, as its module `debug` does.
        return result | {"msg": f"Nothing wrong. {len(ours)} hosts checked.", "_ansible_verbose_always": True}

    def _judge_choices(self) -> site_choices.Choices:
        """Check the choices of this host; from here on, a refused one has a value that nothing stumbles over."""
        judged = site_choices.judge_in(self, self.variables, self.product)
        self.raw_users = self._value("platform_users")
        self.variables = self.variables | judged.repaired
        self._templar.available_variables = self.variables
        return judged

    def _refused(self, looked_at: list[dict[str, Any]]) -> list[Any]:
        """Return the choices that hosts found refused, each once."""
        found = []
        for variable, place, what, cure in dict.fromkeys(
            tuple(one) for host in looked_at for one in host.get("refused", ())
        ):
            if variable.startswith(site_choices.SECRET):
                key = f", key `{place.removeprefix(', ')}`" if place else ""
                ours = variable in self._task.args["given"] or "template" in what
                remedy = cure if ours else f"Remove it from the vault. {self._cure()}"
                found.append(rules.Problem(f"secret `{variable}`{key}", what, remedy))
            else:
                found.append(rules.Problem(f"variable `{variable}`{self._origin(variable)}{place}", what, cure))
        return found

    def _taken_names(
        self, judged: site_choices.Choices, looked_at: list[dict[str, Any]], hosts: list[str]
    ) -> tuple[list[Any], set[str]]:
        """Return the problems with people named like an account that is not theirs, and these names."""
        wrong = {fault.path[1] for fault in judged.faults if fault.path[::2] == (PEOPLE, "name")}
        names = [
            entry["name"]
            for number, entry in enumerate(self.raw_users)
            if number not in wrong and isinstance(entry, dict) and isinstance(entry.get("name"), str)
        ]
        logins = {str(self._host_value(host, "ansible_user", "")) for host in hosts}
        logins |= {str(host["login"]) for host in looked_at if host.get("login")}
        taken = set(self._templated("__validate_accounts") or []) | set(self._task.args["reserved"])
        taken |= {name for host in looked_at for name in host.get("system_accounts", ())}
        problems = rules.names_of_the_operator(names, logins, PEOPLE)
        return problems + rules.reserved_names(names, taken - logins, PEOPLE), (logins | taken) & set(names)

    def _value(self, name: str) -> list[Any]:
        """Return a list of the site's; empty when it cannot be computed, which is told elsewhere."""
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

    def _unresolved(self, told: bool) -> dict[tuple[str, str], list[str]]:
        """Return (variable, reason) → the hosts on which it cannot be computed.

        If the cause may have been told, without those that the site does not set itself: they follow from others.
        """
        found: dict[tuple[str, str], dict[str, None]] = {}
        everywhere = self.variables["ansible_play_hosts_all"]
        for host in everywhere:
            for variable, reason in self._host_value(host, "__validate_host", {}).get("unresolved", ()):
                if not told or self._origin(variable):
                    found.setdefault((variable, reason), {})[host] = None
        return {key: list(hosts) if len(hosts) < len(everywhere) else [] for key, hosts in found.items()}

    def _site_files(self) -> list[Path]:
        """Return the inventory's own files, without the product's variables, which are linked or copied there."""
        found = []
        for source in map(Path, self.variables["ansible_inventory_sources"]):
            places = [Path(place) for place, _, _ in os.walk(source)] if source.is_dir() else [source.parent]
            places = [place for place in places if PRODUCT not in place.parts]
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

    def _secrets(self, hosts: list[str], nobody: set[str]) -> tuple[list[Any], list[str]]:
        """Return the problems with secrets, and the names of those that are missing; `nobody` needs none."""
        args, secrets, cure = self._task.args, self._all_secrets(hosts), self._cure()
        needed = rules.referenced_secrets(sorted((self.product / "group_vars/all").rglob("*.yml")))
        absent: dict[str, list[str]] = {name: [] for name in needed if not secrets.get(name)}
        for name, wanted in args["keys"].items():
            held = secrets.get(name)
            if isinstance(held, dict) and name not in absent:
                people = [entry["name"] for entry in self._value(wanted["people"]) if entry["name"] not in nobody]
                if keys := [key for key in [*wanted["always"], *people] if not held.get(key)]:
                    absent[name] = keys
        return rules.missing_secrets(needed, secrets, absent, cure), list(absent)

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

"""Check one host: the input of its roles, and what module validate_host finds on it. Reports and never fails."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.common.yaml import yaml_load  # libyaml's parser: this is read for every host
from ansible.plugins.action import ActionBase

from ..plugin_utils import site_rules as rules


class ActionModule(ActionBase):  # type: ignore[misc]
    """Return `problems`, `unresolved` (variables that cannot be computed) and the host's facts."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the host that the task runs for, if it belongs to the platform."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.host = self.variables["inventory_hostname"]
        self.problems: list[Any] = []
        self.unresolved: list[tuple[str, str]] = []
        if self._task.args["home"] in self.variables["group_names"]:
            self._judge_roles()
            self.problems += self._judge_certificate()
            result |= self._judge_host(self._wanted_ports())
        return result | {"problems": [list(problem) for problem in self.problems], "unresolved": self.unresolved}

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
                if isinstance(entry, dict):
                    fields = defaultdict(str, entry)
                    number, unit = int(entry.get("port", port.get("default"))), port["unit"].format_map(fields)
                    entry_of = f"the port of {fields['name']} in " if isinstance(value, list) else ""
                    setting = "" if port.get("fixed") else f"{entry_of}{port['variable']}"
                    wanted.append({"port": number, "unit": unit, "setting": setting})
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
        return device["group"] in self.variables["group_names"] and bool(self._value(device["variable"]))

    def _judge_host(self, wanted: list[dict[str, Any]]) -> dict[str, Any]:
        """Check the host itself, in one connection."""
        args = self._task.args
        address = self.variables.get("ansible_host", self.host)
        try:
            seen = self._execute_module(module_args={"paths": args["paths"]}, task_vars=self.variables)
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
        self.problems += [
            *rules.unsupported_system(self.host, facts, args["distributions"]),
            *rules.old_python(self.host, seen["python"], args["python"]),
            *rules.too_small(
                self.host, facts, seen["disks"], rules.strictest(self.variables["group_names"], args["minimums"])
            ),
            *rules.missing_device(self.host, seen["nvidia_devices"], self._wants_device()),
            *rules.taken_ports(self.host, seen["listeners"], wanted),
        ]
        # The last fact tells `gathering = smart` not to gather again.
        return {"ansible_facts": facts | {"_ansible_facts_gathered": True}}

#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Manage MLflow's users, passwords and roles through the server's API."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_users
short_description: Manage MLflow's users, passwords and roles
description:
  - Creates, updates and removes users of MLflow's basic-auth app over the server's API. Users that are not listed are
    removed, except for the administrator that the module works as. What they recorded stays.
  - Gives users that write one role. Gives a user that may change some models a role of their own, and removes it when
    they no longer may.
options:
  socket: {type: path, required: true, description: Unix socket of the server.}
  admin_user: {type: str, required: true, description: Administrator to work as.}
  admin_password: {type: str, required: true, description: Password of the administrator.}
  users:
    type: list
    elements: dict
    required: true
    description: Users that exist. They can read everything.
    suboptions:
      name: {type: str, required: true, description: Login name.}
      password: {type: str, required: true, description: Password.}
      admin: {type: bool, default: false, description: Whether the user is an administrator.}
      write: {type: bool, default: false, description: Whether the user has O(role).}
      models: {type: list, elements: str, default: [], description: Registered models that the user may change.}
  role:
    type: dict
    required: true
    description: Role of the users that write.
    suboptions:
      name: {type: str, required: true, description: Name of the role.}
      permissions: {type: dict, required: true, description: Permissions by type of resource.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Manage users
  metalworks.platform.mlflow_users:
    socket: /run/mlflow/server.sock
    admin_user: admin
    admin_password: "{{ vault_mlflow_admin_password }}"
    users:
      - {name: ada, password: "{{ vault_user_passwords.ada }}", write: true, models: [delay]}
    role: {name: writers, permissions: {experiment: EDIT}}
"""

RETURN = r"""
done:
  type: list
  elements: str
  returned: always
  description: What was (or in check mode would be) changed, without passwords.
"""

import base64
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

from ..module_utils.host_module import HostModule
from ..module_utils.unix_http import SocketHandler

WORKSPACE = "default"
MODELS_OF = "models of "
"""Prefix of the role of a user that may change some models; the user's name follows."""
Grant = tuple[str, str, str]
"""Resource type, pattern of names, permission."""


class Refused(Exception):
    """The server refused a request; the text says which and why."""


class Server:
    """MLflow's REST API, as one user."""

    def __init__(self, socket: str, user: str, password: str) -> None:
        """Prepare requests to this socket as this user."""
        self.socket = socket
        self.authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), SocketHandler(socket))

    def ask(self, method: str, path: str, **values: Any) -> dict[str, Any]:
        """Return the server's answer; values go into the query of a GET, or else into the body."""
        url, body = f"http://localhost/api/{path}", None
        if method == "GET":
            url += f"?{urlencode(values)}" if values else ""
        else:
            body = json.dumps(values).encode()
        headers = {"Authorization": self.authorization, "Content-Type": "application/json"}
        query = urllib.request.Request(url, body, headers, method=method)
        try:
            with self.opener.open(query, timeout=30) as answer:
                return dict(json.loads(answer.read() or b"{}"))
        except urllib.error.HTTPError as error:
            response = " ".join(error.read().decode(errors="replace").split())[:300]
            raise Refused(f"{method} {path}: HTTP {error.code}: {response}") from error
        except OSError as error:
            raise Refused(f"{self.socket} does not answer: {getattr(error, 'reason', error)}") from error

    def lets_in(self) -> bool:
        """Tell whether the server accepts this user and password."""
        try:
            self.ask("GET", "2.0/mlflow/users/current")
        except Refused as error:
            if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 401:
                return False
            raise
        return True


def changes(params: dict[str, Any], dry: bool) -> list[str]:
    """Bring the server to the wanted state; return what was done."""
    server = Server(params["socket"], params["admin_user"], params["admin_password"])
    done: list[str] = []

    def do(what: str, method: str, path: str, **values: Any) -> dict[str, Any]:
        done.append(what)
        return {} if dry else server.ask(method, path, **values)

    roles = {
        each["name"]: each for each in server.ask("GET", "3.0/mlflow/roles/list", workspace=WORKSPACE).get("roles", [])
    }
    grants: dict[str, set[Grant]] = {
        params["role"]["name"]: {(kind, "*", permission) for kind, permission in params["role"]["permissions"].items()}
    }
    for user in params["users"]:
        if user["models"]:
            grants[MODELS_OF + user["name"]] = {("registered_model", model, "EDIT") for model in user["models"]}
    ids = {name: keep_role(server, name, wanted, roles.get(name), do) for name, wanted in grants.items()}
    for name in sorted(roles.keys() - ids.keys()):
        if name.startswith(MODELS_OF):
            do(f"remove role {name}", "DELETE", "3.0/mlflow/roles/delete", role_id=roles[name]["id"])
    has = {name: holders(server, role) if role else set() for name, role in ids.items()}
    present = {user["username"]: user for user in server.ask("GET", "2.0/mlflow/users/list")["users"]}
    for user in params["users"]:
        name, password = user["name"], user["password"]
        found = present.pop(name, None)
        if found is None:
            made = do(f"create {name}", "POST", "2.0/mlflow/users/create", username=name, password=password)
            found = made.get("user", {"id": None, "is_admin": False})
        elif not Server(params["socket"], name, password).lets_in():
            do(f"set password of {name}", "PATCH", "2.0/mlflow/users/update-password", username=name, password=password)
        if bool(found["is_admin"]) != user["admin"]:
            what = f"{name} is {'an' if user['admin'] else 'no'} administrator"
            do(what, "PATCH", "2.0/mlflow/users/update-admin", username=name, is_admin=user["admin"])
        wanted = {MODELS_OF + name} & ids.keys() | ({params["role"]["name"]} if user["write"] else set())
        for role in sorted(ids):
            if (found["id"] in has[role]) != (role in wanted):
                verb, method = ("assign", "POST") if role in wanted else ("unassign", "DELETE")
                what = f"{name} {'has' if role in wanted else 'no longer has'} the role {role}"
                do(what, method, f"3.0/mlflow/roles/{verb}", username=name, role_id=ids[role])
    for name in sorted(present.keys() - {params["admin_user"]}):
        do(f"remove {name}", "DELETE", "2.0/mlflow/users/delete", username=name)
    return done


def holders(server: Server, role: int) -> set[int]:
    """Return the ids of the users that have a role."""
    answer = server.ask("GET", "3.0/mlflow/roles/users/list", role_id=role)
    return {each["user_id"] for each in answer.get("assignments", [])}


def keep_role(server: Server, name: str, wanted: set[Grant], role: dict[str, Any] | None, do: Any) -> int | None:
    """Give a role exactly these permissions; return its id, or None if check mode did not create it."""
    if role is None:
        made = do(f"create role {name}", "POST", "3.0/mlflow/roles/create", workspace=WORKSPACE, name=name)
        role = made.get("role")
    known = server.ask("GET", "3.0/mlflow/roles/permissions/list", role_id=role["id"]) if role else {}
    missing = set(wanted)
    for each in known.get("role_permissions", []):
        grant = (each["resource_type"], each["resource_pattern"], each["permission"])
        if grant in missing:
            missing.remove(grant)
        else:
            what = f"{name} no longer {grant[2]} on {grant[0]} {grant[1]}"
            do(what, "DELETE", "3.0/mlflow/roles/permissions/remove", role_permission_id=each["id"])
    for kind, pattern, permission in sorted(missing):
        do(
            f"{name} may {permission} {kind} {pattern}",
            "POST",
            "3.0/mlflow/roles/permissions/add",
            role_id=role["id"] if role else None,
            resource_type=kind,
            resource_pattern=pattern,
            permission=permission,
        )
    return int(role["id"]) if role else None


def main() -> None:
    """Read the arguments and converge."""
    text = {"type": "str", "required": True}
    secret = {**text, "no_log": True}
    switch = {"type": "bool", "default": False}
    module = HostModule(
        argument_spec={
            "socket": {"type": "path", "required": True},
            "admin_user": text,
            "admin_password": secret,
            "users": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": text,
                    "password": secret,
                    "admin": switch,
                    "write": switch,
                    "models": {"type": "list", "elements": "str", "default": []},
                },
            },
            "role": {
                "type": "dict",
                "required": True,
                "options": {"name": text, "permissions": {"type": "dict", "required": True}},
            },
        },
        supports_check_mode=True,
    )
    try:
        done = changes(module.params, module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"cannot manage MLflow's users: {error}")
    module.exit_json(changed=bool(done), done=done)


if __name__ == "__main__":
    main()

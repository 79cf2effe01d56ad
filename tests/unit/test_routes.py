"""Permissions: the route tables contain exactly the routes of the installed versions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import ROOT, load, read_yaml

routes = load("plugins/filter/routes.py")
TABLES = {name: f"roles/{name}/files/routes.yml" for name in ("mlflow", "prefect_server")}
ALL = """
import json, sys
from starlette.routing import Mount

def walk(found, prefix=""):
    for one in found:
        if isinstance(one, Mount):
            inner = getattr(one, "routes", None)
            yield from walk(inner, prefix + one.path) if inner else [("*", prefix + one.path + "/{rest:path}")]
        elif hasattr(one, "original_router"):  # FastAPI builds these at the first request
            yield from walk(one.original_router.routes, prefix + one.include_context.prefix)
        else:
            for verb in (getattr(one, "methods", None) or {"WS"}) - {"HEAD", "OPTIONS"}:
                yield verb, prefix + one.path
"""
MLFLOW = """
from mlflow.server.auth import create_app
app = create_app()
found = [one for one in walk(app.routes) if one != ("*", "/{rest:path}")]  # the mount of the following routes
from mlflow.server import app as flask_app
for rule in flask_app.url_map.iter_rules():
    found += [(verb, rule.rule) for verb in rule.methods - {"HEAD", "OPTIONS"}]
json.dump(found, sys.stdout)
"""
PREFECT = """
from prefect.server.api.server import create_app
json.dump(list(walk(create_app().routes)), sys.stdout)
"""


def normal(path: str) -> str:
    """Return a path with FastAPI's and Flask's parameters in a common form."""
    path = re.sub(r"<(?:(\w+):)?(\w+)>", lambda one: f"{{{one[2]}{':path' if one[1] == 'path' else ''}}}", path)
    return re.sub(r"\{(\w+)(:path)?[^}]*\}", lambda one: f"{{{one[2] or ''}}}", path)


def installed(program: str, folder: Path) -> set[tuple[str, str]]:
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        "admin_password = a-password-of-a-test\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = os.environ | {
        "_MLFLOW_SGI_NAME": "uvicorn",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of a test",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
    }
    asked = subprocess.run(
        [sys.executable, "-c", ALL + program], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    return {(verb, normal(path)) for verb, path in json.loads(asked.stdout)}


def compare(found: set[tuple[str, str]], table: dict[str, Any]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return the routes that are not in the table, and the entries without a route."""
    decided = [(verb, normal(path), without) for _, verb, path, without in routes.lines(table)]
    kinds = {
        one: re.compile(f"{routes.ANY if one[0] == '*' else one[0]} {routes.pattern(one[1], one[2])}")
        for one in decided
        if one[0] == "*" or one[2]
    }
    plain = {(verb, path) for verb, path, without in decided if verb != "*" and not without}

    def told(one: tuple[str, str]) -> set[Any]:
        """Return the table's key for a route: the route itself, or its kind."""
        asked = f"{'GET' if one[0] == '*' else one[0]} {one[1].replace('{}', 'x').replace('{:path}', 'x')}"
        return {one} & plain | {kind for kind, pattern in kinds.items() if pattern.fullmatch(asked)}

    used = {one: told(one) for one in found}
    nobodys = {one for one, by in used.items() if not by}
    idle = (plain | set(kinds)) - {kind for by in used.values() for kind in by}
    # One line covers both prefixes, even if the server has only one.
    return nobodys, {one for one in idle if not one[1].startswith(tuple(table.get("same", {}).values()))}


PAGES = {"GET /{}", "GET /{}/{:path}", "GET /"}
"""Prefect's pages, which are files and have no routes in its server."""


@pytest.mark.parametrize(("name", "program"), [("mlflow", MLFLOW), ("prefect_server", PREFECT)])
def test_every_route_of_the_installed_version_is_listed(name: str, program: str, tmp_path: Path) -> None:
    undecided, idle = compare(installed(program, tmp_path), read_yaml(ROOT / TABLES[name]))
    assert not undecided, f"decide in {TABLES[name]} who may call these"
    idle = {" ".join(one[:2]) for one in idle} - (PAGES if name == "prefect_server" else set())
    assert not idle, f"{TABLES[name]} has these, and the installed version does not"


def test_new_and_removed_routes_are_detected() -> None:
    table = {"nobody": "* /gateway/{rest:path}\n", "viewer": "GET /api/runs/{id}\nGET /api/gone\n"}
    found = {("GET", "/api/runs/{}"), ("POST", "/gateway/new/{}"), ("DELETE", "/api/runs/{}")}
    assert compare(found, table) == ({("DELETE", "/api/runs/{}")}, {("GET", "/api/gone")})


def who(table: dict[str, Any], asked: str) -> str:
    """Return the role that nginx's maps give."""
    found = routes.route_map(table)
    for one in found:
        if one["key"] == asked:
            return str(one["role"])
    for one in found:
        if one["key"].startswith("~") and re.search(one["key"][1:], asked):
            return str(one["role"])
    return "nobody"


TABLE = {
    "same": {"/api/": "/ajax-api/"},
    "nobody": "* /api/secrets\n* /api/secrets/{rest:path}\n",
    "viewer": "GET /api/a.b/{id}\nGET /files/{path:path}\nGET /{folder}/{page:path} except /api/\n",
    "admin": "POST /api/secrets/{id}\nPOST /api/all\n",
}


@pytest.mark.parametrize(
    ("asked", "role"),
    [
        ("GET /api/a.b/1", "viewer"),
        ("GET /ajax-api/a.b/1", "viewer"),
        ("GET /api/axb/1", "nobody"),
        ("GET /api/a.b/1/2", "nobody"),
        ("POST /api/a.b/1", "nobody"),
        ("GET /files/a/b", "viewer"),
        ("GET /files/", "viewer"),
        ("POST /ajax-api/all", "admin"),
        ("POST /api/secrets/1", "nobody"),
        ("DELETE /ajax-api/secrets", "nobody"),
        ("GET /runs/flow-run/1", "viewer"),
        ("GET /api/else/1", "nobody"),
    ],
)
def test_a_route_belongs_to_its_listed_role(asked: str, role: str) -> None:
    assert who(TABLE, asked) == role


@pytest.mark.parametrize("line", ["GET", "GET api/x", "GET /a b", "GET /a but /b"])
def test_a_malformed_line_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="write a verb and a path"):
        routes.route_map({"viewer": f"{line}\n"})


@pytest.mark.parametrize("name", TABLES)
def test_a_route_is_of_one_role(name: str) -> None:
    """Otherwise the result would depend on the table's order."""
    table = read_yaml(ROOT / TABLES[name])
    for role, verb, path, without in routes.lines(table):
        if verb != "*" and not without:
            asked = f"{verb} {re.sub(r'{[^}]+}', 'x', path)}"
            assert who(table, asked) == role, asked


def test_viewers_may_call_what_mlflow_reads_by_post() -> None:
    table = read_yaml(ROOT / TABLES["mlflow"])
    for prefix in ("/api", "/ajax-api"):
        for path in (
            "2.0/mlflow/artifacts/presigned-download-url",
            "2.0/mlflow/experiments/search",
            "2.0/mlflow/logged-models/search",
            "2.0/mlflow/registered-models/get-latest-versions",
            "2.0/mlflow/runs/search",
            "3.0/mlflow/datasets/search",
            "3.0/mlflow/issues/search",
            "3.0/mlflow/traces/batchGetInfos",
            "3.0/mlflow/traces/calculate-filter-correlation",
            "3.0/mlflow/traces/metrics",
            "3.0/mlflow/traces/search",
        ):
            assert who(table, f"POST {prefix}/{path}") == "viewer", path
    assert who(table, "POST /ajax-api/2.0/mlflow/experiments/search-datasets") == "viewer"
    assert who(table, "POST /api/2.0/mlflow/artifacts/presigned-upload-url") == "developer"


def test_routes_that_run_commands_or_hold_secrets_are_refused() -> None:
    mlflow, prefect = (read_yaml(ROOT / path) for path in TABLES.values())
    for asked in (
        "POST /ajax-api/3.0/mlflow/assistant/message",
        "PUT /ajax-api/3.0/mlflow/assistant/config",
        "POST /ajax-api/3.0/jobs/",
        "POST /ajax-api/2.0/mlflow/gateway-proxy",
        "POST /api/3.0/mlflow/gateway/secrets/create",
        "POST /gateway/proxy/any/thing",
        "POST /api/2.0/mlflow/users/create",
        "PATCH /ajax-api/2.0/mlflow/users/update-password",
    ):
        assert who(mlflow, asked) == "nobody", asked
    for asked in ("GET /openapi.json", "GET /api/openapi.json", "GET /docs"):
        assert who(prefect, asked) == "nobody", asked
    assert who(prefect, "POST /api/ui/schemas/validate") == "developer"
    assert who(prefect, "GET /api/block_types/slug/secret/block_documents") == "developer"

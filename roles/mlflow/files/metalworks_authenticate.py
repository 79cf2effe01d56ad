"""Authenticate users with MLflow's basic-auth app, and refuse what neither its permissions nor its checks cover.

MLflow's server loads this by the name in `authorization_function` of auth.ini.
"""

from __future__ import annotations

import json
import re
from typing import Any

from flask import Response, make_response, request
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.server.auth import authenticate_request_basic_auth
from werkzeug.datastructures import Authorization

PROMPT = "Choose whether a model is a prompt when you create it: setting this tag later would take it from its owner."
PLACE = "Experiments keep their files in the object store: leave artifact_location out."
TEXT = "The database cannot store a NUL character or half a surrogate pair: remove it from the text."
ESCAPED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
"""What JSON has in place of such characters, among others."""


def asked() -> dict[str, Any]:
    """Return the request's body as MLflow reads it; older clients send JSON inside a JSON string."""
    found = request.get_json(force=True, silent=True)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


def storable(value: Any) -> bool:
    """Tell whether PostgreSQL takes every text in a value; it ends the request with an error otherwise."""
    if isinstance(value, str):
        return "\0" not in value and not re.search("[\ud800-\udfff]", value)
    if isinstance(value, dict):
        return all(storable(key) and storable(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(storable, value))


def odd_text() -> bool:
    """Tell whether the query or the JSON of a request has text that the database cannot store."""
    if not storable(request.args.to_dict(flat=False)):
        return True
    what = request.path.partition("/mlflow/")[2]
    # An uploaded file may be anything, and be larger than memory.
    if request.mimetype != "application/json" or not what or what == "upload-artifact":
        return False
    return bool(ESCAPED.search(request.get_data())) and not storable(asked())


def objection() -> str:
    """Return why to refuse the request from any user; empty to allow it."""
    if odd_text():
        return TEXT
    what = request.path.partition("/mlflow/")[2]
    if what in ("registered-models/set-tag", "registered-models/delete-tag"):
        return PROMPT if asked().get("key") == IS_PROMPT_TAG_KEY else ""
    if what == "experiments/create":
        body = asked()
        place = str(body.get("artifact_location") or body.get("artifactLocation") or "")
        return PLACE if place and not place.startswith("mlflow-artifacts:") else ""
    return ""


def authenticate() -> Authorization | Response:
    """Return the authenticated user, or the response that refuses the request."""
    found = authenticate_request_basic_auth()
    if isinstance(found, Authorization) and (reason := objection()):
        told = {"error_code": "INVALID_PARAMETER_VALUE", "message": reason}
        return make_response(told, 400)
    return found

"""Authenticate users with MLflow's basic-auth app, and refuse requests that its permissions cannot express.

MLflow's server loads this by the name in `authorization_function` of auth.ini.
"""

from __future__ import annotations

import json
from typing import Any

from flask import Response, make_response, request
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.server.auth import authenticate_request_basic_auth
from werkzeug.datastructures import Authorization

PROMPT = "Choose whether a model is a prompt when you create it: setting this tag later would take it from its owner."
PLACE = "Experiments keep their files in the object store: leave artifact_location out."


def asked() -> dict[str, Any]:
    """Return the request's body as MLflow reads it; older clients send JSON inside a JSON string."""
    found = request.get_json(force=True, silent=True)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


def objection() -> str:
    """Return why to refuse the request from any user; empty to allow it."""
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
    if isinstance(found, Authorization) and (why := objection()):
        told = {"error_code": "INVALID_PARAMETER_VALUE", "message": why}
        return make_response(told, 400)
    return found

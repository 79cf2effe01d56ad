"""Let users of MLflow's basic-auth app in, and refuse what its permissions know no word for.

MLflow's server loads this by its name: `authorization_function` of auth.ini.
"""

from __future__ import annotations

import json
from typing import Any

from flask import Response, make_response, request
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.server.auth import authenticate_request_basic_auth
from werkzeug.datastructures import Authorization

PROMPT = "Whether a model is a prompt is said when it is made: by this tag its owner would lose it."
PLACE = "Files of experiments are in the object store: leave artifact_location out."


def asked() -> dict[str, Any]:
    """Return the request's body as MLflow reads it; older clients send JSON within JSON."""
    found = request.get_json(force=True, silent=True)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


def objection() -> str:
    """Return why the request is refused, whoever sends it; empty if it is not."""
    what = request.path.partition("/mlflow/")[2]
    if what in ("registered-models/set-tag", "registered-models/delete-tag"):
        return PROMPT if asked().get("key") == IS_PROMPT_TAG_KEY else ""
    if what == "experiments/create":
        body = asked()
        place = str(body.get("artifact_location") or body.get("artifactLocation") or "")
        return PLACE if place and not place.startswith("mlflow-artifacts:") else ""
    return ""


def authenticate() -> Authorization | Response:
    """Return who asks, or the refusal."""
    found = authenticate_request_basic_auth()
    if isinstance(found, Authorization) and (why := objection()):
        told = {"error_code": "INVALID_PARAMETER_VALUE", "message": why}
        return make_response(told, 400)
    return found

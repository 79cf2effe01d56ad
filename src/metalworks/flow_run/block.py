"""Make the block of flows' results on Prefect's server: ``python -m metalworks.flow_run.block``."""

from __future__ import annotations

import os
import time
from typing import Any

from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.results import NAME, TYPE, URL

LOOK_SECONDS = 1.0


def make_block(api: Api, url: str) -> bool:
    """Have the block on the server as it should be; tell whether it was changed."""
    wanted: dict[str, Any] = {"basepath": url.rstrip("/"), "settings": {}}
    kind = api.ask("GET", f"/block_types/slug/{TYPE}")["id"]
    documents = api.ask("GET", f"/block_types/slug/{TYPE}/block_documents")
    there = next((document for document in documents if document["name"] == NAME), None)
    if there is None:
        filters = {"block_schemas": {"block_type_id": {"any_": [kind]}}, "limit": 1}
        schema = api.ask("POST", "/block_schemas/filter", filters)[0]["id"]
        body = {"name": NAME, "data": wanted, "block_type_id": kind, "block_schema_id": schema}
        api.ask("POST", "/block_documents/", body)
        return True
    if there["data"].get("basepath") == wanted["basepath"]:
        return False
    api.ask("PATCH", f"/block_documents/{there['id']}", {"data": wanted, "merge_existing_data": False})
    return True


def wait_for_server(api: Api) -> None:
    """Wait until the server answers: it may have been started at the same time. systemd limits how long."""
    told = False
    while True:
        try:
            api.ask("GET", "/health")
        except ApiError as error:
            if not told:
                print(f"{error} Waiting for it.", flush=True)
            told = True
            time.sleep(LOOK_SECONDS)
        else:
            return


def main() -> None:
    """Make the block, or end with the reason why not: systemd tries again."""
    api = Api(os.environ)
    wait_for_server(api)
    try:
        changed = make_block(api, os.environ[URL])
    except ApiError as error:
        raise SystemExit(str(error)) from error
    print(f"Results of flows: {os.environ[URL]} ({'set' if changed else 'as before'}).")


if __name__ == "__main__":
    main()

"""No key can destroy or change another key's objects through the gateway, with any request."""

from __future__ import annotations

from typing import Any

import pytest
from clients import DOMAIN, run, secrets
from test_least_privilege import PEOPLES

from scripts.common import ROOT

ATTACKS = (ROOT / "molecule/object_store/tests/attacks.py").read_text()
HOLDERS = {
    "ml2": PEOPLES,
    "worker-cpu": {*PEOPLES, "flow-results"},
    "mlflow": {"mlflow-artifacts"},
    "inference": {"training-data"},
    "backup": {"training-data", "mlflow-artifacts", "flow-code", "flow-results"},
}
"""Key → versioned buckets in which it attacks an administrator's objects."""


@pytest.mark.parametrize("holder", HOLDERS)
def test_no_key_can_destroy_or_change_another_users_objects(holder: str) -> None:
    vault: dict[str, Any] = secrets()
    asked = {
        "endpoint": f"https://s3.{DOMAIN}",
        "ca": "/etc/metalworks/tls/ca.crt",
        "owner": ["metalworks-root", vault["vault_object_store_root_password"]],
        "keys": {holder: vault["vault_object_store_secret_keys"][holder]},
        "buckets": sorted(HOLDERS[holder]),
        "gateway": True,
    }
    # The program reads more input first; report the attacks that worked, not the exit code.
    program = ATTACKS.replace("from __future__ import annotations\n", "").replace("sys.exit(main())", "main()")
    found = run("dev-1", "python3", program, asked)
    assert found["tried"] > 50
    assert found["worked"] == []

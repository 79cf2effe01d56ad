"""Rotate all secrets and the CA: old ones stop working, and everything that uses them continues to work.

Runs after the access tests and before the search for secrets, which then looks for the new ones.
"""

from __future__ import annotations

import subprocess
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from clients import ask, by_name, import_authority, over_ssh, play, secrets
from test_secrets import HOSTS, search_everywhere

from scripts.lab import hosts as lab_hosts
from scripts.site import make_secrets

S3 = "AWS_ACCESS_KEY_ID=ml1 AWS_SHARED_CREDENTIALS_FILE=/dev/null"
LIST = 'import botocore.session as b; b.get_session().create_client("s3").list_objects_v2(Bucket="training-data")'
# In ml1's environment, except for the key.
ASK_S3 = f"""sudo su - ml1 -c 'read -r key; export {S3} AWS_SECRET_ACCESS_KEY=$key
exec /opt/metalworks/workstation/current/bin/python -c "$(echo {b64encode(LIST.encode()).decode()} | base64 -d)"'"""
ASK_POSTGRESQL = """read -r PGPASSWORD
export PGPASSWORD PGSSLMODE=verify-full PGSSLROOTCERT=/etc/metalworks/tls/ca.crt
psql --host=services-1 --username=mlflow --command='select 1' mlflow"""


def opens(name: str, command: str, secret: str) -> bool:
    """Tell whether a program works with this secret, which it reads from stdin."""
    try:
        over_ssh(name, command, f"{secret}\n")
    except subprocess.CalledProcessError:
        return False
    return True


def let_in(vault: Mapping[str, Any]) -> dict[str, bool]:
    """Return what one user and one service can access with these secrets."""
    login = f"ml1:{vault['vault_user_passwords']['ml1']}"
    key = vault["vault_object_store_secret_keys"]["ml1"]
    password = vault["vault_postgresql_mlflow_password"]
    return {
        "MLflow": ask("mlflow", "/version", login=login)[0] == 200,
        "Prefect": ask("prefect", "/api/admin/version", login=login)[0] == 200,
        "inference": ask("inference", "/delay/version", token=vault["vault_inference_tokens"]["ml1"])[0] == 200,
        "object store": opens("dev-1", ASK_S3, key),
        "PostgreSQL": opens("services-1", ASK_POSTGRESQL, password),
    }


def test_every_secret_is_rotated_and_everything_still_works() -> None:
    import_authority()
    before = secrets()
    assert let_in(before) == dict.fromkeys(let_in(before), True)
    # Rotate the CA, which must be named, and then all others; one run deploys both.
    make_secrets.ensure(lab_hosts.INVENTORY, rotate=make_secrets.CA_KEY)
    printed = play("playbooks/rotate.yml", "--diff", "-vvv")
    after = secrets()
    import_authority()
    both = [*by_name(before).items(), *by_name(after).items()]
    assert [name for name, text in both if text in printed] == []
    kept = {*make_secrets.GIVEN, make_secrets.BACKUP_PASSPHRASE}  # a new passphrase could not read the sets there are
    assert {name for name in before if before[name] == after[name]} == kept
    assert let_in(before) == dict.fromkeys(let_in(before), False)
    gone = by_name({name: value for name, value in before.items() if name not in kept})
    assert search_everywhere(gone) == {name: [] for name in HOSTS}
    assert let_in(after) == dict.fromkeys(let_in(after), True)
    # The play ended with the smoke checks; the example project must work, too.
    play("examples/flights/lab.yml")

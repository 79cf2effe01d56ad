"""A user who is removed from the site has no access; the playbooks that remove them also bring them back."""

from __future__ import annotations

import pytest
import yaml
from clients import as_person, ask, over_ssh, play, secrets
from conftest import Reach

from scripts.common import wait_until
from scripts.lab import hosts as lab_hosts

pytestmark = pytest.mark.usefixtures("authority")

LIST = (
    "/opt/metalworks/workstation/current/bin/python -c "
    '\'import botocore.session as b; b.get_session().create_client("s3").list_objects_v2(Bucket="training-data")\''
)


def test_a_removed_user_has_no_access_anywhere(reach: Reach) -> None:
    people = yaml.safe_load((lab_hosts.INVENTORY / "group_vars/all/site.yml").read_text())["platform_users"]
    playbooks = ("playbooks/services.yml", "playbooks/workstations.yml", "playbooks/inference.yml")
    token = secrets()["vault_inference_tokens"]["ml2"]
    login = "getent shadow ml2 | cut -d: -f8"
    command = "su - ml1 -c %s"
    key = f"AWS_ACCESS_KEY_ID=ml2 AWS_SECRET_ACCESS_KEY=$(cat /tmp/key) AWS_SHARED_CREDENTIALS_FILE=/dev/null {LIST}"
    dev = reach("dev-1")
    over_ssh("dev-1", "tee /tmp/key", secrets()["vault_object_store_secret_keys"]["ml2"])

    def let_in() -> list[bool]:
        return [
            as_person("ml2", "mlflow", "/version")[0] == 200,
            as_person("ml2", "prefect", "/api/admin/version")[0] == 200,
            ask("inference", "/delay/version", token=token)[0] == 200,
            dev.run(command, key).succeeded,
            dev.check_output(login) == "",
        ]

    assert let_in() == [True] * 5
    play(*playbooks, platform_users=[person for person in people if person["name"] != "ml2"])
    try:
        wait_until(lambda: as_person("ml2", "mlflow", "/version")[0] == 401, "MLflow still lets ml2 in", 40)
        assert let_in() == [False] * 5
        assert dev.file("/home/ml2/.aws/credentials").exists
    finally:
        play(*playbooks)
    assert let_in() == [True] * 5
    dev.run_expect([0], "rm /tmp/key")

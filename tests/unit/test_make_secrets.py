"""scripts/make_secrets.py: missing secrets come into being, standing ones stay, none is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scripts import make_secrets
from scripts.common import ROOT, ProblemError

HOSTS = "services: {hosts: {a: {ansible_host: 127.0.0.1}}}\n"
VARIABLES = "developers: [{name: ada}, {name: grace}]\n"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    directory = tmp_path / "group_vars" / "all"
    directory.mkdir(parents=True)
    (directory / "00-product").symlink_to(ROOT / "group_vars" / "all")
    (directory / "site.yml").write_text(VARIABLES)
    return tmp_path


def vault(inventory: Path) -> Path:
    return inventory / "group_vars" / "all" / "vault.yml"


def test_it_makes_what_is_missing_once_and_says_names_only(
    inventory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["make_secrets", str(inventory)])
    make_secrets.main()
    made = yaml.safe_load(vault(inventory).read_text())
    assert set(made["vault_object_store_secret_keys"]) == {"mlflow", "worker", "ada", "grace"}
    assert vault(inventory).stat().st_mode & 0o777 == 0o600
    said = capsys.readouterr().out
    assert "vault_object_store_root_password" in said
    assert not [value for value in values(made) if value in said]
    make_secrets.main()
    assert capsys.readouterr().out == "complete already\n"
    assert yaml.safe_load(vault(inventory).read_text()) == made


def values(made: dict[str, object]) -> list[str]:
    nested = [value for value in made.values() if isinstance(value, dict)]
    return [value for value in made.values() if isinstance(value, str)] + [v for each in nested for v in each.values()]


def test_a_new_developer_gets_a_key_and_the_others_keep_theirs(inventory: Path) -> None:
    make_secrets.ensure(inventory)
    before = yaml.safe_load(vault(inventory).read_text())
    (inventory / "group_vars" / "all" / "site.yml").write_text(
        "developers: [{name: ada}, {name: grace}, {name: mary}]\n"
    )
    assert make_secrets.ensure(inventory) == ["vault_object_store_secret_keys"]
    after = yaml.safe_load(vault(inventory).read_text())
    assert set(after["vault_object_store_secret_keys"]) - set(before["vault_object_store_secret_keys"]) == {"mary"}
    del after["vault_object_store_secret_keys"]["mary"]
    assert after == before


def test_what_others_give_is_made_only_for_a_lab(inventory: Path) -> None:
    make_secrets.ensure(inventory)
    assert not make_secrets.GIVEN & set(yaml.safe_load(vault(inventory).read_text()))
    assert make_secrets.ensure(inventory, also_given=True) == sorted(make_secrets.GIVEN)


def test_the_given_ones_are_ones_that_exist() -> None:
    assert set(make_secrets.names(make_secrets.EXAMPLE.read_text())) >= make_secrets.GIVEN


def test_an_encrypted_file_is_left_alone(inventory: Path) -> None:
    vault(inventory).write_text("$ANSIBLE_VAULT;1.1;AES256\n00\n")
    with pytest.raises(ProblemError, match="ansible-vault decrypt"):
        make_secrets.ensure(inventory)
    assert vault(inventory).read_text().startswith("$ANSIBLE_VAULT")


def test_secrets_are_long_and_need_no_quoting() -> None:
    made = {make_secrets.new_value() for _ in range(50)}
    assert len(made) == 50
    assert all(len(each) >= 40 and each.replace("-", "").replace("_", "").isalnum() for each in made)


def test_an_inventory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="no inventory directory"):
        make_secrets.ensure(tmp_path / "nowhere")

"""The files that processes of an inference host exchange: types, writers, and docs/serving-files.md agree."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, get_type_hints

import msgspec
import pytest

from metalworks import contracts
from metalworks.model_sync.card import ModelCard
from metalworks.serving.telemetry.metrics import Series, Stats
from tests.unit.repository import ROOT

PAGE = (ROOT / "docs/serving-files.md").read_text()
EXAMPLES = re.findall(r"<!-- (\w+) -->\n```json\n(.*?)```", PAGE, flags=re.DOTALL)


def documents(text: str) -> list[Any]:
    decoder, found, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


@pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_on_the_page_match_the_types(name: str, text: str) -> None:
    kind = getattr(contracts, name)
    if kind is contracts.DesiredVersion:
        kind = dict[str, kind | None]
    for value in documents(text):
        assert (
            msgspec.to_builtins(msgspec.convert(value, kind)) == value
        )  # nothing is missing, unknown or of another type


def test_the_page_has_every_file() -> None:
    files = {value for name, value in vars(contracts).items() if name.isupper() and isinstance(value, str)}
    assert len(files) == 8
    assert {name for name in files if f"`{name}`" not in PAGE} == set()
    assert {name for name, _ in EXAMPLES} >= {"StateFile", "RouteFile", "Facts", "LaunchRequest", "LogLine"}


def test_a_card_is_what_the_follower_writes() -> None:
    assert get_type_hints(contracts.Card).keys() == {each.name for each in dataclasses.fields(ModelCard)}


def test_counts_are_what_worker_processes_write() -> None:
    assert get_type_hints(contracts.SeriesCounts).keys() == {each.name for each in msgspec.structs.fields(Series)}
    assert get_type_hints(contracts.StatsFile).keys() <= {each.name for each in msgspec.structs.fields(Stats)}

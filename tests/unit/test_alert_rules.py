"""roles/monitoring: every alert says what to do, is tested firing and silent, and asks for metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar
from ansible.utils.collection_loader import AnsibleCollectionConfig

from metalworks.serving.telemetry.metrics import Series, Stats, render_metrics
from scripts.docs.site import slug
from scripts.maintenance import dashboards
from scripts.site import build_go
from tests.unit.repository import ROOT, read_yaml, rendered

FILES = ROOT / "roles/monitoring/files"
TEMPLATES = ROOT / "roles/monitoring/templates"
RULES = sorted((FILES / "rules").glob("*.yml"))
TESTS = sorted((ROOT / "tests/alerts").glob("*.yml"))
PAGE = ROOT / "docs/alerts.md"
SEVERITIES = {"critical", "warning", "none"}
BOUNDED = {"host", "job", "service", "pool", "part", "verdict", "name", "mountpoint", "deployment", "le"}
"""Labels by which a rule may group: hosts, what an inventory or a host's set-up lists, and at most 200 deployments."""

STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
GROUPING = re.compile(r"\b(?:by|on|ignoring|group_left|without)\s*\(([^)]*)\)")
AGGREGATION = re.compile(r"\b(?:sum|min|max|avg|count)\s+by\s*\([^)]*\)\s*\(")
METRIC = re.compile(r"(?<![\w$.])([a-zA-Z_:][\w:]*)\b(?!\s*\()\s*(\{[^}]*\})?")
WORDS = {"and", "or", "unless", "offset", "bool"}


@dataclass(frozen=True)
class Rule:
    """An alert."""

    group: str
    name: str
    expr: str
    body: dict[str, Any]


def read_rules() -> Iterator[Rule]:
    """Yield every alert."""
    for file in RULES:
        for group in read_yaml(file)["groups"]:
            for body in group["rules"]:
                yield Rule(group["name"], body["alert"], body["expr"], body)


ALERTS = list(read_rules())
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=[alert.name for alert in ALERTS])


@cache
def known() -> dict[str, set[str]]:
    """Return metric → its labels."""
    sources = read_yaml(ROOT / "tests/unit/known_metrics.yml").values()
    return {name: {"host", "job", *labels} for source in sources for name, labels in source.items()}


def blanked(text: str) -> str:
    """Return an expression with texts and durations replaced by as many other characters."""
    text = STRING.sub(lambda found: '"' + " " * (len(found[0]) - 2) + '"', text)
    return re.sub(r"\[[^]]*\]|\b\d+[smhdwy]\b", lambda found: " " * len(found[0]), text)


def metrics(expr: str) -> list[tuple[str, set[str], int]]:
    """Return each metric of an expression: its name, the labels that are asked for, and its place."""
    bare = GROUPING.sub(lambda found: " " * len(found[0]), blanked(expr))
    return [
        (found[1], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", found[2] or "")), found.start())
        for found in METRIC.finditer(bare)
        if found[1] not in WORDS
    ]


def aggregated(expr: str) -> set[int]:
    """Return the places of an expression that are within an aggregation by labels."""
    bare, places = blanked(expr), set()
    for found in AGGREGATION.finditer(bare):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(bare[end], 0)
            end += 1
        places |= set(range(found.end(), end))
    return places


def grouped(expr: str) -> set[str]:
    """Return the labels by which an expression groups or matches."""
    return {label.strip() for found in GROUPING.finditer(expr) for label in found[1].split(",") if label.strip()}


def test_expressions_are_taken_apart() -> None:
    expr = 'sum by (host, le) (rate(a_total{b!~"c{d",e="f"}[10m])) > 3 and vector(1) unless up offset 1h'
    assert [(name, labels) for name, labels, _ in metrics(expr)] == [("a_total", {"b", "e"}), ("up", set())]
    places = aggregated(expr)
    assert [at in places for _, _, at in metrics(expr)] == [True, False]
    assert grouped(expr) == {"host", "le"}


def test_names_are_unique() -> None:
    names = [alert.name for alert in ALERTS]
    assert len(names) >= 20
    assert sorted(set(names)) == sorted(names)


@each_alert
def test_an_alert_says_what_to_do_and_where_to_read(alert: Rule) -> None:
    assert set(alert.body) <= {"alert", "expr", "for", "labels", "annotations"}
    assert set(alert.body["labels"]) == {"severity"}
    assert alert.body["labels"]["severity"] in SEVERITIES
    assert set(alert.body["annotations"]) == {"summary", "mend", "page"}
    assert all(alert.body["annotations"].values())
    titles = re.findall(r"^## (.+)$", PAGE.read_text(), re.M)
    assert alert.name in titles
    assert alert.body["annotations"]["page"] == slug(alert.name, "-")


def test_the_page_has_no_alert_that_is_gone() -> None:
    titles = [title for title in re.findall(r"^## (.+)$", PAGE.read_text(), re.M) if " " not in title]
    assert sorted(titles) == sorted(alert.name for alert in ALERTS)


@each_alert
def test_an_alert_asks_for_what_is_sent(alert: Rule) -> None:
    found = metrics(alert.expr)
    assert alert.name == "Watchdog" or found
    for name, labels, _ in found:
        assert name in known(), f"nothing sends {name}"
        assert labels <= known()[name], f"{name} has no label {labels - known()[name]}"
    everything = {label for name, _, _ in found for label in known()[name]}
    assert grouped(alert.expr) <= everything


@each_alert
def test_an_alert_has_no_more_labels_than_can_be_counted(alert: Rule) -> None:
    """Whatever people name (versions, experiments, buckets) would make an alert, and a series of it, for each name."""
    assert grouped(alert.expr) <= BOUNDED
    places = aggregated(alert.expr)
    assert [name for name, _, at in metrics(alert.expr) if at not in places] == []
    texts = " ".join(alert.body["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= grouped(alert.expr)


@each_alert
def test_an_alert_is_tested_firing_and_silent(alert: Rule) -> None:
    cases = [
        bool(case.get("exp_alerts"))
        for file in TESTS
        for test in read_yaml(file)["tests"]
        for case in test["alert_rule_test"]
        if (case["groupname"], case["alertname"]) == (alert.group, alert.name)
    ]
    assert set(cases) == ({True} if alert.name == "Watchdog" else {True, False})


def test_our_metrics_of_inference_are_known() -> None:
    stats = Stats(series=[Series("champion", "3", "onnx", {"200": 1})], kinds={"timeout": 1})
    info = [{"role": "champion", "model": "m", "version": "3", "executor": "onnx"}]
    sent: dict[str, set[str]] = {}
    for line in render_metrics(stats, info, 0, 0).splitlines():
        if not line.startswith("#"):
            name, _, labels = line.rpartition(" ")[0].partition("{")
            sent.setdefault(name, {"host", "job", "service"}).update(re.findall(r'(\w+)="', labels))
    assert sent == {name: labels for name, labels in known().items() if name.startswith("metalworks_inference_")}


def run_vmalert_tool(files: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run the tests of these files."""
    command = [str(build_go.ensure("vmalert-tool").binary), "unittest", *(f"--files={file}" for file in files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_vmalert_tool_agrees() -> None:
    done = run_vmalert_tool(TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(TESTS)


@pytest.mark.slow
def test_vmalert_tool_sees_a_broken_rule(tmp_path: Path) -> None:
    text = (FILES / "rules/backups.yml").read_text()
    broken = text.replace('{verdict="backups"}) > 0', '{verdict="backups"}) > 5')
    assert broken != text
    (tmp_path / "backups.yml").write_text(broken)
    test = read_yaml(ROOT / "tests/alerts/backups.yml") | {"rule_files": ["backups.yml"]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = run_vmalert_tool([tmp_path / "test.yml"])
    assert done.returncode != 0
    assert "BackupIll" in done.stdout


# -- Who is told

CHOICES: dict[str, tuple[Any, Any]] = {
    "email_to": ([], ["a@example.org", "b@example.org"]),
    "smtp_user": ("", "metalworks"),
    "webhook_url": ("", "https://hooks.example.org/path"),
    "webhook_token": ("", "secret-token"),
    "slack_url": ("", "https://slack.example.org/secret-hook"),
    "slack_channel": ("", "#ops"),
    "watchdog_url": ("", "https://watch.example.org/ping"),
}
FIXED = {
    "folder": "/etc/metalworks/alertmanager",
    "email_from": "metalworks@example.org",
    "smtp": "mail.example.org:587",
    "smtp_password": "secret-password",
    "smtp_tls": True,
    "watchdog_minutes": 5,
    "repeat_hours": 12,
    "page_url": "https://docs.example.org/docs/alerts.html",
}


def configured(template: str, **choices: Any) -> str:
    """Return a rendered template; what is not given is off."""
    values = FIXED | {name: off for name, (off, _) in CHOICES.items()} | choices
    variables = {f"monitoring_alert_{name}": value for name, value in values.items()}
    variables |= {"ansible_managed": "managed", "ansible_search_path": [str(TEMPLATES.parent)]}
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([])
    return rendered(Templar(loader=DataLoader(), variables=variables), TEMPLATES / template)


@pytest.mark.parametrize("on", list(product([False, True], repeat=len(CHOICES))))
def test_alertmanager_tells_those_who_are_named(on: tuple[bool, ...]) -> None:
    chosen = dict(zip(CHOICES, on, strict=True))
    text = configured("alertmanager.yml.j2", **{name: CHOICES[name][chosen[name]] for name in CHOICES})
    assert "secret-" not in text
    config = yaml.safe_load(text)
    receivers = {one.pop("name"): one for one in config["receivers"]}
    watchdog = config["route"]["routes"][0]
    assert watchdog["receiver"] == ("watchdog" if chosen["watchdog_url"] else "nobody")
    assert receivers["nobody"] == {}
    kinds = {"email_to": "email_configs", "webhook_url": "webhook_configs", "slack_url": "slack_configs"}
    wanted = {kind for choice, kind in kinds.items() if chosen[choice]}
    assert config["route"]["receiver"] == ("people" if wanted else "nobody")
    assert set(receivers.get("people", {})) == wanted
    assert ("global" in config) == chosen["email_to"]
    assert ("smtp_auth_password_file" in text) == (chosen["email_to"] and chosen["smtp_user"])
    assert ("webhook_token" in text) == (chosen["webhook_url"] and chosen["webhook_token"])


def test_alertmanager_knows_the_alerts_that_it_holds_back() -> None:
    config = yaml.safe_load(configured("alertmanager.yml.j2"))
    named = {
        name
        for rule in config["inhibit_rules"]
        for matcher in rule["source_matchers"] + rule["target_matchers"]
        for name in re.findall(r"[A-Z]\w+", matcher)
    }
    assert named <= {alert.name for alert in ALERTS}
    for rule in config["inhibit_rules"]:
        sources = [alert for alert in ALERTS if alert.name in str(rule["source_matchers"])]
        assert [alert.name for alert in sources if not set(rule["equal"]) <= grouped(alert.expr)] == []


def test_messages_are_defined() -> None:
    messages = configured("alerts.tmpl.j2")
    used = re.findall(r'template "([\w.]+)"', configured("alertmanager.yml.j2", email_to=["a@example.org"]))
    assert set(used) == set(re.findall(r'define "([\w.]+)"', messages)) == {"metalworks.subject", "metalworks.text"}
    for part in (".Annotations.summary", ".Annotations.mend", FIXED["page_url"] + "#{{ .Annotations.page }}"):
        assert part in messages


# -- What is seen


def test_dashboards_are_those_of_the_source() -> None:
    committed = {file: file.read_text() for kind in dashboards.KINDS for file in (dashboards.PLACE / kind).iterdir()}
    assert committed == dashboards.files(), "run `make locks`"


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_dashboards_ask_for_what_is_sent(name: str) -> None:
    queries = [
        *(target["expr"] for panel in dashboard(name, "grafana")["panels"] for target in panel.get("targets", ())),
        *(e for row in dashboard(name, "vmui")["rows"] for panel in row["panels"] for e in panel["expr"]),
    ]
    assert queries
    for expr in queries:
        assert metrics(expr), expr
        for metric, labels, _ in metrics(expr):
            assert metric in known(), f"nothing sends {metric}"
            assert labels | grouped(expr) <= known()[metric] | {
                label for other, _, _ in metrics(expr) for label in known()[other]
            }


def dashboard(name: str, kind: str) -> dict[str, Any]:
    """Return a committed dashboard."""
    found: dict[str, Any] = json.loads((dashboards.PLACE / kind / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_vmui_has_no_variables(name: str) -> None:
    text = json.dumps(dashboard(name, "vmui")["rows"])
    assert "$" not in text
    assert "host=~" not in text

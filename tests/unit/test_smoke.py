"""Smoke checks: the verdict (ok, failed, not checked), and that no result is lost."""

from __future__ import annotations

import datetime
import http.server
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.site import smoke
from tests.unit.repository import ROOT, load, read_yaml

client = load("roles/smoke/files/client.py")
module = load("plugins/modules/smoke_host.py")
judge = load("plugins/action/smoke_verdict.py")
PROGRAM = (ROOT / "roles/smoke/files/client.py").read_text()


def check(ok: bool = True, skipped: bool = False, **other: Any) -> dict[str, Any]:
    return {"name": "unit mlflow.service", "ok": ok, "skipped": skipped, "seconds": 0.5, "detail": "why"} | other


def verdict(hosts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = judge.verdict([*hosts.items()], "here")
    return found


# -- The verdict on all hosts' checks


def test_all_checks_passed() -> None:
    found = verdict({"s1": {"checks": [check()]}, "g1": {"checks": [check(skipped=True)]}})
    assert found["ok"]
    assert found["failures"] == []
    assert found["checks"][0]["host"] == "s1"
    assert found["figures"]["checks"] == 2
    assert found["figures"]["checks_skipped"] == 1
    assert all(isinstance(figure, int | float) for figure in found["figures"].values())
    assert smoke.exit_status(found) == smoke.OK


def test_a_failed_check_is_named() -> None:
    found = verdict({"s1": {"checks": [check(), check(ok=False)]}})
    assert not found["ok"]
    assert found["failures"] == ["unit mlflow.service on s1: why"]
    assert smoke.exit_status(found) == smoke.FAILED
    assert "FAILED unit mlflow.service on s1: why" in judge.summary(found)


def test_a_host_that_was_not_reached_is_not_ok() -> None:
    found = verdict({"s1": {"checks": [check()]}, "g1": {"unchecked": "timed out"}})
    assert not found["ok"]
    assert found["unchecked"] == {"g1": "timed out"}
    assert smoke.exit_status(found) == smoke.UNKNOWN


def test_a_failure_outweighs_an_unreached_host() -> None:
    found = verdict({"s1": {"checks": [check(ok=False)]}, "g1": {}})
    assert smoke.exit_status(found) == smoke.FAILED


def test_duplicate_results_and_created_objects_are_not_shown() -> None:
    answers = [("s1", {"checks": [check()]}), ("d1", {"checks": [check(made=["7"])]}), ("s1", {"checks": [check()]})]
    found = judge.verdict(answers, "here")
    assert (found["ok"], found["figures"]["checks"], found["figures"]["hosts"]) == (True, 3, 2)
    assert not [each for each in found["checks"] if "made" in each]
    found = judge.verdict([*answers[:2], ("s1", {"unchecked": "timed out"})], "here")
    assert (found["ok"], found["unchecked"]) == (False, {"s1": "timed out"})


def test_no_check_at_all_is_not_ok() -> None:
    assert not verdict({})["ok"]
    assert smoke.exit_status(verdict({})) == smoke.UNKNOWN
    assert smoke.exit_status(None) == smoke.UNKNOWN


def test_table_ends_with_what_failed() -> None:
    hosts = {"s1": {"checks": [check(ok=False), check(name="fine"), check(name="later", skipped=True)]}, "g1": {}}
    lines = smoke.table(verdict(hosts)).splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "none", "FAILED", "?"]


def test_missing_inventory_is_not_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["smoke", "--inventory", "inventory/nowhere"])
    assert smoke.main() == smoke.UNKNOWN
    assert "inventory/nowhere" in capsys.readouterr().err


def test_a_playbook_that_wrote_no_verdict_could_not_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old verdict must not count for a run that wrote none."""
    old = tmp_path / "smoke.json"
    old.write_text(json.dumps(verdict({"s1": {"checks": [check()]}})))
    monkeypatch.setattr(smoke, "VERDICT", old)
    monkeypatch.setattr(smoke, "play", lambda *_: "what Ansible said")
    monkeypatch.setattr(sys, "argv", ["smoke", "--inventory", "inventory/example"])
    assert smoke.main() == smoke.UNKNOWN
    assert "what Ansible said" in capsys.readouterr().err


def test_the_gpus_alone_have_a_verdict_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played: list[str] = []

    def play(inventory: str, limit: str | None, playbook: str, given: dict[str, Any]) -> str:
        played.append(playbook)
        (tmp_path / "gpu-validate.json").write_text(json.dumps(verdict({"g1": {"checks": [check(name="GPU clocks")]}})))
        return ""

    (tmp_path / "smoke.json").write_text("{}")
    monkeypatch.setattr(smoke, "VERDICT", tmp_path / "smoke.json")
    monkeypatch.setattr(smoke, "play", play)
    monkeypatch.setattr(sys, "argv", ["smoke", "--gpu", "--inventory", "inventory/example"])
    assert smoke.main() == smoke.OK
    assert played == ["gpu_validate"]
    assert (tmp_path / "smoke.json").read_text() == "{}"
    assert "gpu-validate: ok" in capsys.readouterr().out


def test_a_burn_in_gets_its_minutes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played: list[Any] = []

    def play(*given: Any) -> str:
        played.append(given)
        (tmp_path / "gpu-burnin.json").write_text(json.dumps(verdict({"g1": {"checks": [check(name="GPU 1 work")]}})))
        return ""

    monkeypatch.setattr(smoke, "VERDICT", tmp_path / "smoke.json")
    monkeypatch.setattr(smoke, "play", play)
    monkeypatch.setattr(
        sys, "argv", ["smoke", "--burnin", "480", "--force", "--limit", "g1", "-i", "inventory/example"]
    )
    assert smoke.main() == smoke.OK
    assert played == [("inventory/example", "g1", "gpu_burnin", {"burnin_minutes": 480, "burnin_force": True})]
    for wrong in ("0", "-5", "1h", "99999"):
        monkeypatch.setattr(sys, "argv", ["smoke", f"--burnin={wrong}", "-i", "inventory/example"])
        with pytest.raises(SystemExit) as ended:
            smoke.main()
        assert ended.value.code == smoke.UNKNOWN
        assert "use a whole one from 1 to 10080" in capsys.readouterr().err


# -- A client's session on a host


def doing(*lines: str) -> str:
    """Return a program with this `main`."""
    return "\n    ".join(["import json, sys, time\n\ndef main(checks):", *lines]) + "\n"


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(module, "command", lambda session: [session["python"], "-"])
    return {"name": "s", "user": "ada", "python": sys.executable, "checks": []}


def test_session_answers_for_every_check(session: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOUR", "red")
    right = {"name": "right", "kind": "environment", "arguments": {"expected": {"COLOUR": "red"}}}
    wrong = {"name": "wrong", "kind": "environment", "arguments": {"expected": {"COLOUR": "blue"}}}
    verdicts = module.work(session | {"checks": [right, wrong]}, PROGRAM, {}, 30)
    assert [(each["name"], each["ok"]) for each in verdicts] == [("right", True), ("wrong", False)]
    assert "COLOUR is 'red', not 'blue'" in verdicts[1]["detail"]


def test_a_session_may_bring_a_program_of_its_own(session: dict[str, Any]) -> None:
    own = doing(f"print('{client.MARK}' + json.dumps({check(name='GPU clocks')}))")
    sessions = [session | {"name": "own", "checks": [{"name": "GPU"}], "program": own}]
    params = {"units": [], "sessions": sessions, "secrets": {}, "program": doing("sys.exit(1)"), "timeout": 30}
    assert [(each["name"], each["ok"]) for each in module.run_all(params)] == [("GPU clocks", True)]


def test_session_that_dies_fails_what_it_did_not_do(session: dict[str, Any]) -> None:
    program = doing(f"print('{client.MARK}' + json.dumps({check(name='a')}))", "sys.exit('out of memory')")
    verdicts = module.work(session | {"checks": [{"name": "a"}, {"name": "b"}]}, program, {}, 30)
    assert [(each["name"], each["ok"]) for each in verdicts] == [("a", True), ("b", False)]
    assert "out of memory" in verdicts[1]["detail"]


def test_session_that_hangs_is_ended(session: dict[str, Any]) -> None:
    program = doing("time.sleep(60)")
    verdicts = module.work(session | {"checks": [{"name": "a"}]}, program, {}, 1)
    assert [(each["ok"], each["detail"]) for each in verdicts] == [(False, "not done: no answer within 1 s")]


def test_session_that_times_out_removes_what_it_created(session: dict[str, Any], tmp_path: Path) -> None:
    left = tmp_path / "left"
    waits = [f"open('{left}', 'w')", "try: time.sleep(60)", f"finally: __import__('os').remove('{left}')"]
    program = PROGRAM + "\n\ndef waits():\n    import time\n    " + "\n    ".join(waits) + "\nCHECKS['wait'] = waits\n"
    verdicts = module.work(session | {"checks": [{"name": "a", "kind": "wait"}]}, program, {}, 2)
    assert [(each["ok"], each["detail"]) for each in verdicts] == [(False, "not done: no answer within 2 s")]
    assert not left.exists()


def test_session_without_its_program_says_what_to_do(session: dict[str, Any]) -> None:
    verdicts = module.work(session | {"python": "/nowhere/python", "checks": [{"name": "a"}]}, PROGRAM, {}, 5)
    assert "/nowhere/python" in verdicts[0]["detail"]
    assert "site.yml" in verdicts[0]["detail"]


def test_secrets_reach_a_check_by_stdin(session: dict[str, Any]) -> None:
    program = doing("sys.exit(checks[0]['arguments']['password'][::-1] + ' ' + ' '.join(sys.argv))")
    asked = [{"name": "a", "kind": "database", "secret": "mlflow"}]
    verdicts = module.work(session | {"checks": asked}, program, {"mlflow": "hush"}, 30)
    assert "hsuh -" in verdicts[0]["detail"]


def test_sessions_run_one_after_the_other(session: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "order"
    program = doing("time.sleep(checks[0]['wait'])", f"print(checks[0]['name'], file=open('{place}', 'a'))")
    sessions = [
        session | {"name": "first", "checks": [{"name": "1", "wait": 0.5}]},
        session | {"name": "second", "after": "first", "checks": [{"name": "2", "wait": 0}]},
    ]
    module.run_all({"units": [], "sessions": sessions, "program": program, "secrets": {}, "timeout": 30})
    assert place.read_text().split() == ["1", "2"]


def test_environment_files_read_as_systemd_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.env"
    path.write_text(
        '# Ansible managed\nPLAIN="value"\nHARD="a \\"b\\" \\$c \\\\ \\`d\\`"\nURL="postgresql://u@h/d?a=b"\n'
    )
    assert module.env_file(str(path)) == {"PLAIN": "value", "HARD": 'a "b" $c \\ `d`', "URL": "postgresql://u@h/d?a=b"}


# -- Units

STATES = {"active.service": "active", "down.service": "inactive", "inference-a.service": "active"}


def systemd(argv: list[str]) -> str:
    if argv[1] == "list-units":
        return "".join(f"{name} loaded {state} - \n" for name, state in STATES.items())
    if argv[1] == "show":
        return STATES.get(argv[-1], "inactive")
    return "line one\nline two\n"


@pytest.fixture
def _units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "output", systemd)


@pytest.mark.usefixtures("_units")
def test_active_unit_passes() -> None:
    assert [each["ok"] for each in module.look_at({"unit": "active.service"})] == [True]


@pytest.mark.usefixtures("_units")
def test_stopped_unit_is_named_with_its_journal() -> None:
    (found,) = module.look_at({"unit": "down.service"})
    assert not found["ok"]
    assert found["name"] == "unit down.service"
    assert "down.service is inactive" in found["detail"]
    assert "line one | line two" in found["detail"]


@pytest.mark.usefixtures("_units")
def test_missing_unit_fails_unless_optional() -> None:
    assert [each["ok"] for each in module.look_at({"unit": "gone-*.service"})] == [False]
    assert module.look_at({"unit": "gone-*.service", "optional": True}) == []


@pytest.mark.usefixtures("_units")
def test_pattern_means_every_unit_that_fits() -> None:
    assert [each["name"] for each in module.look_at({"unit": "inference-*.service"})] == ["unit inference-a.service"]


# -- Requests to a service


class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        good = self.path == "/good"
        self.send_response(200 if good else 503)
        self.end_headers()
        self.wfile.write(b'{"a": 1}' if good else b"database is gone")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("_units")
def test_active_unit_that_does_not_answer_fails(service: str) -> None:
    assert module.look_at({"unit": "active.service", "url": f"{service}/good"})[0]["ok"]
    sick = module.look_at({"unit": "active.service", "url": f"{service}/sick"})[0]
    assert not sick["ok"]
    assert "answers 503" in sick["detail"]
    assert "does not answer" in module.answer("http://127.0.0.1:9/", "")
    assert "does not answer" in module.answer("http://localhost/", "/nowhere/api.sock")


def test_requests_keep_the_reason(service: str) -> None:
    assert client.request(f"{service}/good", authorization="Bearer x") == {"a": 1}
    with pytest.raises(OSError, match="database is gone"):
        client.request(f"{service}/sick", authorization="Bearer x")
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9"):
        client.request("http://127.0.0.1:9/", authorization="Bearer x")


def test_waiting_times_out() -> None:
    assert client.wait_for(lambda: "now", 1, "nothing") == "now"
    with pytest.raises(TimeoutError, match="no end within 0 s"):
        client.wait_for(lambda: None, 0, "no end")


def test_missing_model_is_skipped_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> str:
        raise client.NotApplicable("no model delay@champion in the registry yet")

    monkeypatch.setitem(client.CHECKS, "prediction", missing)
    client.main([{"name": "prediction of delay", "kind": "prediction"}])
    said = json.loads(capsys.readouterr().out.removeprefix(client.MARK))
    assert said["skipped"]
    assert "no model delay@champion" in said["detail"]


@pytest.mark.parametrize(
    ("following", "serving", "words"),
    [
        (
            {"state": "refused", "reason": "no wheel of sauce"},
            {},
            "champion version 5: no wheel of sauce (journalctl -u model-",
        ),
        (
            {"state": "installed"},
            {"5": {"reason": "it answers other"}},
            "champion version 5: it answers other (journalctl -u inf",
        ),
        ({"state": "installed"}, {"4": {"reason": "long ago"}}, ""),
        ({"state": "waiting"}, {}, ""),
    ],
)
def test_refused_version_is_reported_with_its_reason(
    tmp_path: Path, following: dict[str, str], serving: dict[str, Any], words: str
) -> None:
    state, status = tmp_path / "state", tmp_path / "status"
    state.write_text(json.dumps({"champion": {"version": "4", "executor": "onnx"}, "refused": serving}))
    status.write_text(json.dumps({"mlflow": "answers", "roles": {"champion": {"version": "5", **following}}}))
    if words:
        with pytest.raises(AssertionError) as error:
            client.versions("delay", str(state), str(status))
        assert words in str(error.value)
    else:
        assert client.versions("delay", str(state), str(status)) == "champion version 4 as onnx"


def test_follower_of_an_earlier_release_is_reported(tmp_path: Path) -> None:
    state, status = tmp_path / "state", tmp_path / "status"
    state.write_text(json.dumps({"champion": {"version": "4", "executor": "onnx"}, "refused": {}}))
    status.write_text(json.dumps({"mlflow": "answers", "roles": {"champion": {"version": "5", "is": "refused"}}}))
    with pytest.raises(AssertionError, match="systemctl restart model-follower"):
        client.versions("delay", str(state), str(status))


def test_follower_without_a_registry_is_reported(tmp_path: Path) -> None:
    state, status = tmp_path / "state", tmp_path / "status"
    state.write_text(json.dumps({"champion": None, "refused": {}}))
    roles = {"champion": {"version": None, "state": "missing"}}
    status.write_text(json.dumps({"mlflow": "no route to host", "roles": roles}))
    with pytest.raises(AssertionError, match="cannot ask MLflow for new versions: no route to host"):
        client.versions("delay", str(state), str(status))
    status.write_text(json.dumps({"mlflow": "answers", "roles": roles}))
    with pytest.raises(client.NotApplicable, match="nothing is served yet"):
        client.versions("delay", str(state), str(status))


def test_smoke_flow_is_where_the_check_expects_it() -> None:
    assert "metalworks.smoke_flow.smoke" in PROGRAM
    assert "def smoke()" in (ROOT / "src/metalworks/smoke_flow.py").read_text()


# -- Cleanup


class Bucket:
    """A fake versioned bucket whose store can refuse to delete versions."""

    class exceptions:
        ClientError = KeyError

    def __init__(self, refuse: bool = False) -> None:
        self.kept: list[tuple[str, str]] = []
        self.hidden: set[str] = set()
        self.content: dict[str, bytes] = {}
        self.refuse = refuse

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        self.content[Key] = Body
        self.kept.append((Key, f"v{len(self.kept)}"))
        self.hidden.discard(Key)

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        return {"Body": io.BytesIO(self.content[Key])}

    def delete_object(self, Bucket: str, Key: str, VersionId: str = "") -> None:
        if VersionId and self.refuse:
            raise KeyError("AccessDenied")
        if VersionId:
            self.kept.remove((Key, VersionId))
        else:
            self.hidden.add(Key)
            self.kept.append((Key, f"v{len(self.kept)}"))

    def get_paginator(self, call: str) -> Any:
        def paginate(Bucket: str, Prefix: str) -> list[Any]:
            below = [(key, version) for key, version in self.kept if key.startswith(Prefix)]
            if call == "list_objects_v2":
                return [{"Contents": [{"Key": key} for key in {key for key, _ in below} - self.hidden]}]
            return [{"Versions": [{"Key": key, "VersionId": version} for key, version in below]}]

        return SimpleNamespace(paginate=paginate)


def test_an_object_is_removed_with_all_its_versions_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    monkeypatch.setattr(client, "s3_client", lambda: bucket)
    bucket.put_object("b", f"{client.PLACE}/objects/theirs", b"x")
    before = [*bucket.kept]
    assert client.objects(["b"]) == "object written, read and deleted in b"
    assert bucket.kept == before


def test_a_store_that_denies_deleting_versions_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "s3_client", lambda: Bucket(refuse=True))
    assert client.objects(["b"]).endswith("; 2 old versions remain in b: this key may not delete them")


def test_everything_below_a_prefix_is_removed() -> None:
    bucket = Bucket()
    for key in ("0/place/tag/a", "0/place/tag/b/c", "0/place/tagged"):
        bucket.put_object("b", key, b"x")
    assert client.clear(bucket, "b", "0/place/tag/") == ""
    assert [key for key, _ in bucket.kept] == ["0/place/tagged"]


def test_checks_write_only_where_they_can_delete_permanently() -> None:
    scratch = read_yaml(ROOT / "group_vars/all/parts/object_store.yml")["object_store_scratch"]
    assert scratch == [f"{client.PLACE}/", f"0/{client.PLACE}/"]


NOW = "2026-01-02T03:04:05.678900Z"
LONG_AGO = "2025-01-02T03:04:05.678900Z"


@pytest.mark.parametrize(
    ("name", "created", "deployment", "entrypoint", "ours"),
    [
        ("metalworks-smoke-cpu-0123abcd", LONG_AGO, client.PLACE, client.ENTRYPOINT, True),
        ("metalworks-smoke-cpu-0123abcd", NOW, client.PLACE, client.ENTRYPOINT, False),
        ("metalworks-smoke-cpu-of-mine", LONG_AGO, client.PLACE, client.ENTRYPOINT, False),
        ("metalworks-smoke-cpu-2-0123abcd", LONG_AGO, client.PLACE, client.ENTRYPOINT, False),
        ("metalworks-smoke-cpu-0123abcd", LONG_AGO, client.PLACE, "flow.py:mine", False),
        ("metalworks-smoke-cpu-0123abcd", LONG_AGO, "mine", client.ENTRYPOINT, False),
    ],
)
def test_leftover_flows_of_checks_are_recognised(
    monkeypatch: pytest.MonkeyPatch, name: str, created: str, deployment: str, entrypoint: str, ours: bool
) -> None:
    monkeypatch.setattr(client.time, "time", lambda: datetime.datetime.fromisoformat(NOW).timestamp() + 60)
    answers = {
        "/flows/filter": [{"id": "f", "name": name, "created": created}],
        "/deployments/filter": [{"id": "d", "name": deployment, "entrypoint": entrypoint}],
        "/flow_runs/filter": [{"id": "r", "deployment_id": "d"}],
    }
    assert client.left_flows(lambda path, *_: answers[path], "cpu") == (["f"] if ours else [])
    answers["/flow_runs/filter"].append({"id": "s", "deployment_id": None})
    assert client.left_flows(lambda path, *_: answers[path], "cpu") == [], "somebody ran it by hand"


def test_a_flow_is_removed_with_its_runs() -> None:
    asked: list[tuple[str, str]] = []

    def ask(path: str, method: str = "GET", body: Any = None) -> Any:
        asked.append((method, path))
        return [{"id": "r"}, {"id": "s"}] if path == "/flow_runs/filter" else None

    client.remove_flow(ask, "f")
    assert asked[1:] == [("DELETE", "/flow_runs/r"), ("DELETE", "/flow_runs/s"), ("DELETE", "/flows/f")]


def test_a_session_removes_folders_of_killed_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(client.tempfile, "tempdir", str(tmp_path))
    old, new, theirs = (
        tmp_path / name for name in (f"{client.PLACE}-01abc_yz", f"{client.PLACE}-01abc_xx", f"{client.PLACE}-theirs-x")
    )
    for folder in (old, new, theirs):
        (folder / "in").mkdir(parents=True)
    for folder in (old, theirs):
        os.utime(folder, (0, 0))
    before = signal.getsignal(signal.SIGTERM)
    client.main([])
    signal.signal(signal.SIGTERM, before)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, theirs.name}


def test_a_session_passes_over_folders_that_others_remove_just_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone, old = (tmp_path / f"{client.PLACE}-{tail}" for tail in ("0gone_yz", "1left_yz"))
    old.mkdir()
    os.utime(old, (0, 0))
    monkeypatch.setattr(client.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(client.Path, "glob", lambda *_: iter([gone, old]))  # `gone` was still there when it was listed
    client.sweep()
    assert not old.exists()


def test_objects_of_a_failed_check_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> str:
        client.made.append("7")
        raise RuntimeError("no model")

    monkeypatch.setitem(client.CHECKS, "model", fails)
    client.do([{"name": "a", "kind": "model"}, {"name": "b", "kind": "environment", "arguments": {"expected": {}}}])
    first, second = (json.loads(line.removeprefix(client.MARK)) for line in capsys.readouterr().out.splitlines())
    assert (first["ok"], first["made"]) == (False, ["7"])
    assert "made" not in second

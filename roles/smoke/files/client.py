"""Real work on the platform, done as one of its clients.

Role smoke appends a call of `main` to this file and pipes it into the Python of a client's environment on a host, as
the client's user. Each check prints one line. It removes what it created on the platform at once and by id, so that
the hundredth run finds what the first one found. If a check was killed, the next run removes what it left, but only
what was provably created by a check. Packages of the client's environment are imported only where a check needs them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "smoke-result "
PLACE = "metalworks-smoke"  # prefix of every object, experiment, flow and folder that a check creates
LEFT_SECONDS = 3600.0  # no check takes that long: anything older was left by a killed one


class NotApplicable(Exception):
    """There is nothing to check yet; the text says what is missing."""


def request(url: str, method: str = "GET", body: Any = None, *, authorization: str) -> Any:
    """Return a URL's response as JSON, or as text if it is not JSON; an error's body goes into the exception."""
    data = None if body is None else json.dumps(body).encode()
    # The last header makes an inference service keep the request out of its log and away from its shadow.
    headers = {"Content-Type": "application/json", "Authorization": authorization, "Metalworks-Check": "smoke"}
    query = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(query, timeout=30) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        error.msg = f"{error.msg}: {error.read().decode(errors='replace')[:300]}"
        raise
    except (urllib.error.URLError, TimeoutError) as error:
        raise ConnectionError(f"{url}: {getattr(error, 'reason', error)}") from error
    return json.loads(text) if text.strip()[:1] in ("{", "[") else text


def basic(user: str, password: str) -> str:
    """Return the value of a Basic Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def wait_for(ready: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the first true result of `ready`; raise TimeoutError with `what` after the time limit."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {seconds:.0f} s")
        time.sleep(0.3)
    return answer


# -- Facts


# All in one transaction, so that no table is left behind.
ROW = (
    "CREATE TABLE metalworks_smoke (word text)",
    "INSERT INTO metalworks_smoke VALUES ('iron')",
    "SELECT word FROM metalworks_smoke",
    "DROP TABLE metalworks_smoke",
)


def database(host: str, port: int, ca: str, database: str, user: str, password: str) -> str:
    """Write and read one row as a database's owner, with the driver of the owner's program."""
    where: dict[str, Any] = {"host": host, "port": port, "user": user, "password": password}
    if importlib.util.find_spec("psycopg2"):
        tls = {"sslmode": "verify-full", "sslrootcert": ca}
        psycopg2 = importlib.import_module("psycopg2")
        with contextlib.closing(psycopg2.connect(dbname=database, connect_timeout=10, **tls, **where)) as connection:
            with connection, connection.cursor() as cursor:
                for statement in ROW[:3]:
                    cursor.execute(statement)
                row = cursor.fetchone()
                cursor.execute(ROW[3])
            version = connection.server_version // 10000
    else:
        asyncpg = importlib.import_module("asyncpg")

        async def work() -> tuple[Any, int]:
            connection = await asyncpg.connect(
                database=database, timeout=10, ssl=ssl.create_default_context(cafile=ca), **where
            )
            try:
                async with connection.transaction():
                    for statement in ROW[:2]:
                        await connection.execute(statement)
                    found = await connection.fetchrow(ROW[2])
                    await connection.execute(ROW[3])
                return found, connection.get_server_version().major
            finally:
                await connection.close()

        row, version = asyncio.run(work())
    if not row or row[0] != "iron":
        raise AssertionError(f"wrote 'iron' and read {row!r}")
    return f"row written and read in {database} on {host}, PostgreSQL {version}"


# -- Objects


def s3_client() -> Any:
    """Return a client of the object store, with the key from the environment or ~/.aws."""
    botocore = importlib.import_module("botocore.session")
    settings = importlib.import_module("botocore.config")
    config = settings.Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2})
    return botocore.get_session().create_client(
        "s3",
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ["MLFLOW_S3_ENDPOINT_URL"],
        region_name=os.environ.get("AWS_DEFAULT_REGION"),
        config=config,
    )


def forget(client: Any, bucket: str, prefix: str) -> str:
    """Delete the old versions that a bucket keeps below a prefix; return a note about those that remain.

    An external store may deny its keys that. The platform's own store allows it where the checks put their objects.
    """
    refused = 0
    try:
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
            for kept in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                try:
                    client.delete_object(Bucket=bucket, Key=kept["Key"], VersionId=kept["VersionId"])
                except client.exceptions.ClientError:
                    refused += 1
    except client.exceptions.ClientError:  # this key may not even list versions
        return ""
    return f"; {refused} old versions remain in {bucket}: this key may not delete them" if refused else ""


def clear(client: Any, bucket: str, prefix: str) -> str:
    """Delete all objects below a prefix with their old versions; return a note about those that remain."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=found["Key"])
    return forget(client, bucket, prefix)


def objects(buckets: list[str]) -> str:
    """Write, read and delete an object in each bucket of a consumer."""
    client, stays = s3_client(), ""
    for bucket in buckets:
        key, data = f"{PLACE}/objects/{os.urandom(6).hex()}", os.urandom(1024)
        client.put_object(Bucket=bucket, Key=key, Body=data)
        try:
            if client.get_object(Bucket=bucket, Key=key)["Body"].read() != data:
                raise AssertionError(f"{bucket} returned different bytes than were written")
        finally:
            client.delete_object(Bucket=bucket, Key=key)
            stays += forget(client, bucket, key)
    return f"object written, read and deleted in {', '.join(buckets)}{stays}"


# -- Experiments and models


made: list[str] = []
"""Experiments of the current check. A client can only hide them; `experiments` deletes them on the server's host."""
TAG = "metalworks.smoke"
"""Tag of every run that a check creates."""


def model() -> str:
    """Record a run with a model in MLflow, load the model and compare its output."""
    mlflow = importlib.import_module("mlflow")
    tag = os.urandom(6).hex()
    client = mlflow.MlflowClient()
    # Below the scratch prefix: elsewhere in the bucket, deleted objects stay as old versions.
    location = f"mlflow-artifacts:/0/{PLACE}/{tag}"
    experiment = client.create_experiment(f"{PLACE}-{tag}", artifact_location=location)
    made.append(experiment)
    try:

        class Doubler(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
            def predict(self, model_input: list[int]) -> list[int]:
                return [2 * value for value in model_input]

        with mlflow.start_run(experiment_id=experiment, tags={TAG: "1"}):
            mlflow.log_param("metal", "iron")
            mlflow.log_metric("score", 1.0)
            # Listed here, or MLflow would start a process to find out what the model imports.
            logged = mlflow.pyfunc.log_model(name="model", python_model=Doubler(), pip_requirements=["mlflow"])
        answer = mlflow.pyfunc.load_model(logged.model_uri).predict([1, 2])
        if list(answer) != [2, 4]:
            raise AssertionError(f"the loaded model answers {answer!r} instead of [2, 4]")
    finally:
        client.delete_experiment(experiment)
    return f"run and model recorded and loaded through {mlflow.get_tracking_uri()}, MLflow {mlflow.__version__}"


# The experiments of a check that has just ended, and those that others left; whether there is anything in them that no
# check made. Before runs had the tag, they had this parameter.
EXPERIMENTS = """
SELECT experiment_id, name, artifact_location,
  EXISTS (SELECT FROM runs WHERE experiment_id = e.experiment_id
    AND NOT EXISTS (SELECT FROM tags WHERE run_uuid = runs.run_uuid AND key = %(tag)s)
    AND NOT EXISTS (SELECT FROM params WHERE run_uuid = runs.run_uuid AND key = 'metal' AND value = 'iron'))
  OR EXISTS (SELECT FROM logged_models AS model WHERE experiment_id = e.experiment_id
    AND NOT EXISTS (SELECT FROM runs WHERE run_uuid = model.source_run_id AND experiment_id = e.experiment_id))
  OR EXISTS (SELECT FROM trace_info WHERE experiment_id = e.experiment_id)
FROM experiments AS e
WHERE name ~ %(name)s AND (experiment_id = ANY(%(ids)s) OR last_update_time < %(before)s)
ORDER BY experiment_id
"""
INSIDE = """
SELECT run_uuid FROM runs WHERE experiment_id = ANY(%(ids)s)
UNION SELECT model_id FROM logged_models WHERE experiment_id = ANY(%(ids)s)
"""
# Which columns of which tables hold a value of which column of a table, and keep its row from being deleted.
REFERENCES = """
SELECT conrelid::regclass::text, here.attname, there.attname FROM pg_constraint
JOIN pg_attribute AS here ON here.attrelid = conrelid AND here.attnum = conkey[1]
JOIN pg_attribute AS there ON there.attrelid = confrelid AND there.attnum = confkey[1]
WHERE contype = 'f' AND confdeltype IN ('a', 'r') AND confrelid = %s::regclass
"""


def delete_rows(cursor: Any, table: str, column: str, values: list[Any]) -> None:
    """Delete the rows that have one of these values, after all rows that refer to them."""
    cursor.execute(REFERENCES, (table,))
    for other, its_column, referred in cursor.fetchall():
        cursor.execute(f"SELECT {referred} FROM {table} WHERE {column} = ANY(%s)", (values,))  # noqa: S608
        if found := [row[0] for row in cursor.fetchall()]:
            delete_rows(cursor, other, its_column, found)
    cursor.execute(f"DELETE FROM {table} WHERE {column} = ANY(%s)", (values,))  # noqa: S608 - names of its own


def experiments(ids: list[str], bucket: str, database: str, grants: str) -> str:
    """Permanently delete the experiments that checks have just created, and those that killed checks left.

    Runs on the server's host with its databases (URLs) and its key: MLflow lets clients only hide an experiment, and
    `mlflow gc` would also delete what others have hidden. Each experiment is deleted by its id, with its files, rows
    and permissions. One that contains anything that no check created is kept, and so is one whose location is not a
    check's.
    """
    psycopg2 = importlib.import_module("psycopg2")
    client, stays, gone = s3_client(), "", list[int]()
    with contextlib.closing(psycopg2.connect(database)) as connection:
        with connection, connection.cursor() as cursor:
            asked = {"ids": [int(each) for each in ids], "before": (time.time() - LEFT_SECONDS) * 1000}
            cursor.execute(EXPERIMENTS, asked | {"name": f"^{PLACE}-[0-9a-f]{{12}}$", "tag": TAG})
            found = cursor.fetchall()
        for number, name, location, foreign in found:
            place = str(location).removeprefix("mlflow-artifacts:/")
            if foreign or place not in (str(number), f"0/{PLACE}/{name[-12:]}"):
                stays += f"; {name} was kept: it contains what no check created"
            else:
                stays += clear(client, bucket, f"{place}/")
                gone.append(number)
        with contextlib.closing(psycopg2.connect(grants)) as users, users, users.cursor() as cursor:
            command = "DELETE FROM role_permissions WHERE resource_type = 'experiment' AND resource_pattern = ANY(%s)"
            cursor.execute(command, ([str(number) for number in gone],))
        with connection, connection.cursor() as cursor:
            cursor.execute(INSIDE, {"ids": gone})
            inside = [row[0] for row in cursor.fetchall()]
            for column in (
                "source_id",
                "destination_id",
            ):  # which run made a model: the database has no foreign key for it
                delete_rows(cursor, "inputs", column, inside)
            delete_rows(cursor, "experiments", "experiment_id", gone)
    if missed := {int(each) for each in ids} - {*gone}:
        raise AssertionError(f"experiments not deleted: {', '.join(map(str, sorted(missed)))}{stays}")
    return f"{len(gone)} permanently deleted{stays}"


def sample(model_uri: str) -> Any:
    """Return a request for a model: the example recorded with it, or else zeros that fit its signature."""
    mlflow = importlib.import_module("mlflow")
    info = mlflow.models.get_model_info(model_uri)
    if info.saved_input_example_info:
        with contextlib.suppress(mlflow.exceptions.MlflowException):
            return mlflow.artifacts.load_dict(f"{model_uri}/serving_input_example.json")
    if info.signature is None:
        raise NotApplicable("cannot build a request: the model has neither an input example nor a signature")
    inputs = info.signature.inputs
    if inputs.is_tensor_spec():
        shape = [1 if size < 0 else size for size in inputs.inputs[0].shape]
        zeros: Any = 0
        for size in reversed(shape):
            zeros = [zeros] * size
        return {"instances": zeros}
    empty = {"string": "", "boolean": False, "datetime": "2024-01-01T00:00:00", "integer": 0, "long": 0}
    row = [empty.get(column.type.name, 0.0) for column in inputs.inputs]
    return {"dataframe_split": {"columns": inputs.input_names(), "data": [row]}}


def prediction(url: str, model: str, alias: str) -> str:
    """Request a prediction, as another service would."""
    mlflow = importlib.import_module("mlflow")
    token = Path.home().joinpath(".config/metalworks/inference_token").read_text().strip()
    # A lookup by name answers the same for a missing model and for one that this user may not see.
    found = mlflow.MlflowClient().search_registered_models(f"name = '{model}'")
    if not (wanted := found[0].aliases.get(alias) if found else None):
        raise NotApplicable(
            f"no model {model}@{alias} in the registry yet; register one, and it is served within seconds"
        )
    bearer = f"Bearer {token}"
    served = request(f"{url}/version", authorization=bearer)
    example = sample(f"models:/{model}/{served['version']}")
    answer = request(f"{url}/invocations", "POST", example, authorization=bearer)
    if "predictions" not in answer:
        raise AssertionError(f"{url}/invocations answered {str(answer)[:200]}")
    behind = "" if str(served["version"]) == str(wanted) else f"; {alias} now points to version {wanted}"
    first = str(list(answer["predictions"])[:1])[:60]
    return f"{url} predicts with {model} version {served['version']}, for example {first}{behind}"


def versions(service: str, state: str, status: str) -> str:
    """Return what a service serves; fail if a version that an alias points to was refused."""
    serving, following = (json.loads(Path(file).read_text()) for file in (state, status))
    refused = []
    for role, desired in following["roles"].items():
        if "state" not in desired:
            raise AssertionError("model-follower does not run this release yet: systemctl restart model-follower")
        reason, unit = desired.get("reason"), "model-follower"
        if desired["state"] != "refused":
            reason, unit = (
                serving["refused"].get(desired["version"], {}).get("reason"),
                f"inference-{service} -u models-{service}",
            )
        if reason:
            refused.append(f"{role} version {desired['version']}: {reason} (journalctl -u {unit})")
    if refused:
        raise AssertionError(f"refused, so the previous version stays in service: {'; '.join(refused)}")
    if following["mlflow"] != "answers":
        raise AssertionError(f"the follower cannot ask MLflow for new versions: {following['mlflow']}")
    served = [f"{role} version {each['version']} as {each['executor']}"
              for role in following["roles"] if (each := serving.get(role))]  # fmt: skip
    if not served:
        raise NotApplicable("nothing is served yet: no alias points to a version")
    return ", ".join(served)


def disks(program: str) -> str:
    """Fail if a disk of the host will be full within days, or nearly is."""
    done = subprocess.run([sys.executable, "-I", program, "check"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(" | ".join((done.stdout or done.stderr).strip().splitlines()))
    return "none will be full within days"


# -- Flows

ENTRYPOINT = "metalworks.smoke_flow.smoke"  # in the worker's environment, so no code is fetched
LAST = "Finished in state"  # the last line that Prefect logs of a run


def remove_flow(ask: Callable[..., Any], flow_id: str) -> None:
    """Delete a flow and its runs; deleting a run also deletes its logs, which would stay otherwise."""
    for run in ask("/flow_runs/filter", "POST", {"flows": {"id": {"any_": [flow_id]}}}):
        ask(f"/flow_runs/{run['id']}", "DELETE")
    ask(f"/flows/{flow_id}", "DELETE")


def left_flows(ask: Callable[..., Any], pool: str) -> list[str]:
    """Return the flows of a pool that killed checks left, recognised by name, age and content."""
    found = []
    for flow in ask("/flows/filter", "POST", {"flows": {"name": {"like_": f"{PLACE}-{pool}-"}}}):
        made_at = datetime.datetime.fromisoformat(flow["created"]).timestamp()
        if not re.fullmatch(f"{PLACE}-{pool}-[0-9a-f]{{8}}", flow["name"]) or time.time() - made_at < LEFT_SECONDS:
            continue
        this = {"flows": {"id": {"any_": [flow["id"]]}}}
        deployments = {one["id"]: one for one in ask("/deployments/filter", "POST", this)}
        ours = all((one["name"], one["entrypoint"]) == (PLACE, ENTRYPOINT) for one in deployments.values())
        if ours and all(run["deployment_id"] in deployments for run in ask("/flow_runs/filter", "POST", this)):
            found.append(flow["id"])
    return found


def flow(api: str, user: str, password: str, pool: str, timeout: float) -> str:
    """Run a flow on a work pool; return which worker took it."""

    def ask(path: str, method: str = "GET", body: Any = None) -> Any:
        return request(f"{api}{path}", method, body, authorization=basic(user, password))

    for left in left_flows(ask, pool):
        remove_flow(ask, left)
    flow_id = ask("/flows/", "POST", {"name": f"{PLACE}-{pool}-{os.urandom(4).hex()}"})["id"]
    try:
        deployment = {"name": PLACE, "flow_id": flow_id, "work_pool_name": pool, "entrypoint": ENTRYPOINT}
        deployment_id = ask("/deployments/", "POST", deployment)["id"]
        run_id = ask(f"/deployments/{deployment_id}/create_flow_run", "POST", {})["id"]

        def ended() -> Any:
            found = ask(f"/flow_runs/{run_id}")
            return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        try:
            done = wait_for(ended, timeout, "the flow run did not end")
        except TimeoutError as error:
            state = ask(f"/flow_runs/{run_id}")["state"]
            raise TimeoutError(f"{error}: its state is {state['name']}; is a worker of pool {pool} running?") from error
        if done["state_type"] != "COMPLETED":
            lines = ask("/logs/filter", "POST", {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 20})
            words = " | ".join(line["message"] for line in lines[-3:])
            raise AssertionError(f"the run ended as {done['state_name']}: {done['state']['message']} {words[-600:]}")
        # The last log lines may arrive after the run has ended, and would stay after the run is deleted.
        logs = {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200}
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: [line for line in ask("/logs/filter", "POST", logs) if LAST in line["message"]], 10, "log")
        worker = done["labels"].get("prefect.worker.name", "an unnamed worker")
        return f"flow run completed by {worker}"
    finally:
        remove_flow(ask, flow_id)


# -- Data versions


def run(command: list[str], cwd: str | None = None, **environment: str) -> str:
    """Return what a command prints; if it fails, its last lines go into the exception."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise RuntimeError(f"`{' '.join(command[:2])}` failed with exit status {done.returncode}: {words}")
    return done.stdout


def dvc(folder: str, *arguments: str) -> str:
    """Run DVC in a folder, as a project whose remote is a prefix of the site's own remote."""
    project = Path(folder, ".dvc")
    project.mkdir(exist_ok=True)
    remote = f"['remote \"smoke\"']\n    url = remote://storage/{PLACE}/dvc\n"
    (project / "config").write_text(f"[core]\n    no_scm = true\n    remote = smoke\n{remote}")
    return run(["dvc", *arguments], folder, DVC_SITE_CACHE_DIR=f"{folder}/.site")


def dvc_push(word: str) -> str:
    """Add a file to a DVC project and push it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data.txt").write_text(word)
        dvc(folder, "add", "data.txt")
        output = dvc(folder, "push").strip()
    if "1 file pushed" not in output:
        raise AssertionError(f"`dvc push` of a new file printed: {output}")
    return f"a new file pushed below {PLACE}/dvc of the default remote"


def dvc_pull(word: str, bucket: str) -> str:
    """Pull, as another user, what the first user pushed; then delete it from the store."""
    digest = hashlib.md5(word.encode(), usedforsecurity=False).hexdigest()
    try:
        with tempfile.TemporaryDirectory() as folder:
            pointer = f"outs:\n- md5: {digest}\n  size: {len(word)}\n  hash: md5\n  path: data.txt\n"
            Path(folder, "data.txt.dvc").write_text(pointer)
            dvc(folder, "pull")
            if Path(folder, "data.txt").read_text() != word:
                raise AssertionError("the pulled file differs from the one that was pushed")
    finally:
        stays = clear(s3_client(), bucket, f"{PLACE}/dvc/files/md5/{digest[:2]}/{digest[2:]}")
    return f"the other user's file pulled by its .dvc file{stays}"


# -- Backups


def backups(program: str) -> str:
    """Ask whether sets are taken and rehearsed in time, WAL is archived, and the target has room."""
    done = subprocess.run([program, "status"], capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        raise AssertionError("; ".join((done.stderr or done.stdout).strip().splitlines()))
    return done.stdout.strip()


# -- A person's login


def environment(expected: dict[str, str]) -> str:
    """Compare the environment of a login shell with the site's configuration."""
    wrong = [name for name, value in expected.items() if os.environ.get(name) != value]
    if wrong:
        told = (f"{name} is {os.environ.get(name)!r}, not {expected[name]!r}" for name in wrong)
        raise AssertionError("; ".join(told))
    return f"{len(expected)} variables as configured"


CHECKS: dict[str, Callable[..., str]] = {
    "database": database,
    "objects": objects,
    "model": model,
    "experiments": experiments,
    "prediction": prediction,
    "versions": versions,
    "disks": disks,
    "flow": flow,
    "dvc_push": dvc_push,
    "dvc_pull": dvc_pull,
    "environment": environment,
    "backups": backups,
}


def sweep() -> None:
    """Remove what killed checks of this user left in the folder for temporary files.

    Other sessions on this host end and sweep at the same time, so a folder can be gone at any moment.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PLACE}-*"):
        if not re.fullmatch(f"{PLACE}-[a-z0-9_]{{8}}", left.name):  # the name that `main` gives its folder
            continue
        with contextlib.suppress(FileNotFoundError):
            known = left.lstat()
            if known.st_uid == os.getuid() and time.time() - known.st_mtime > LEFT_SECONDS:
                shutil.rmtree(left)


def main(checks: list[dict[str, Any]]) -> None:
    """Run the checks one after the other and print a line for each."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # raises, so that the checks still clean up
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"{PLACE}-") as folder:  # a loaded model leaves its files behind
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            do(checks)
        finally:
            tempfile.tempdir = None


def do(checks: list[dict[str, Any]]) -> None:
    """Print a verdict for each check."""
    for check in checks:
        start = time.monotonic()
        made.clear()
        verdict: dict[str, Any] = {"name": check["name"], "ok": True, "skipped": False}
        try:
            verdict["detail"] = CHECKS[check["kind"]](**check.get("arguments", {}))
        except NotApplicable as reason:
            verdict |= {"skipped": True, "detail": str(reason)}
        except Exception as error:
            verdict |= {"ok": False, "detail": f"{type(error).__name__}: {' '.join(str(error).split())[:800]}"}
        verdict["seconds"] = round(time.monotonic() - start, 3)
        if made:
            verdict["made"] = [*made]
        print(MARK + json.dumps(verdict), flush=True)

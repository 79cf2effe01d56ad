"""Log in to the lab's web pages with headless Chromium, and take screenshots for the docs.

The browser imports the platform's CA; certificates are verified, and an invalid one is an error. Each page must show
what the example project left there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from scripts.common import ROOT, ProblemError, apt_install, capture, end
from scripts.lab import hosts as lab_hosts

PICTURES = ROOT / "docs" / "pictures"
DOMAIN = "metalworks.internal"
PERSON = "ml1"
TIMEOUT = 30_000  # milliseconds
SIZES: list[tuple[str, Any, Any]] = [
    ("start-night", {"width": 1280, "height": 800}, "light"),
    ("start-dark", {"width": 1280, "height": 800}, "dark"),
    ("start-phone", {"width": 390, "height": 844}, "dark"),
]
"""Pictures of the start page after a login: the window, and light or dark."""


def prepare() -> None:
    """Provide a browser and the tool that imports CAs; require a lab."""
    wanted = {"chromium": "chromium", "certutil": "libnss3-tools"}
    if missing := [package for command, package in wanted.items() if not shutil.which(command)]:
        apt_install(*missing, reason="Looking at web pages")
    if "services-1" not in lab_hosts.containers():
        raise ProblemError("no lab is up: `make lab` first")


@contextmanager
def home(authority: str | None) -> Iterator[Path]:
    """Yield a home directory for a browser that trusts one CA more, or none."""
    with tempfile.TemporaryDirectory(prefix="metalworks-browser-") as directory:
        store = Path(directory) / ".pki" / "nssdb"
        store.mkdir(parents=True)
        capture(["certutil", "-N", "--empty-password", "-d", f"sql:{store}"])
        if authority:
            add = ["certutil", "-A", "-n", "Metalworks", "-t", "C,,", "-d", f"sql:{store}"]
            capture(add, stdin=authority)
        yield Path(directory)


@contextmanager
def browser(authority: str | None) -> Iterator[Browser]:
    """Yield a browser that resolves the lab's names to the gateway."""
    gateway = {host.name: host.address for host in lab_hosts.declared()}["services-1"]
    with home(authority) as directory, sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            env={**os.environ, "HOME": str(directory)},
            # Root cannot use Chromium's sandbox; the lab's pages are our own.
            chromium_sandbox=os.geteuid() != 0,
            args=[
                f"--host-resolver-rules=MAP *.{DOMAIN} {gateway}, MAP {DOMAIN} {gateway}",
                "--no-proxy-server",
            ],
        )
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def page(opened: Browser, site: str, *, password: str | None = None) -> Iterator[Page]:
    """Yield an empty page for a site, logged in if there is a password."""
    login = {"username": PERSON, "password": password, "origin": f"https://{site}"} if password else None
    size = {"width": 1280, "height": 800}
    context = opened.new_context(viewport=size, http_credentials=login, locale="en-GB")
    context.set_default_timeout(TIMEOUT)
    try:
        yield context.new_page()
    finally:
        context.close()


def refused_without_the_authority() -> None:
    """Check that a browser without the CA refuses the page, so that the screenshots prove that the CA works."""
    with browser(None) as opened, page(opened, DOMAIN) as shown:
        try:
            shown.goto(f"https://{DOMAIN}/")
        except Error as error:
            if "ERR_CERT_AUTHORITY_INVALID" in error.message:
                return
            raise
    raise ProblemError("a browser that does not trust the platform's CA opened the page")


def keep(shown: Page, name: str) -> None:
    """Take a picture of the page."""
    shown.screenshot(path=PICTURES / f"{name}.png", animations="disabled")
    print(f"{name}: {shown.title()}")


def answer(shown: Page, path: str, body: dict[str, Any] | None = None) -> str:
    """Return the site's response to a request from the page: only the browser resolves the lab's names."""
    options = {"method": "POST", "body": json.dumps(body), "headers": {"Content-Type": "application/json"}}
    script = "([path, options]) => fetch(path, options).then(answer => answer.text())"
    return str(shown.evaluate(script, [path, options if body else {}]))


def start_page(opened: Browser, password: str) -> None:
    """Show the start page without a login and with one: everything is healthy, and what ran is told to people only."""
    with page(opened, DOMAIN) as shown:
        problems = listened(shown)
        shown.goto(f"https://{DOMAIN}/")
        expect(shown.locator("#all")).to_have_text("Everything is healthy", timeout=TIMEOUT)
        expect(shown.locator("#night")).to_contain_text("Log in to see what ran last night", timeout=TIMEOUT)
        keep(shown, "start")
        # Whoever follows the link by keyboard gets there, too; without a password that is a refusal.
        shown.get_by_role("link", name="Log in to see what ran last night").focus()
        expect(shown.get_by_role("link", name="Log in to see what ran last night")).to_be_focused()
        refused = [each for each in problems if "401" not in each]  # the page asks whether somebody has logged in
        if refused:
            raise ProblemError(f"the start page has errors: {refused}")
    for name, size, scheme in SIZES:
        login: Any = {"username": PERSON, "password": password, "origin": f"https://{DOMAIN}"}
        context = opened.new_context(viewport=size, color_scheme=scheme, http_credentials=login, locale="en-GB")
        try:
            shown = context.new_page()
            problems = listened(shown)
            shown.goto(f"https://{DOMAIN}/status/login")
            expect(shown.locator("#all")).to_have_text("Everything is healthy", timeout=TIMEOUT)
            expect(shown.locator("#night .jobs, #night .sum").first).to_be_visible(timeout=TIMEOUT)
            wider = shown.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
            if problems or wider:
                raise ProblemError(f"the start page ({name}) has errors, or is wider than its window: {problems}")
            shown.screenshot(path=PICTURES / f"{name}.png", animations="disabled")
        finally:
            context.close()


def listened(shown: Page) -> list[str]:
    """Return a list that gets the errors of the page's scripts, and what its policy refuses."""
    found: list[str] = []
    shown.on("pageerror", lambda error: found.append(str(error)))
    shown.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    return found


def mlflow(opened: Browser, password: str) -> None:
    """Show the flights experiment and its runs."""
    site = f"mlflow.{DOMAIN}"
    with page(opened, site, password=password) as shown:
        shown.goto(f"https://{site}/#/experiments")
        shown.get_by_role("link", name="flight-delay", exact=True).first.click()
        shown.wait_for_url(re.compile("experiments/[0-9]+"))
        shown.goto(re.sub("(experiments/[0-9]+).*", r"\1/runs", shown.url))
        expect(shown.get_by_text("ridge").first).to_be_visible(timeout=TIMEOUT)
        keep(shown, "mlflow")


def champion(opened: Browser, password: str) -> None:
    """Show the champion's run with its provenance tags, and the model's card."""
    site = f"mlflow.{DOMAIN}"
    with page(opened, site, password=password) as shown:
        shown.goto(f"https://{site}/")
        alias = answer(shown, "/api/2.0/mlflow/registered-models/alias?name=flight-delay&alias=champion")
        run_id = json.loads(alias)["model_version"]["run_id"]
        run = json.loads(answer(shown, f"/api/2.0/mlflow/runs/get?run_id={run_id}"))["run"]
        shown.goto(f"https://{site}/#/experiments/{run['info']['experiment_id']}/runs/{run_id}")
        tag = shown.get_by_text("dvc.data/features").first
        expect(tag).to_be_visible(timeout=TIMEOUT)
        tag.scroll_into_view_if_needed()
        keep(shown, "mlflow-run")
        shown.set_content(answer(shown, f"/get-artifact?path=card%2Findex.html&run_uuid={run_id}"))
        expect(shown.locator("svg").first).to_be_visible()
        shown.screenshot(path=PICTURES / "card.png", full_page=True)


def prefect(opened: Browser, password: str) -> None:
    """Show completed flow runs, deployments, and a flow run with subflows."""
    site = f"prefect.{DOMAIN}"
    with page(opened, site, password=password) as shown:
        shown.goto(f"https://{site}/runs")
        expect(shown.get_by_text("Completed").first).to_be_visible(timeout=TIMEOUT)
        expect(shown.get_by_text("No access")).to_have_count(0, timeout=TIMEOUT)  # until the work pool is known
        keep(shown, "prefect")
        shown.goto(f"https://{site}/deployments")
        expect(shown.get_by_text("retrain").first).to_be_visible(timeout=TIMEOUT)
        expect(shown.get_by_text("prepare").first).to_be_visible(timeout=TIMEOUT)
        keep(shown, "prefect-deployments")
        wanted = {
            "sort": "START_TIME_DESC",
            "flows": {"name": {"any_": ["retrain"]}},
            "flow_runs": {"state": {"name": {"any_": ["Promoted", "Not promoted"]}}},
        }
        runs = json.loads(answer(shown, "/api/flow_runs/filter", wanted))
        shown.goto(f"https://{site}/runs/flow-run/{runs[0]['id']}")
        shown.get_by_text("Subflow Runs").first.click()
        child = shown.get_by_text("train", exact=True).first
        expect(child).to_be_visible(timeout=TIMEOUT)
        child.scroll_into_view_if_needed()
        keep(shown, "prefect-run")


def inference(opened: Browser, token: str) -> None:
    """Show the API page of the model in service, with its columns, after entering a token."""
    site = f"inference.{DOMAIN}"
    with page(opened, site) as shown:
        shown.goto(f"https://{site}/delay/docs")
        shown.get_by_label("Your token").fill(token)
        shown.get_by_role("button", name="Show the API").click()
        shown.locator(".opblock-post").first.click()
        expect(shown.locator("textarea, .body-param__text")).to_contain_text("dataframe_split", timeout=TIMEOUT)
        shown.get_by_text("Request body").evaluate("each => each.scrollIntoView({block: 'center'})")
        keep(shown, "inference")


def main() -> None:
    """Take all pictures."""
    prepare()
    PICTURES.mkdir(parents=True, exist_ok=True)
    vault = lab_hosts.secrets()
    refused_without_the_authority()
    with browser(vault["vault_ca_certificate"]) as opened:
        start_page(opened, vault["vault_user_passwords"][PERSON])
        mlflow(opened, vault["vault_user_passwords"][PERSON])
        champion(opened, vault["vault_user_passwords"][PERSON])
        prefect(opened, vault["vault_user_passwords"][PERSON])
        inference(opened, vault["vault_inference_tokens"][PERSON])


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)

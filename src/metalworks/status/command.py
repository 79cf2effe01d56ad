"""Command `metalworks status`: what is healthy, and what ran in the last 24 hours.

It reads the start page and asks what the page asks, with the login that `prefect` has on a development machine.
"""

from __future__ import annotations

import argparse
import base64
import http
import ssl
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

from metalworks.errors import CommandError
from metalworks.status import show

SECONDS = 20.0
ANSWER_BYTES = 4 * 2**20
PREFECT = "prefect."

Answer = tuple[int, str, str]


class Parts(HTMLParser):
    """Finds the parts on the start page: the path of each one's health, and its title."""

    def __init__(self) -> None:
        """Begin without parts."""
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.path, self.says, self.inside = "", False, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a part's path."""
        self.path = dict(attrs).get("data-health") or self.path
        self.inside = tag == "h3" and bool(self.path)

    def handle_data(self, data: str) -> None:
        """Note a part's title, once."""
        if self.inside and data.strip():
            self.found.append((self.path, data.strip()))
            self.path, self.inside = "", False


class Platform:
    """The start page of a platform, with somebody's login."""

    def __init__(self, url: str, login: str, ca: str | None) -> None:
        """Keep where it is, who asks, and what to trust."""
        self.url, self.login = url, login
        handlers = [urllib.request.ProxyHandler({})]
        trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca))
        self.opener = urllib.request.build_opener(*handlers, trust)

    def ask(self, path: str, *, login: bool = False) -> Answer:
        """Return status, type and content. Raises OSError if nobody answers."""
        request = urllib.request.Request(self.url + path)
        if login and self.login:
            request.add_header("Authorization", f"Basic {base64.b64encode(self.login.encode()).decode()}")
        try:
            response = self.opener.open(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            content = response.read(ANSWER_BYTES + 1)
            if len(content) > ANSWER_BYTES:
                raise OSError(f"{path} has more than {ANSWER_BYTES} bytes")
            return response.status or 0, response.headers.get("Content-Type", ""), content.decode(errors="replace")

    def health(self, path: str, title: str) -> show.Health:
        """Return what the page shows of a part."""
        try:
            return show.judged(title, *self.ask(path))
        except OSError:
            return show.Health(title, "ill", "does not answer")


def settings() -> tuple[str, str, str | None]:
    """Return the start page's URL, the login and the CA, from Prefect's settings. Raises CommandError."""
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    host = urlsplit(api.url or "").hostname or ""
    if not host.startswith(PREFECT):
        raise CommandError(
            "PREFECT_API_URL does not lead to a platform. Log in to one of the platform's dev hosts, or set it to "
            "https://prefect.<domain>/api."
        )
    secret = api.auth_string.get_secret_value() if api.auth_string else ""
    return f"https://{host.removeprefix(PREFECT)}", secret, api.ssl_cert_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: none."""
    parser.epilog = "Exit status: 0 all is well, 1 something is ill, 2 the platform cannot be asked."


def run(_: argparse.Namespace) -> int:
    """Print it and return the exit status."""
    try:
        url, login, ca = settings()
    except CommandError as error:
        print(f"metalworks status: {error}", file=sys.stderr)
        return show.UNKNOWN
    platform = Platform(url, login, ca)
    try:
        status, _kind, page = platform.ask("/")
    except OSError as error:
        print(f"{url} does not answer: {getattr(error, 'reason', error)}", file=sys.stderr)
        return show.UNKNOWN
    finder = Parts()
    finder.feed(page)
    if status != http.HTTPStatus.OK or not finder.found:
        print(f"{url} is not a platform's start page (status {status})", file=sys.stderr)
        return show.UNKNOWN
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda one: platform.health(*one), finder.found))
    night, why = last_night(platform)
    print(show.text(parts, night, url.replace("https://", f"https://{PREFECT}"), why))
    return show.exit_status(parts)


def last_night(platform: Platform) -> tuple[dict[str, Any] | None, str]:
    """Return what ran, or why nobody knows."""
    try:
        status, _, content = platform.ask("/status/night", login=True)
    except OSError as error:
        return None, f"no answer ({error})"
    if status == http.HTTPStatus.OK:
        return show.parsed(content) or None, "the answer cannot be read"
    refused = {401: "log in: PREFECT_API_AUTH_STRING has no login that is valid", 403: "your role may not see it"}
    return None, refused.get(status, f"error {status}")

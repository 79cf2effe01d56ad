"""Client for MLflow's model registry that uses only the standard library: MLflow's own client takes 100 MB."""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from metalworks.errors import RegistryError
from metalworks.model_sync.card import ModelCard

TIMEOUT = 20
GIT_COMMIT = "mlflow.source.git.commit"
_NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A registered model and its aliases."""

    created: int
    """When it was registered. A model that is deleted and registered again starts at version 1."""
    aliases: Mapping[str, str]


class Registry:
    """MLflow's REST API over one persistent connection; not thread-safe."""

    def __init__(self, url: str, *, login: str = "", ca: str | None = None) -> None:
        """Take the URL, the login (name:password) and the CA file."""
        self.url = urlsplit(url)
        self.headers = {"Content-Type": "application/json"}
        if login:
            self.headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        self.tls = ssl.create_default_context(cafile=ca) if self.url.scheme == "https" else None
        self.connection: http.client.HTTPConnection | None = None

    @classmethod
    def from_environment(cls) -> Registry:
        """Connect with the variables and the credentials file of MLflow's own client."""
        url = os.environ.get("MLFLOW_TRACKING_URI")
        if not url:
            raise RegistryError("MLFLOW_TRACKING_URI is not set: set it to the URL of the MLflow server")
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        file = configparser.ConfigParser(interpolation=None)
        file.read(Path.home() / ".mlflow/credentials")
        user, password = (
            os.environ.get(name) or file.get("mlflow", name.lower(), fallback="").strip() for name in names
        )
        login = f"{user}:{password}" if user else ""
        return cls(url, login=login, ca=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))

    def model(self, name: str) -> RegisteredModel | None:
        """Return the model with its aliases, or None if it does not exist."""
        answer = self._ask("GET", "registered-models/get", name=name)
        if answer is None:
            return None
        model = answer["registered_model"]
        aliases = {each["alias"]: str(each["version"]) for each in model.get("aliases", [])}
        return RegisteredModel(int(model["creation_timestamp"]), aliases)

    def version(self, name: str, number: str, alias: str) -> tuple[ModelCard, dict[str, str]] | None:
        """Return the card and the tags of a version, or None if it no longer exists."""
        answer = self._ask("GET", "model-versions/get", name=name, version=number)
        if answer is None:
            return None
        version = answer["model_version"]
        run = str(version.get("run_id") or "")
        card = ModelCard(
            name=name,
            version=number,
            alias=alias,
            source=str(version["source"]),
            created=int(version["creation_timestamp"]),
            run_id=run or None,
            git_commit=self._git_commit(run) if run else None,
        )
        return card, {tag["key"]: tag["value"] for tag in version.get("tags", [])}

    def _git_commit(self, run: str) -> str | None:
        answer = self._ask("GET", "runs/get", run_id=run)  # a version outlives its run
        tags = answer["run"]["data"].get("tags", []) if answer else []
        return next((str(tag["value"]) for tag in tags if tag["key"] == GIT_COMMIT), None)

    def tag(self, name: str, version: str, key: str, value: str) -> None:
        """Tag a version, if it still exists."""
        self._ask("POST", "model-versions/set-tag", name=name, version=version, key=key, value=value)

    def point(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version."""
        self._ask("POST", "registered-models/alias", name=name, alias=alias, version=version)

    def _ask(self, method: str, path: str, **values: str) -> dict[str, Any] | None:
        """Return the server's response, or None if what was asked for does not exist."""
        target = f"{quote(self.url.path.rstrip('/'))}/api/2.0/mlflow/{path}"
        body = None if method == "GET" else json.dumps(values)
        target += f"?{urlencode(values)}" if method == "GET" else ""
        try:
            status, text = self._exchange(method, target, body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            reason = error or type(error).__name__
            raise RegistryError(f"MLflow at {self._name()} does not respond: {reason}") from error
        try:
            answer = json.loads(text or b"{}")
        except ValueError:
            answer = {}
        if status == 200 and isinstance(answer, dict):
            return answer
        if status == 404 and answer.get("error_code") == _NOT_FOUND:
            return None
        message = " ".join(str(answer.get("message") or text.decode(errors="replace")).split())[:300]
        raise RegistryError(f"MLflow at {self._name()} responded with {status} to {path}: {message}")

    def _exchange(self, method: str, target: str, body: str | None) -> tuple[int, bytes]:
        """Send a request; repeat it once if the server had closed the persistent connection."""
        kept = self.connection is not None
        if self.connection is None:
            host, port = self.url.hostname or "", self.url.port
            self.connection = (
                http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=self.tls)
                if self.tls
                else http.client.HTTPConnection(host, port, timeout=TIMEOUT)
            )
        try:
            self.connection.request(method, target, body, self.headers)
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (http.client.RemoteDisconnected, ConnectionError):
            self.close()
            if not kept:
                raise
            return self._exchange(method, target, body)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def _name(self) -> str:
        """Return the server's URL without credentials."""
        return f"{self.url.scheme}://{self.url.netloc.rpartition('@')[2]}{self.url.path}"

"""Versions in service, as one worker process holds them, and the choice of the version for a request."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalworks_model_runner import memory

from metalworks.contracts import FACTS, ROLES, VERDICT, Card, EquivalenceVerdict, Facts, RouteEntry, RouteFile
from metalworks.serving.arrays import Arrays
from metalworks.serving.predict.batching import Batcher, QueueFullError
from metalworks.serving.predict.client import ModelClient
from metalworks.serving.predict.codecs import mlflow_request, mlflow_response, open_inference
from metalworks.serving.predict.codecs.mlflow_request import RequestRefusedError
from metalworks.serving.predict.decoding import INVOCATIONS, TENSORS, DecodingProcess, light
from metalworks.serving.predict.onnx import Feed, OnnxModel
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Series, Stats
from metalworks.serving.telemetry.prediction_log import PredictionSource

LOADING_SWITCH_SECONDS = 0.5e-3
"""The thread that loads a version yields to those that answer requests after this long."""
INLINE_ROW_LIMIT_SECONDS = 2e-3
"""A request whose rows take the model longer than this runs in a thread."""


class UnloadableError(Exception):
    """This process cannot load a version of the route; the message gives the reason in one line."""

    def __init__(self, version_id: str, reason: str) -> None:
        """Name the version by its id."""
        super().__init__(f"version {version_id}: {reason}")
        self.version_id, self.reason = version_id, reason


class LoadedVersion:
    """One version of a model, ready to answer."""

    def __init__(self, entry: RouteEntry, settings: Settings, stats: Stats) -> None:
        """Load the version that an entry of the route describes; raises whatever loading raises."""
        evidence = Path(entry["evidence"])
        self.id: str = entry["id"]
        self.card: Card = entry["card"]
        self.number: str = self.card["version"]
        self.environment: str = entry["environment"]
        self.facts: Facts = json.loads((evidence / FACTS).read_text())
        self.verdict: EquivalenceVerdict = json.loads((evidence / VERDICT).read_text())
        self.executor: str = self.verdict["executor"]
        self.client = ModelClient(Path(entry["socket"]), settings.return_timeout)
        self.raw_waiting = 0
        self._max_queue = settings.max_queue
        self._stats = stats
        self.decode: Callable[[bytes], Arrays | None] | None = None
        self.write: Callable[[Arrays], bytes] | None = None
        self.inline: Callable[[Arrays], Arrays] | None = None
        self.inline_rows = 0
        self.batcher: Batcher | None = None
        self.decoding: DecodingProcess | None = None
        self._limits = settings.limits
        self._thread: ThreadPoolExecutor | None = None
        if self.executor == "mlflow":
            return
        known: Facts = self.facts | {"nulls": self.verdict["nulls"]}
        self.decode = mlflow_request.decoder(known, settings.limits)
        self.decoding = DecodingProcess(known, settings.limits)
        self.write = mlflow_response.writer(self.facts["form"])
        ask = self.client.arrays
        if self.executor == "onnx":
            file, feed = evidence / self.verdict["file"], Feed(**self.verdict["feed"])
            model = OnnxModel(file, feed, self.facts["output_types"], self.facts["output_shapes"])
            if self.verdict["inline"]:
                self.inline = model
                self.inline_rows = max(1, int(INLINE_ROW_LIMIT_SECONDS / self.verdict["seconds_per_row"]))
            pool = self._thread = ThreadPoolExecutor(1)
            client = self.client  # not self: a reference cycle would keep the version in memory

            async def ask(arrays: Any) -> Arrays:
                try:
                    return await asyncio.get_running_loop().run_in_executor(pool, model, arrays)
                except Exception:  # the model itself may accept what the runtime refuses
                    return await client.arrays(arrays)

            memory.trim()

        self.batcher = Batcher(ask, settings.max_batch_rows, settings.max_queue, stats.batch, settings.request_timeout)

    @property
    def queue(self) -> int:
        """The number of requests that wait for the model."""
        return self.raw_waiting + self.client.requests_given_up + (self.batcher.waiting if self.batcher else 0)

    async def arrays_of(self, body: bytes) -> Arrays | None:
        """Return the inputs of a request to /invocations; None to leave the request to MLflow.

        Raises RequestRefusedError and ModelLostError.
        """
        assert self.decode is not None  # noqa: S101 (the caller has checked)
        assert self.decoding is not None  # noqa: S101 (set together with decode)
        if light(body):
            return self.decode(body)
        arrays: Arrays | None = await self.decoding(INVOCATIONS, body)
        return arrays

    async def tensors_of(self, body: bytes) -> tuple[str | None, Arrays]:
        """Return the id and the inputs of a request of the Open Inference Protocol.

        Raises RequestRefusedError and ModelLostError.
        """
        if self.decoding is None:
            raise RequestRefusedError(400, "This model takes MLflow's scoring protocol alone: POST /invocations")
        if light(body):
            return open_inference.decode(self.facts, mlflow_request.most_rows(self.facts, self._limits), body)
        found: tuple[str | None, Arrays] = await self.decoding(TENSORS, body)
        return found

    async def outputs(self, arrays: Arrays) -> Arrays:
        """Return the model's outputs for these inputs.

        Raises QueueFullError, ModelLostError, ModelDownError, and ModelFailedError if the model raises.
        """
        if self.inline is not None and len(arrays[0]) <= self.inline_rows:
            try:
                return self.inline(arrays)
            except Exception:  # as above
                return await self.client.arrays(arrays)
        assert self.batcher is not None  # noqa: S101 (set together with decode)
        return await self.batcher.put(arrays)

    async def raw(self, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        """Return status, media type and body as MLflow's scoring server would.

        Raises QueueFullError, ModelLostError, ModelDownError and ModelFailedError.
        """
        if self.raw_waiting + self.client.requests_given_up >= self._max_queue:
            raise QueueFullError
        self.raw_waiting += 1
        try:
            limits = self._limits
            about = [content_type, limits.rows, limits.columns, limits.cells, limits.depth]
            return await self.client.raw(body, about)
        finally:
            self.raw_waiting -= 1

    def close(self) -> None:
        """Disconnect from the model's process and end the threads."""
        self.client.close()
        if self.decoding is not None:
            self.decoding.close()
        if self._thread is not None:
            self._thread.shutdown(wait=False)


@dataclass
class Variant:
    """A version in a role, with its counts there."""

    version: LoadedVersion
    role: str
    series: Series
    raw_series: Series
    working: int = 0
    """Requests that it is answering."""

    @property
    def source(self) -> PredictionSource:
        """How the prediction log names it."""
        return PredictionSource(self.role, self.version.number, self.version.facts)

    @classmethod
    def of(cls, version: LoadedVersion, role: str, stats: Stats) -> Variant:
        """Return the version in a role."""
        series = stats.of(role, version.number, version.executor)
        return cls(version, role, series, stats.of(role, version.number, "mlflow"))


class Route:
    """Which version gets a request: the champion or, for a share, the canary; the shadow gets a copy."""

    def __init__(self) -> None:
        """Start without a version."""
        self.champion: Variant | None = None
        self.canary: Variant | None = None
        self.shadow: Variant | None = None
        self.canary_share = 0.0
        self.revision = 0
        self.leaving: list[tuple[Variant, float]] = []
        """Variants that get no more requests, and since when."""

    def choose(self) -> Variant | None:
        """Return the variant that answers the next request."""
        if self.canary is not None and random.random() < self.canary_share:  # noqa: S311 (no secret)
            return self.canary
        return self.champion

    @property
    def variants(self) -> list[Variant]:
        """All variants that get requests or are still answering one."""
        return [variant for variant in (self.champion, self.canary, self.shadow) if variant] + [
            variant for variant, _ in self.leaving
        ]

    async def follow(self, wanted: RouteFile, settings: Settings, stats: Stats) -> None:
        """Apply the supervisor's route; versions that are loaded already are reused.

        Raises UnloadableError if a version cannot be loaded; the route then stays as it was.
        """
        loaded: dict[str, LoadedVersion] = {}

        def known() -> dict[str, LoadedVersion]:
            return {variant.version.id: variant.version for variant in self.variants} | loaded

        # Check again after each: a version that was loaded may have left meanwhile.
        entries: dict[str, RouteEntry | None] = {
            "champion": wanted.get("champion"),
            "shadow": wanted.get("shadow"),
            "canary": wanted.get("canary"),
        }
        while missing := [each for each in entries.values() if each and each["id"] not in known()]:
            await asyncio.to_thread(_load, loaded, missing[0], settings, stats)
        variants: dict[str, Variant | None] = {}
        for role in ROLES:
            entry, now = entries[role], getattr(self, role)
            if entry is None:
                variants[role] = None
            elif now is not None and now.version.id == entry["id"]:
                variants[role] = now
            else:
                variants[role] = Variant.of(known()[entry["id"]], role, stats)
        for role, variant in variants.items():
            before = getattr(self, role)
            if before is not None and before is not variant:
                self.leaving.append((before, time.monotonic()))
            setattr(self, role, variant)
        self.canary_share = wanted.get("canary_share", 0.0)
        self.revision = wanted["revision"]

    def in_flight(self) -> dict[str, int]:
        """Return the number of requests that each version is answering, by id; let go of versions that are done."""
        gone = [variant.version for variant, _ in self.leaving if not variant.working]
        self.leaving = [(variant, since) for variant, since in self.leaving if variant.working]
        staying = {variant.version.id for variant in self.variants}
        for version in gone:
            if version.id not in staying:
                version.close()
        counts: dict[str, int] = {}
        for variant in self.variants:
            counts[variant.version.id] = counts.get(variant.version.id, 0) + variant.working
        return counts


def _load(loaded: dict[str, LoadedVersion], entry: RouteEntry, settings: Settings, stats: Stats) -> None:
    """Load a version in a thread, since reading a converted forest takes as long as thousands of requests.

    It goes into `loaded` rather than being returned: what carries a thread's result would keep the version in memory.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(LOADING_SWITCH_SECONDS)
    try:
        loaded[entry["id"]] = LoadedVersion(entry, settings, stats)
    except Exception as error:  # a version's files may be anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UnloadableError(entry["id"], reason) from error
    finally:
        sys.setswitchinterval(usual)

"""The data plane: from a request's body to the model's outputs, for both protocols.

It chooses the version, decodes the body, asks the model within the deadline, counts the answer, and hands copies to the
shadow and the prediction log. `metalworks.serving.http` reads requests and writes responses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from metalworks.serving.arrays import Arrays
from metalworks.serving.predict.batching import QueueFullError
from metalworks.serving.predict.client import ModelDownError, ModelFailedError, ModelLostError
from metalworks.serving.predict.codecs.mlflow_request import RequestRefusedError
from metalworks.serving.predict.codecs.open_inference import MalformedError
from metalworks.serving.predict.decoding import LIGHT_BYTES
from metalworks.serving.predict.failures import (
    MODEL_DOWN,
    MODEL_LOST,
    NO_MODEL,
    QUEUE_FULL,
    RETRY,
    TIMED_OUT,
    Failure,
    Headers,
)
from metalworks.serving.predict.shadow import Decode, Shadow
from metalworks.serving.predict.variants import LoadedVersion, Route, Variant
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Stats
from metalworks.serving.telemetry.prediction_log import Log, LoggedRequest

T = TypeVar("T")

JSON = "application/json"
_DECODED = JSON.encode()
"""The media type that is decoded here; bodies of others go to MLflow's own functions."""


class Prediction(msgspec.Struct, gc=False):
    """The outcome of a request."""

    status: int
    media_type: str
    body: bytes
    """The response in MLflow's scoring protocol."""
    headers: Headers = ()
    variant: Variant | None = None
    """Who was asked; None if the request was refused before."""
    arrays: Arrays | None = None
    """The inputs; None unless `outputs` were computed from them."""
    outputs: Arrays | None = None
    """None if MLflow's own functions answered, or nobody did."""
    seconds: float = 0.0


class DataPlane:
    """Predicts by the route, and counts."""

    def __init__(self, settings: Settings, route: Route, stats: Stats, log: Log | None = None) -> None:
        """Choose versions by `route`, count in `stats`, write a share of the requests to `log`."""
        self.settings, self.route, self.stats, self.log = settings, route, stats, log
        self.shadow = Shadow(stats, log, settings.request_timeout)

    def predict(self, body: bytes, content_type: bytes) -> Prediction | Coroutine[Any, Any, Prediction]:
        """Answer a request of MLflow's scoring protocol. The caller passes the result to `copy`.

        `content_type` is in lower case, without a charset that is UTF-8.
        A small request to a fast model is answered right away, without a coroutine.
        """
        began = time.perf_counter()
        variant = self.route.choose()
        if variant is None:
            self.stats.error("no_model")
            return _fail(NO_MODEL)
        version = variant.version
        if version.decode is None or content_type != _DECODED:
            return self._ask_model(variant, None, body, content_type, began)
        if len(body) > LIGHT_BYTES:
            return self._predict_long(variant, body, content_type, began)
        try:
            arrays = version.decode(body)
        except RequestRefusedError as refusal:
            return self._refuse(variant, refusal, began)
        return self._predict_arrays(variant, arrays, body, content_type, began)

    async def _predict_long(self, variant: Variant, body: bytes, content_type: bytes, began: float) -> Prediction:
        """Predict for a body that may take long to decode."""
        try:
            arrays = await self._decode(variant, variant.version.arrays_of(body))
        except RequestRefusedError as refusal:
            return self._refuse(variant, refusal, began)
        prediction = self._predict_arrays(variant, arrays, body, content_type, began)
        return prediction if isinstance(prediction, Prediction) else await prediction

    def _predict_arrays(
        self, variant: Variant, arrays: Arrays | None, body: bytes, content_type: bytes, began: float
    ) -> Prediction | Coroutine[Any, Any, Prediction]:
        """Predict for a body that is decoded, or is left to MLflow."""
        version = variant.version
        if arrays is not None and version.inline is not None and len(arrays[0]) <= version.inline_rows:
            # Fast enough to run in the event loop: no task, no future, no batch.
            try:
                outputs = version.inline(arrays)
                text = version.write(outputs)  # type: ignore[misc]
            except Exception:  # what the runtime refuses, MLflow's own functions decide
                arrays = None
            else:
                seconds = time.perf_counter() - began
                variant.series.observe(seconds, 200)
                return Prediction(200, JSON, text, (), variant, arrays, outputs, seconds)
        return self._ask_model(variant, arrays, body, content_type, began)

    def _refuse(self, variant: Variant, refusal: RequestRefusedError, began: float) -> Prediction:
        variant.series.observe(time.perf_counter() - began, refusal.status)
        self.stats.failed(refusal.status)
        return _fail(Failure.of(refusal))

    async def infer(self, variant: Variant, body: bytes) -> tuple[str | None, Arrays] | Failure:
        """Return the id and the outputs of a request of the Open Inference Protocol."""
        began = time.perf_counter()
        version = variant.version
        try:
            request_id, arrays = await self._decode(variant, version.tensors_of(body))
        except RequestRefusedError as refusal:
            if not isinstance(refusal, MalformedError):
                variant.series.observe(time.perf_counter() - began, refusal.status)
            return Failure.of(refusal)
        try:
            outputs = await self._ask(variant, version.outputs(arrays))
        except ModelFailedError as failed:
            outputs = Failure(400, "BAD_REQUEST", f"The model refuses these values: {failed}")
        seconds = time.perf_counter() - began
        if isinstance(outputs, Failure):
            variant.series.observe(seconds, outputs.status)
            return outputs
        variant.series.observe(seconds, 200)
        text = version.write(outputs) if version.write else b""

        async def decode(other: LoadedVersion) -> Arrays:
            return (await other.tensors_of(body))[1]

        prediction = Prediction(200, JSON, text, (), variant, arrays, outputs, seconds)
        self.copy(prediction, body if self.route.shadow else b"", b"", decode)
        return request_id, outputs

    def copy(self, prediction: Prediction, body: bytes, content_type: bytes, decode: Decode | None = None) -> None:
        """Hand an answered request to the shadow and the log.

        `decode` turns a body that is not of MLflow's scoring protocol into another version's inputs.
        """
        variant = prediction.variant
        if variant is None:
            return
        if self.route.shadow is not None and prediction.status == 200:
            self.shadow.copy(self.route.shadow, prediction.outputs, (body, content_type), decode)
        if self.log is not None and self.log.takes():
            status, text, seconds = prediction.status, prediction.body, prediction.seconds
            self.log.add(LoggedRequest(variant.source, prediction.arrays, body, status, text, seconds))

    async def _ask_model(
        self, variant: Variant, arrays: Arrays | None, body: bytes, content_type: bytes, began: float
    ) -> Prediction:
        """Predict through a batch, a thread or the model's process."""
        version = variant.version

        async def work() -> tuple[int, str, bytes, Arrays | None]:
            if arrays is not None:
                try:
                    outputs = await version.outputs(arrays)
                    return 200, JSON, version.write(outputs), outputs  # type: ignore[misc]
                except ModelFailedError:
                    pass  # MLflow's own functions say why, for this request alone
            return *await version.raw(body, content_type.decode("latin-1")), None

        try:
            answer = await self._ask(variant, work())
        except ModelFailedError as failed:
            answer = Failure(500, "INTERNAL_ERROR", f"The model raised {failed}")
        outputs: Arrays | None = None
        if isinstance(answer, Failure):
            status, media_type, text = answer.status, JSON, answer.body
        else:
            status, media_type, text, outputs = answer
        seconds = time.perf_counter() - began
        (variant.series if outputs is not None else variant.raw_series).observe(seconds, status)
        if status >= 400:
            self.stats.failed(status)
        headers = RETRY if status == 503 else ()
        arrays = arrays if outputs is not None else None
        return Prediction(status, media_type, text, headers, variant, arrays, outputs, seconds)

    async def _decode(self, variant: Variant, work: Coroutine[Any, Any, T]) -> T:
        """Return a decoded body; raise RequestRefusedError if it is refused, or decoding takes too long."""
        variant.working += 1
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                return await work
        except TimeoutError:
            raise RequestRefusedError(TIMED_OUT.status, TIMED_OUT.message) from None
        except ModelLostError as lost:
            raise RequestRefusedError(500, str(lost)) from lost
        finally:
            variant.working -= 1

    async def _ask(self, variant: Variant, work: Coroutine[Any, Any, T]) -> T | Failure:
        """Return what the model answers, or the failure if there was no time, place or process for the request."""
        variant.working += 1
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                return await work
        except QueueFullError:
            return QUEUE_FULL
        except TimeoutError:
            return TIMED_OUT
        except ModelLostError:
            return MODEL_LOST
        except ModelDownError:
            return MODEL_DOWN
        finally:
            variant.working -= 1


def _fail(failure: Failure) -> Prediction:
    return Prediction(failure.status, JSON, failure.body, failure.headers)

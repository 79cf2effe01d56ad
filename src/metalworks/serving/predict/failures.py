"""Requests that get no prediction: status, error code and message, in the form that MLflow's clients read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from metalworks.serving.predict.codecs.mlflow_request import RequestRefusedError

Headers = tuple[tuple[bytes, bytes], ...]

CODES = {
    400: "BAD_REQUEST",
    413: "MAX_READ_SIZE_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "RESOURCE_EXHAUSTED",
    504: "DEADLINE_EXCEEDED",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error response."""

    status: int
    code: str
    message: str
    headers: Headers = ()
    body: bytes = field(init=False)
    """The response's body, as JSON."""

    def __post_init__(self) -> None:
        """Encode the body."""
        object.__setattr__(self, "body", json.dumps({"error_code": self.code, "message": self.message}).encode())

    @classmethod
    def of(cls, refusal: RequestRefusedError) -> Failure:
        """Return the response to a request that was refused."""
        return cls(refusal.status, CODES[refusal.status], refusal.message)


RETRY: Headers = ((b"retry-after", b"1"),)
NO_MODEL = Failure(503, "TEMPORARILY_UNAVAILABLE", "The model is not loaded yet", ((b"retry-after", b"5"),))
QUEUE_FULL = Failure(503, "RESOURCE_EXHAUSTED", "Too many requests wait for the model; try again", RETRY)
TIMED_OUT = Failure(504, "DEADLINE_EXCEEDED", "Request processing time exceeded limit")  # MLflow's wording
MODEL_LOST = Failure(500, "INTERNAL_ERROR", "The model's process ended, twice, while it worked on this request")
MODEL_DOWN = Failure(
    502, "TEMPORARILY_UNAVAILABLE", "The model's process ended and does not come back; the journal says why"
)

"""What the server is told by its environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one inference service; each comes from METALWORKS_INFERENCE_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="METALWORKS_INFERENCE_", frozen=True)

    service: str = Field(description="Name of the service.")
    model_dir: Path = Field(description="Folder of one model version, as `metalworks-model fetch` leaves it.")
    requirements_sha256: str | None = Field(None, description="Digest of the lock that the environment was made from.")
    tokens_sha256: frozenset[str] = Field(
        frozenset(), description="SHA-256 of the tokens that callers may show, as JSON list; empty: anyone may ask."
    )
    request_timeout: float = Field(60, gt=0, description="Seconds until a request is answered with 504.")
    max_body_bytes: int = Field(64 * 2**20, gt=0, description="A longer request body is answered with 413.")

"""A loaded model and its answers in MLflow's scoring protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PyFuncModel, load_model, scoring_server
from mlflow.types import Schema

from metalworks.inference.schema import JSON
from metalworks.models import ModelCard


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the caller."""

    body: str
    status: int = 200
    media_type: str = JSON

    @classmethod
    def of_error(cls, error: MlflowException) -> Answer:
        """Return the error in the form that MLflow's clients read."""
        return cls(error.serialize_as_json(), error.get_http_status_code())


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model, ready to answer."""

    card: ModelCard
    pyfunc: PyFuncModel
    input_schema: Schema | None

    @classmethod
    def load(cls, version_dir: Path) -> ServedModel:
        """Load a fetched version; the types it may deserialize are those that its own MLmodel file trusts."""
        pyfunc = load_model(str(version_dir / "model"))
        return cls(ModelCard.read(version_dir), pyfunc, pyfunc.metadata.get_input_schema())

    def answer(self, body: bytes, content_type: str) -> Answer:
        """Answer one request as `mlflow models serve` does, by the same functions."""
        try:
            result = scoring_server.invocations(body, content_type, self.pyfunc, self.input_schema)
        except MlflowException as error:
            return Answer.of_error(error)
        except RecursionError:
            return Answer.of_error(MlflowException("Invalid input. It is nested too deeply.", error_code=BAD_REQUEST))
        except ValueError as error:  # what MLflow does not expect of a parser, as numbers with thousands of digits
            return Answer.of_error(MlflowException(f"Invalid input. {error}", error_code=BAD_REQUEST))
        return Answer(result.response, result.status, result.mimetype)

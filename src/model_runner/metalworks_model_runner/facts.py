"""facts.json: what was found when the model's own environment loaded it. Imports the standard library alone.

The model runner writes the file, the server reads it.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

VALUES, FORM = "values", "form"
"""What varies between two answers to the same request: values alone, or also names, types or the number of rows."""


class ColumnFacts(TypedDict):
    """A column of the model's signature."""

    name: str
    type: str
    """MLflow's name of the type."""
    required: bool


class TensorFacts(TypedDict):
    """The one unnamed tensor that a model takes."""

    dtype: str
    """numpy's name."""
    shape: list[int]
    """The first size is -1: the rows."""


class FormFacts(TypedDict):
    """How MLflow writes the model's predictions."""

    kind: str
    """list, records (one object per row) or dict (one list per output)."""
    names: list[str]
    """Names of the outputs; none for a list."""


class ExecutorFacts(TypedDict):
    """Whether an executor gives MLflow's predictions."""

    ok: bool
    reason: str
    function: NotRequired[str]
    """The function that the model's process is to call."""
    nulls: NotRequired[bool]
    """Whether it treats NaN as MLflow does."""


class OnnxCandidate(TypedDict):
    """A converted model, yet to be compared with MLflow's predictions."""

    file: str
    double: bool
    columns: bool


class OnnxFacts(TypedDict):
    """The converted models, or why there is none."""

    candidates: list[OnnxCandidate]
    reason: str


class Facts(TypedDict):
    """facts.json."""

    mlflow: str
    """Version of MLflow in the model's environment."""
    flavors: list[str]
    columns: list[ColumnFacts] | None
    tensor: TensorFacts | None
    """With neither columns nor tensor, MLflow decodes every request."""
    params: bool
    schema: Any
    output: Any
    example: Any
    """The recorded example as a request, null if there is none."""
    example_answer: Any
    """The model's response to it."""
    varies: NotRequired[str]
    """`values` or `form` if two answers to the same request differ in these; otherwise empty."""
    executors: dict[str, ExecutorFacts]
    onnx: OnnxFacts
    level: NotRequired[str]
    form: NotRequired[FormFacts]
    output_types: NotRequired[list[str]]
    output_shapes: NotRequired[list[list[int]]]
    nulls: NotRequired[bool]
    """Not in the file: the server adds what verdict.json says, for the codecs."""

"""Inspects a model, once per version, in the model's own environment.

Writes to a folder: `samples.bin` with sample rows and MLflow's predictions for them, converted models for ONNX Runtime,
and `facts.json` last. The server's equivalence check compares its executors with these predictions.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException

from metalworks_model_runner import array_equality, convert, evidence, samples
from metalworks_model_runner.facts import FORM, VALUES
from metalworks_model_runner.json_equality import alike, same
from metalworks_model_runner.model import Arrays, Form, Model, Outputs, UnfitError, outputs_of
from metalworks_model_runner.signature import NUMPY

FACTS = "facts.json"
EDGES = 256
EXPECTED = "metalworks.example_predictions"
"""Key in the model's metadata of its predictions for its example when it was logged."""


class InspectionError(Exception):
    """The model must not be served; the message says why."""


def inspect_model(folder: Path, into: Path) -> dict[str, Any]:
    """Inspect the model in `folder`; write facts, samples and converted models to `into`.

    Raises InspectionError if the model does not answer its own example, and whatever loading it raises.
    """
    into.mkdir(parents=True, exist_ok=True)
    model = Model(folder)
    facts: dict[str, Any] = {
        "mlflow": importlib.metadata.version("mlflow"),
        "flavors": sorted(set(model.flavors) - {"python_function"}),
        **model.signature,
        "params": model.pyfunc.metadata.get_params_schema() is not None,
        "schema": _dictionaries(model.schema),
        "output": _dictionaries(model.pyfunc.metadata.get_output_schema()),
        "example": None,
        "example_answer": None,
        "varies": "",
        "executors": {},
        "onnx": {"candidates": [], "reason": ""},
    }
    example = _example(model, facts)
    reason = _samples(model, facts, example, into)
    if reason:
        facts["executors"] = {name: {"ok": False, "reason": reason} for name in ("native", "pyfunc")}
        facts["onnx"]["reason"] = reason
    (into / f"{FACTS}.new").write_text(json.dumps(facts, indent=1))
    (into / f"{FACTS}.new").replace(into / FACTS)
    return facts


def _dictionaries(schema: Any) -> Any:
    return schema.to_dict() if schema is not None else None


def _example(model: Model, facts: dict[str, Any]) -> Any:
    """Ask the recorded example as a client would, and return it as MLflow loads it; None if there is none."""
    body, is_request = model.example_request()
    if body is None:
        return None
    try:
        first, second = _answer(model, body), _answer(model, body)
    except InspectionError:
        if is_request:
            raise
        return _loaded_example(model)  # old versions of MLflow recorded examples that no request can have
    facts["example"], facts["example_answer"] = json.loads(body), first
    if not same(second, first):
        facts["varies"] = VALUES if alike(second, first) else FORM
    recorded = (model.pyfunc.metadata.metadata or {}).get(EXPECTED)
    if recorded is not None:
        ours = first.get("predictions")
        fits = {"": same, VALUES: alike}.get(facts["varies"])
        if fits is not None and not fits(ours, recorded):
            raise InspectionError(
                f"it answers its example with {_short(ours)}, and answered {_short(recorded)} when it was made: "
                "its environment here is not the recorded one, or its files changed"
            )
    try:
        return model.load_example()
    except MlflowException:
        if is_request:
            raise
        return None  # newer versions of MLflow do not read all that old ones wrote


def _answer(model: Model, body: bytes) -> Any:
    """Return the model's answer to its example."""
    status, _, answer = model.answer(body, "application/json")
    if status != 200:
        message = json.loads(answer).get("message", "") if answer.startswith(b"{") else answer.decode()
        raise InspectionError(f"it does not answer its own example: {' '.join(message.split())[:400]}")
    return json.loads(answer)


def _loaded_example(model: Model) -> Any:
    """Return the example as MLflow loads it; None if the signature refuses it, which nobody checked at the time."""
    try:
        example = model.load_example()
        model.pyfunc.predict(example)
    except MlflowException:
        return None
    except Exception as error:  # models raise many types
        raise InspectionError(f"it does not answer its own example: {' '.join(str(error).split())[:400]}") from error
    return example


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _arrays_of(model: Model, example: Any) -> list[np.ndarray] | None:
    """Return the example as columns or as the tensor; None if it has another form."""
    if example is None:
        return None
    if model.signature["tensor"]:
        return [np.asarray(example)] if isinstance(example, np.ndarray) else None
    if not hasattr(example, "columns") or not set(model.names) <= set(example.columns) or not len(example):
        return None
    dtypes = [NUMPY[each["type"]] for each in model.signature["columns"]]
    try:
        return [example[name].to_numpy().astype(dtype) for name, dtype in zip(model.names, dtypes, strict=True)]
    except (TypeError, ValueError):
        return None


def _grouped(model: Model, arrays: list[np.ndarray]) -> Arrays:
    """Join columns of one type into a matrix, as the decoder does."""
    columns = model.signature["columns"]
    if columns and len({each["type"] for each in columns}) == 1 and columns[0]["type"] != "string":
        return [np.column_stack(arrays)]
    return arrays


def _samples(model: Model, facts: dict[str, Any], example: Any, into: Path) -> str:
    """Compare the executors on sample rows; return why only MLflow itself can answer, or an empty text."""
    if facts["varies"]:
        return "its answers to the same request vary"
    if model.has_type_hints:
        return "its signature comes from type hints"
    if not facts["columns"] and not facts["tensor"]:
        return "it has no signature of plain columns or of one tensor"
    known = _arrays_of(model, example)
    asked = _ask(model, known)
    if isinstance(asked, str):
        return asked
    level, rows, form, expected = asked
    if _varies(model, rows, expected):
        facts["varies"] = VALUES
        return "its answers to the same rows vary"
    facts["level"], facts["form"] = level, asdict(form)
    facts["output_types"] = [each.dtype.str if each.dtype != object else "text" for each in expected]
    facts["output_shapes"] = [list(each.shape[1:]) for each in expected]
    if not _apart(model.by_pyfunc, rows, expected):
        return "what it answers to a row depends on the rows beside it"
    nulls = _with_nulls(facts, rows)
    null_answers = _null_answers(model, nulls)
    through = {"ok": True, "nulls": null_answers is not None, "reason": "through MLflow, many requests at a time"}
    facts["executors"]["pyfunc"] = through
    facts["executors"]["native"] = _native(model, rows, (form, expected), nulls, null_answers)
    edges: Arrays = []
    edge_answers: Outputs = []
    if level == samples.WIDE:
        found, reason = convert.candidates(model, into)
        facts["onnx"] = {"candidates": found, "reason": reason}
        if edge_rows := _edges(into, found, rows):
            edges, edge_answers = edge_rows, outputs_of(model.by_pyfunc(edge_rows), len(edge_rows[0]))[1]
    else:
        facts["onnx"]["reason"] = "the model refuses some values of its columns' types, and a converted one would not"
    groups = {"rows": rows, "expected": expected, "edges": edges, "edge_answers": edge_answers}
    if null_answers is not None:
        groups |= {"nulls": nulls, "null_answers": null_answers}
    evidence.write(into, groups)
    return ""


def _ask(model: Model, known: list[np.ndarray] | None) -> tuple[str, Arrays, Form, Outputs] | str:
    """Return the level of sample rows, the rows, their form and MLflow's predictions; or why there are none."""
    reason = "it has no example, and random rows are not what it wants"
    for level in samples.LEVELS:
        columns = samples.rows(model.signature, known, level)
        if columns is None:
            break
        rows = _grouped(model, columns)
        try:
            answered = model.by_pyfunc(rows)
        except Exception as error:  # models raise many types
            reason = f"it answers no rows made for its signature: {' '.join(str(error).split())[:200]}"
            continue
        try:
            form, expected = outputs_of(answered, len(rows[0]))
        except UnfitError as error:
            return str(error)
        return level, rows, form, expected
    return reason


def _varies(model: Model, rows: Arrays, expected: Outputs) -> bool:
    """Return whether the model answers the same rows otherwise when it is asked again."""
    try:
        again = outputs_of(model.by_pyfunc(rows), len(rows[0]))[1]
    except Exception:  # models raise many types
        return True
    return bool(array_equality.difference(again, expected))


def _parts(rows: Arrays) -> list[list[np.ndarray]]:
    """Return the rows in parts of several sizes, like requests."""
    bounds = [0, 1, 2, 9, 40, len(rows[0])]
    return [[each[a:b] for each in rows] for a, b in itertools.pairwise(bounds) if b > a]


def _apart(ask: Callable[[Arrays], Any], rows: Arrays, expected: Outputs) -> bool:
    """Return whether predictions for parts are the same as for all rows together."""
    try:
        answers = [outputs_of(ask(part), len(part[0]))[1] for part in _parts(rows)]
    except Exception:  # models raise many types
        return False
    joined = [np.concatenate(each) for each in zip(*answers, strict=True)]
    return not array_equality.difference(joined, expected)


def _with_nulls(facts: dict[str, Any], rows: Arrays) -> Arrays:
    """Return the rows with nulls in columns that can hold NaN; empty if no column can."""
    if not facts["columns"] or not any(each["type"] == "double" for each in facts["columns"]):
        return []
    random = np.random.default_rng(samples.SEED)
    changed = []
    for array in rows:
        if array.dtype == np.float64:
            array = np.where(random.random(array.shape) < 0.2, np.nan, array)
        changed.append(array)
    return changed


def _null_answers(model: Model, nulls: Arrays) -> Outputs | None:
    if not nulls:
        return None
    try:
        answers = outputs_of(model.by_pyfunc(nulls), len(nulls[0]))[1]
    except Exception:  # most models refuse nulls, with many types of errors
        return None
    return answers if _apart(model.by_pyfunc, nulls, answers) else None


def _native(
    model: Model, rows: Arrays, wanted: tuple[Form, Outputs], nulls: Arrays, null_answers: Outputs | None
) -> dict[str, Any]:
    """Return the first native function that predicts what MLflow predicts, or why none does."""
    try:
        functions = model.native()
    except Exception as error:  # a library is missing, or has another version
        return {"ok": False, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    reasons = [] if functions else [f"none is known for {', '.join(sorted(set(model.flavors) - {'python_function'}))}"]
    for name, ask in functions.items():
        try:
            form, ours = outputs_of(ask(rows), len(rows[0]))
            fits = form == wanted[0] and not array_equality.difference(ours, wanted[1]) and _apart(ask, rows, wanted[1])
        except Exception as error:  # libraries raise many types
            reasons.append(f"{name}: {' '.join(str(error).split())[:200]}")
            continue
        if fits:
            same = null_answers is not None and _apart(ask, nulls, null_answers)
            return {
                "ok": True,
                "function": name,
                "nulls": same,
                "reason": f"equal to MLflow's answers on {len(rows[0])} rows",
            }
        reasons.append(f"{name}: it answers otherwise than through MLflow")
    return {"ok": False, "reason": "; ".join(reasons)}


def _edges(into: Path, found: list[dict[str, Any]], rows: Arrays) -> Arrays:
    """Return rows with values at and next to the thresholds of converted trees, where rounding shows."""
    file = next((each["file"] for each in found if not each["columns"]), None)
    if file is None or len(rows) != 1 or rows[0].ndim != 2:
        return []
    onnx = importlib.import_module("onnx")
    pairs: list[tuple[int, float]] = []
    for node in onnx.load(into / file).graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        values = given.get("nodes_values") or given.get("nodes_values_as_tensor")
        if values is None:
            continue
        numbers = onnx.numpy_helper.to_array(values) if hasattr(values, "dims") else values
        kinds = given["nodes_modes"]
        pairs += [
            (int(feature), float(value))
            for feature, value, kind in zip(given["nodes_featureids"], numbers, kinds, strict=True)
            # After steps that add columns, a tree's feature may be none of the model's columns.
            if kind != b"LEAF" and feature < rows[0].shape[1]
        ]
    if not pairs:
        return []
    random = np.random.default_rng(samples.SEED)
    chosen = random.choice(len(pairs), size=min(EDGES, len(pairs)), replace=False)
    edges = rows[0][random.integers(0, len(rows[0]), 5 * len(chosen))].astype(np.float64)
    for i, which in enumerate(chosen):
        feature, value = pairs[which]
        # In both precisions, since the next double is the same number in single precision.
        near = [
            np.nextafter(number(value), number(to)) for number in (np.float64, np.float32) for to in (-np.inf, np.inf)
        ]
        edges[5 * i : 5 * i + 5, feature] = (value, *near)
    return [edges.astype(rows[0].dtype)]

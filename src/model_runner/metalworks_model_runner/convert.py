"""Converts a model to ONNX. The results are candidates: the equivalence check compares them with MLflow."""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from metalworks_model_runner.model import Model

OPSET = 17
"""Supported by every current converter and runtime, and recent enough for all models that they convert."""


def candidates(model: Model, into: Path) -> tuple[list[dict[str, Any]], str]:
    """Write the converted models; return [{file, double, columns}], best first, or the reason why there are none."""
    signature = model.signature
    if not signature["columns"] and not signature["tensor"]:
        return [], "its signature is not of plain columns or one tensor"
    if "onnx" in model.flavors:
        return _as_it_is(model, into)
    columns = not _is_matrix(model)
    found: list[dict[str, Any]] = []
    reason = ""
    for double in (False, True):
        file = into / f"model-{'double' if double else 'single'}.onnx"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                converted = _convert(model, double)
        except Exception as error:  # converters raise many types; the message is the reason
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        file.write_bytes(converted.SerializeToString())
        found.insert(0, {"file": file.name, "double": double, "columns": columns})
        # Trees compare in single precision in either file, since ONNX has no other trees.
        if any(node.op_type.startswith("TreeEnsemble") for node in converted.graph.node):
            break
    return found, "" if found else reason


def _as_it_is(model: Model, into: Path) -> tuple[list[dict[str, Any]], str]:
    onnx = importlib.import_module("onnx")
    source = model.folder / model.flavors["onnx"]["data"]
    loaded = onnx.load(source)
    inputs = [each.name for each in loaded.graph.input]
    (into / "model.onnx").write_bytes(loaded.SerializeToString())
    one = {"file": "model.onnx", "double": False, "columns": len(inputs) > 1}
    return [one], ""


def _is_matrix(model: Model) -> bool:
    """Whether all columns are numbers of one type, hence one matrix."""
    types = {each["type"] for each in model.signature["columns"] or ()}
    return len(types) < 2 and "string" not in types


def _convert(model: Model, double: bool) -> Any:
    for flavor in ("sklearn", "xgboost", "lightgbm"):
        if flavor in model.flavors:
            return _CONVERTERS[flavor](model, model.raw(), double)
    raise NotImplementedError(f"no converter for {', '.join(sorted(set(model.flavors) - {'python_function'}))}")


def _types(model: Model, double: bool) -> list[tuple[str, Any]]:
    """Return the inputs for skl2onnx: one matrix, or one input per column."""
    types = importlib.import_module("skl2onnx.common.data_types")
    number = types.DoubleTensorType if double else types.FloatTensorType
    if _is_matrix(model):
        columns = model.signature["columns"]
        width = len(columns) if columns else model.signature["tensor"]["shape"][1]
        return [("input", number([None, width]))]
    kinds = {"string": types.StringTensorType, "boolean": types.BooleanTensorType}
    kinds |= {"integer": types.Int64TensorType, "long": types.Int64TensorType}
    return [(each["name"], kinds.get(each["type"], number)([None, 1])) for each in model.signature["columns"]]


def _sklearn(model: Model, raw: Any, double: bool) -> Any:
    skl2onnx = importlib.import_module("skl2onnx")
    options: dict[Any, Any] = {}
    wanted = None
    if importlib.import_module("sklearn.base").is_classifier(raw):
        name = model.flavors["python_function"].get("predict_fn") or "predict"
        if name not in ("predict", "predict_proba"):
            raise NotImplementedError(f"{name} is not converted")
        options, wanted = {id(raw): {"zipmap": False}}, "probabilities" if name == "predict_proba" else "label"
    skl2onnx.update_registered_converter(
        importlib.import_module("sklearn.impute").SimpleImputer,
        "SklearnSimpleImputer",
        importlib.import_module("skl2onnx.shape_calculators.imputer").calculate_sklearn_imputer_output_shapes,
        _imputer,
    )
    converted = skl2onnx.to_onnx(
        raw, initial_types=_types(model, double), options=options, target_opset={"": OPSET, "ai.onnx.ml": 3}
    )
    return _only(converted, wanted) if wanted else converted


def _imputer(scope: Any, operator: Any, container: Any) -> None:
    """Convert a SimpleImputer. ONNX's Imputer has no double precision, so that case is converted here."""
    library = importlib.import_module("skl2onnx.operator_converters.imputer_op")
    types = importlib.import_module("skl2onnx.common.data_types")
    imputer = operator.raw_operator
    learned = np.asarray(imputer.statistics_)
    usual = learned.dtype.kind == "f" and not np.isnan(learned).any() and not imputer.add_indicator
    nan = isinstance(imputer.missing_values, float) and np.isnan(imputer.missing_values)
    if not (usual and nan and isinstance(operator.inputs[0].type, types.DoubleTensorType)):
        library.convert_sklearn_imputer(scope, operator, container)
        return
    source = library.concatenate_variables(scope, operator.inputs, container)
    nulls, values = scope.get_unique_variable_name("nulls"), scope.get_unique_variable_name("learned")
    double = importlib.import_module("onnx").TensorProto.DOUBLE
    container.add_initializer(values, double, [1, len(learned)], learned.tolist())
    container.add_node("IsNaN", source, nulls, name=scope.get_unique_operator_name("IsNaN"))
    replaced = operator.outputs[0].full_name
    container.add_node("Where", [nulls, values, source], replaced, name=scope.get_unique_operator_name("Where"))


def _only(converted: Any, output: str) -> Any:
    """Keep one output of a converted classifier."""
    kept = [each for each in converted.graph.output if each.name == output]
    if not kept:
        raise NotImplementedError(f"the converted model has no output {output}")
    del converted.graph.output[:]
    converted.graph.output.extend(kept)
    return converted


def _xgboost(model: Model, raw: Any, double: bool) -> Any:
    raw = copy.deepcopy(raw)
    booster = raw if type(raw).__name__ == "Booster" else raw.get_booster()
    booster.feature_names = None  # the converter knows only numbered features
    return _onnxmltools(model, raw, double, "convert_xgboost")


def _lightgbm(model: Model, raw: Any, double: bool) -> Any:
    return _onnxmltools(model, raw, double, "convert_lightgbm")


def _onnxmltools(model: Model, raw: Any, double: bool, function: str) -> Any:
    if double:
        raise NotImplementedError("its converter knows single precision only")
    if not _is_matrix(model):
        raise NotImplementedError("its columns are not all numbers")
    tools = importlib.import_module("onnxmltools")
    types = importlib.import_module("onnxmltools.convert.common.data_types")
    columns = model.signature["columns"]
    width = len(columns) if columns else model.signature["tensor"]["shape"][1]
    initial = [("input", types.FloatTensorType([None, width]))]
    converted = getattr(tools, function)(raw, initial_types=initial, target_opset=15)
    names = [each.name for each in converted.graph.output]
    if len(names) > 1:  # a classifier
        wrapper = hasattr(raw, "predict_proba")
        return _only(converted, "label" if wrapper else "probabilities")
    return converted


_CONVERTERS = {"sklearn": _sklearn, "xgboost": _xgboost, "lightgbm": _lightgbm}

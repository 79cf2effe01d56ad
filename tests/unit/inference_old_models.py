"""Saves models with whatever MLflow is installed, also 2.6: `python inference_old_models.py FOLDER`."""

import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import Ridge

TABLE = pd.DataFrame({"a": [0.0, 1.0, 2.0], "b": [1.0, 0.5, 0.0]})
TARGET = [1.0, 2.0, 3.0]
REQUIREMENTS = ["scikit-learn"]


class Doubles(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return (model_input["a"] * 2).tolist()


def save_all(folder: Path) -> None:
    """Save a model of columns, one of a tensor, and one in Python."""
    matrix = TABLE.to_numpy()
    for name, rows in {"columns": TABLE, "tensor": matrix}.items():
        model = Ridge().fit(rows, TARGET)
        signature = infer_signature(rows, model.predict(rows))
        mlflow.sklearn.save_model(
            model, folder / name, signature=signature, input_example=rows, pip_requirements=REQUIREMENTS
        )
    signature = infer_signature(TABLE, np.array(TARGET))
    mlflow.pyfunc.save_model(
        folder / "python",
        python_model=Doubles(),
        signature=signature,
        input_example=TABLE,
        pip_requirements=REQUIREMENTS,
    )


if __name__ == "__main__":
    save_all(Path(sys.argv[1]))

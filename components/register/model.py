"""The model as users get it: an MLflow pyfunc made from this file, safetensors and JSON, without a pickle.

    model = mlflow.pyfunc.load_model("models:/cxr-classify@champion")
    probabilities = model.predict(["radiograph.dcm"])  # a row a file, a column a finding

MLflow runs this file when a model is packed and whenever it is loaded. Beside it, in `code`, lie copies of the modules that the model
needs, those of its task only. They are used even where the process has imported other modules of the same names, such as those of
another packed model: several models of ours, of several ages, can be loaded into one process.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

CODE = Path(__file__).with_name("code")
PACKAGE = "components"


class Model(PythonModel):
    """Findings, boxes or latents of radiographs."""

    def load_context(self, context: PythonModelContext) -> None:
        """Builds the network from the artifacts `description` (model.json) and `weights` (model.safetensors)."""
        self._description: dict[str, Any] = json.loads(Path(context.artifacts["description"]).read_bytes())
        with _own_code():
            self._inputs: Any = importlib.import_module("components.register.inputs")
            networks = importlib.import_module(f"components.{self._description['task']}.serving")
            self._network = networks.load(self._description, Path(context.artifacts["weights"]))

    # MLflow warns of an input without an annotation and validates by most: this one, which it does neither for, stands for all kinds.
    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """What the network finds in images.

        Args:
            context: not used.
            model_input: files (paths or bytes), a data frame with a column `dicom` (bytes or base64), or (N, H, W) pixels as
                `shards.decode` returns them: uint8 or uint16 as in training, bright = dense tissue, longer side at most the
                training size.
            params: for a model of the task invert `reconstructions`: whether to return the images as well.

        Returns:
            As README.md beside this file says: probabilities, boxes or latents.

        Raises:
            ValueError: other input, or a file that preprocess would quarantine.
        """
        preprocessing = self._description.get("preprocessing", {})
        images = self._inputs.images(model_input, self._network.size, self._network.bits, preprocessing)
        found: pd.DataFrame = self._network.answer(images, params or {})
        return found


@contextmanager
def _own_code() -> Iterator[None]:
    """Imports within take the modules that lie beside this file; modules of these names that were there before are there again after."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    origin = getattr(before.get(PACKAGE), "__file__", None)
    if not CODE.is_dir() or (origin and CODE in Path(origin).parents):
        yield
        return
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(CODE))
    try:
        yield
    finally:
        sys.path.remove(str(CODE))
        if before:
            for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
                del sys.modules[name]
            sys.modules.update(before)


mlflow.models.set_model(Model())

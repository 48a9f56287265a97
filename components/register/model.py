"""The packed model: an MLflow pyfunc made of this file, safetensors and JSON, without a pickle.

    model = mlflow.pyfunc.load_model("models:/cxr-classify@champion")
    probabilities = model.predict(["radiograph.dcm"])  # one row per file, one column per finding

MLflow runs this file when a model is packed and whenever it is loaded. The archive `code/components.zip` has copies of the modules that
the model needs. They are used even if the process has imported other modules of the same names, such as those of another packed model,
so that models of different versions of this project can be loaded into one process.
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

CODE = Path(__file__).with_name("code") / "components.zip"
PACKAGE = "components"


class Model(PythonModel):
    """Predicts findings, boxes or latents of radiographs."""

    def load_context(self, context: PythonModelContext) -> None:
        """Builds the network from the artifacts `description` (model.json) and `weights` (model.safetensors)."""
        self._description: dict[str, Any] = json.loads(Path(context.artifacts["description"]).read_bytes())
        with _own_code():
            self._inputs: Any = importlib.import_module("components.register.inputs")
            networks = importlib.import_module(f"components.{self._description['task']}.serving")
            self._network = networks.load(self._description, Path(context.artifacts["weights"]))

    # MLflow warns about inputs without a type, and validates most types; it does neither for a data frame.
    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predicts.

        Args:
            context: not used.
            model_input: files (paths or bytes), a data frame with a column `dicom` (bytes or base64), or (N, H, W) pixels as
                `shards.decode` returns them: uint8 or uint16 as in training, bright = dense tissue, longer side at most the
                training size.
            params: options of the head, such as `reconstructions` of invert: whether to return the images as well.

        Returns:
            Probabilities, boxes or latents, as described in README.md beside this file.

        Raises:
            ValueError: the input is of another kind, or a file would be quarantined by preprocess.
        """
        preprocessing = self._description.get("preprocessing", {})
        images = self._inputs.images(model_input, self._network.size, self._network.bits, preprocessing)
        found: pd.DataFrame = self._network.answer(images, params or {})
        return found


@contextmanager
def _own_code() -> Iterator[None]:
    """Makes imports use the modules in the archive, and restores the previous modules of these names afterwards."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    origin = getattr(before.get(PACKAGE), "__file__", None)
    if not CODE.is_file() or (origin and CODE in Path(origin).parents):
        yield
        return
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(CODE))
    importlib.invalidate_caches()  # an earlier archive may have had the same path
    try:
        yield
    finally:
        sys.path.remove(str(CODE))
        if before:
            for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
                del sys.modules[name]
            sys.modules.update(before)


mlflow.models.set_model(Model())

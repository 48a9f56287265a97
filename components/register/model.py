"""The model as users get it: an MLflow pyfunc made from this file, safetensors and JSON, without a pickle.

    model = mlflow.pyfunc.load_model("models:/cxr-classify@champion")
    probabilities = model.predict(["radiograph.dcm"])  # a row a file, a column a finding

MLflow runs this file when a model is packed and whenever it is loaded, with copies of the modules that it imports on the path.
"""

import json
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from components.register import inputs, networks


class Findings(PythonModel):
    """Calibrated probabilities of findings."""

    def load_context(self, context: PythonModelContext) -> None:
        """Builds the network from the artifacts `description` (model.json) and `weights` (model.safetensors)."""
        self._description: dict[str, Any] = json.loads(Path(context.artifacts["description"]).read_bytes())
        self._network = networks.classifier(self._description, Path(context.artifacts["weights"]))

    # MLflow warns of an input without an annotation and validates by most: this one, which it does neither for, stands for all kinds.
    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Probability of each finding.

        Args:
            context: not used.
            model_input: files (paths or bytes), a data frame with a column `dicom` (bytes or base64), or (N, H, W) pixels as
                `shards.decode` returns them: uint8 or uint16 as in training, bright = dense tissue, longer side at most the
                training size.
            params: not used.

        Returns:
            N rows, one float32 column a finding.

        Raises:
            ValueError: other input, or a file that preprocess would quarantine.
        """
        about = self._description
        images = inputs.images(model_input, about["size"], about["bits"], about.get("preprocessing", {}))
        return pd.DataFrame(self._network.score([image.pixels for image in images]), columns=about["findings"])


mlflow.models.set_model(Findings())

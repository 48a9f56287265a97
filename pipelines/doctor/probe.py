"""What the probe pods of the doctor run: `python -m pipelines.doctor.probe [ROOT]`. It prints one JSON text per finding."""

import json
import os
import sys
from collections.abc import Callable

from components.common.errors import UserError
from components.common.runs import storage, tracking
from components.common.runs.work import WORK_VARIABLE

PROBE = ".probe"


def main(arguments: list[str]) -> int:
    """Tries the object store, MLflow and the volume, as the steps use them; without the root of the outputs, the GPU."""
    if not arguments:
        _try("GPU", _gpu)
        return 0
    (root,) = arguments
    _try("S3", lambda: _write(root))
    _try("MLflow", _mlflow)
    if work := os.environ.get(WORK_VARIABLE):
        _try("volume", lambda: _write(work))
    return 0


def _try(what: str, work: Callable[[], str]) -> None:
    try:
        said, fine = work(), True
    except UserError as error:
        said, fine = str(error), False
    except OSError as error:
        said = f"{error.filename}: {error.strerror}; check that the job cxr-work-owner has run, and `user` in the settings"
        fine = False
    print(json.dumps({"what": what, "fine": fine, "said": said}), flush=True)


def _write(folder: str) -> str:
    name = storage.join(folder, PROBE)
    storage.write(name, b"")
    storage.delete(name)
    return f"{folder} can be written to"


def _mlflow() -> str:
    tracking.client()
    return f"{tracking.server_name()} answers"


def _gpu() -> str:
    from components.common.training import devices  # imports torch, which only one of the images has

    devices.set_up("cuda", seed=0)
    return devices.description()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What the probe pod of the doctor runs: `python -m pipelines.doctor.probe ROOT`. It prints one JSON text per finding."""

import json
import os
import sys
from collections.abc import Callable

from components.common.errors import UserError
from components.common.runs import storage, tracking
from components.common.runs.work import WORK_VARIABLE

PROBE = ".probe"


def main(root: str) -> int:
    """Tries the object store, MLflow and the volume, as the steps use them."""
    _try("S3", lambda: _write(root), f"{root} can be written to")
    _try("MLflow", tracking.client, f"{tracking.server_name()} answers")
    if work := os.environ.get(WORK_VARIABLE):
        _try("volume", lambda: _write(work), f"{work} can be written to")
    return 0


def _try(what: str, work: Callable[[], object], success: str) -> None:
    try:
        work()
        said, fine = success, True
    except UserError as error:
        said, fine = str(error), False
    except OSError as error:
        said = f"{error.filename}: {error.strerror}; check that the job cxr-work-owner has run, and `user` in the settings"
        fine = False
    print(json.dumps({"what": what, "fine": fine, "said": said}), flush=True)


def _write(folder: str) -> None:
    name = storage.join(folder, PROBE)
    storage.write(name, b"")
    storage.delete(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

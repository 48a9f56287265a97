"""torchrun that ends as the training does: `python -m components.torchrun [torchrun's options] -m components STAGE ...`.

torchrun ends with 1 and a traceback whatever its processes end with, so that Kubernetes, which looks at the exit code of the
pod, could not tell a training that is to be continued (75) or mended (2) from one that broke.
"""

import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from components.common.runs import signals

MISTAKE = 2


def main(arguments: list[str]) -> int:
    """Starts the processes, waits for them, and returns the exit code."""
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except SignalException:
        return signals.EXIT_CODE
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if MISTAKE in codes:
            return MISTAKE
        # The launcher itself ends the others with a signal once one has ended.
        return signals.EXIT_CODE if codes <= {signals.EXIT_CODE, -signal.SIGTERM} else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

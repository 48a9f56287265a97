"""torchrun with the exit code of the training: `python -m components.torchrun [torchrun's options] -m components STAGE ...`.

torchrun itself always fails with 1 and a traceback, so that Kubernetes, which looks at the exit code of the pod, could not tell a
training to resume (75) or a user's mistake (2) from a crash.
"""

import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from components.common.runs import cores, signals

USER_ERROR = 2


def main(arguments: list[str]) -> int:
    """Starts the processes, waits for them and returns the exit code."""
    cores.prepare_openmp()
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except SignalException:
        return signals.EXIT_CODE
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if USER_ERROR in codes:
            return USER_ERROR
        # Once one process has ended, the launcher terminates the others by a signal.
        return signals.EXIT_CODE if codes <= {signals.EXIT_CODE, -signal.SIGTERM} else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How many cores this process may use, which in a container is less than the machine has."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
THREADS_VARIABLE, WAIT_VARIABLE = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"  # of OpenMP, which reads them when torch is imported
POD_VARIABLE = "KUBERNETES_SERVICE_HOST"  # Kubernetes sets it in every pod
GPUS_VARIABLE = "CXR_GPUS"  # set by the pipeline in its pods: the number of GPUs that the step asked for


def cores() -> int:
    """Returns the number of cores: those of the affinity, at most the CPU limit of the container, divided among torchrun's processes."""
    available = min(float(len(os.sched_getaffinity(0))), _limit())
    return max(1, math.ceil(available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def threads() -> int:
    """Returns the number of threads to compute with: OMP_NUM_THREADS, else one per core."""
    asked = os.environ.get(THREADS_VARIABLE, "")
    return int(asked) if asked.isdigit() and int(asked) else cores()


def prepare_openmp() -> None:
    """Sets what OpenMP reads when torch is imported, for this process and those that it starts; variables that are set stay.

    Threads that wait sleep: by default they spin, which on a busy machine, or within the CPU limit of a container, takes the time of
    those that work. In a pod, each process, of which there is one per GPU, has a thread per core, also for libraries that would start
    one for each core of the node. Elsewhere the number of threads is left alone: it decides on the last bits of results.
    """
    os.environ.setdefault(WAIT_VARIABLE, "passive")
    if POD_VARIABLE in os.environ:
        os.environ.setdefault(THREADS_VARIABLE, str(max(1, cores() // max(1, int(os.environ.get(GPUS_VARIABLE, "0"))))))


def _limit() -> float:
    """Returns the lowest `cpu.max` of the control group of this process and those above it, in cores (cgroup v2; infinite without one)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    own = next((CGROUPS / line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), CGROUPS)
    return min((_quota(folder / "cpu.max") for folder in (own, *own.parents) if folder.is_relative_to(CGROUPS)), default=math.inf)


def _quota(file: Path) -> float:
    try:
        quota, period = file.read_text().split()
    except OSError:
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)

"""Which process of how many this one is, as the program that started it says: Slurm, MPI, …

JAX detects the launcher (``jax.distributed.initialize`` without arguments). What is added here
keeps a process that runs alone from waiting for others, and several that JAX cannot place from
each running the whole study.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxalign.errors import InputError

# Where the launchers of Open MPI, and of MPICH and Intel MPI, say how many processes they started.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# What tasks of Slurm's srun and pods of an indexed job of Kubernetes have, and nothing else has.
SLURM_STEP, KUBERNETES_INDEX = "SLURM_STEP_NODELIST", "JOB_COMPLETION_INDEX"


@dataclass(frozen=True, kw_only=True)
class Launched:
    """One of several processes that a launcher started.

    Attributes:
        coordinator: ``HOST:PORT`` at which process 0 listens, the same in every process.
        count: how many processes there are.
        index: which one this is, from 0.
        local: which one of those on this machine this is, from 0, where the launcher says so.
    """

    coordinator: str
    count: int
    index: int
    local: int | None


def launched(patience: float) -> Launched | None:
    """What the launcher of this process says of it; None for a process that runs alone.

    Args:
        patience: seconds that JAX's detection may wait for the address of process 0.

    Raises:
        InputError: the launcher started several processes, but JAX does not find out which.
    """
    if _alone(os.environ):
        return None
    found, why = _detect(None, patience)
    several = _mpi_size(os.environ)
    if several and (found is None or found.count != several):
        found = None  # Open MPI 5 is unknown to JAX, which may see Slurm around it
        if importlib.util.find_spec("mpi4py") is not None:
            found, why = _detect("mpi4py", patience)
    numbered = SLURM_STEP in os.environ or KUBERNETES_INDEX in os.environ
    if found is None and (several or (why and numbered)):
        raise InputError(
            f"a launcher started this process as one of {several or 'several'}, but JAX does not "
            f"find the others{why and ': '}{why}",
            "give --coordinator HOST:PORT --processes N --process-id I in each process, or "
            "--processes 1 to run this one alone; under mpirun, pip install mpi4py lets JAX find "
            "them",
        )
    return None if found is None or found.count == 1 else found


def _detect(method: str | None, patience: float) -> tuple[Launched | None, str]:
    """What JAX detects, and why it detects nothing where it should."""
    with warnings.catch_warnings(record=True) as complaints:  # of a package that is missing
        warnings.simplefilter("always")
        try:
            from jax._src.clusters import ClusterEnv  # JAX detects launchers nowhere else

            coordinator, count, index, local = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, method, int(patience)
            )
        except Exception as error:  # whatever the launcher's own libraries raise
            return None, str(error) or type(error).__name__
    if coordinator is None or count is None or index is None:
        return None, "; ".join(str(complaint.message) for complaint in complaints)
    number = None if local is None else local[0]
    return Launched(coordinator=coordinator, count=count, index=index, local=number), ""


def _alone(environment: Mapping[str, str]) -> bool:
    """Whether nothing says that this process is one of several.

    Slurm sets its variables in an interactive shell, too, which is a step of one task but has the
    number of tasks of the whole allocation. Kubernetes sets its variable in every pod; only pods of
    an indexed job have numbers.
    """
    if _mpi_size(environment):
        return False
    if any(environment.get(size) == "1" for size in MPI_SIZES):
        return True
    if environment.get("SLURM_STEP_NUM_TASKS") == "1":
        return True
    kubernetes = "KUBERNETES_SERVICE_HOST" in environment
    return kubernetes and SLURM_STEP not in environment and KUBERNETES_INDEX not in environment


def _mpi_size(environment: Mapping[str, str]) -> int:
    """How many processes an MPI launcher started together; 0 for one, or for no such launcher."""
    for size in MPI_SIZES:
        if (count := environment.get(size, "")).isdecimal() and int(count) > 1:
            return int(count)
    return 0


def own_devices(
    local: int | None, neighbours: int, environment: Mapping[str, str]
) -> Sequence[int] | None:
    """The GPUs that a process takes for itself; None for all that it sees.

    Args:
        local: which of the processes on this machine it is, from 0, or None where nothing says so.
        neighbours: how many processes of the run are on this machine, itself among them.
        environment: variables of the process. Where ``CUDA_VISIBLE_DEVICES`` shows each process
            fewer GPUs than there are processes, the launcher has shared them out already;
            ``JAX_LOCAL_DEVICE_IDS`` is the user's own choice, which JAX reads itself.
    """
    if local is None or neighbours == 1 or environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    shown = environment.get("CUDA_VISIBLE_DEVICES", "")
    if shown and len(shown.split(",")) < neighbours:
        return None
    return [local]

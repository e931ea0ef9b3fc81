"""What Slurm, Open MPI and Kubernetes say of a process they started is read as JAX reads it."""

import importlib.util
import sys

import jax
import pytest

from jaxalign.errors import InputError
from jaxalign.processes.distributed import processes
from jaxalign.processes.launchers import Launched, launched, own_devices

SRUN = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-09],other",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}
MPIRUN = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
MPIRUN_5 = {name: value for name, value in MPIRUN.items() if "orte" not in name}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def launcher(monkeypatch):
    """Sets the variables of a launcher, and none of another one."""

    def by(variables):
        for name in (*SRUN, *MPIRUN, *POD, "JOB_COMPLETION_INDEX", "PMI_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return by


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SRUN, Launched(coordinator="node07:61441", count=4, index=2, local=1)),
        (
            SRUN | {"JAX_COORDINATOR_PORT": "5000"},
            Launched(coordinator="node07:5000", count=4, index=2, local=1),
        ),
        (MPIRUN, Launched(coordinator="10.96.0.1:62624", count=3, index=0, local=0)),
        # mpirun inside of an allocation of Slurm's: its own count is the right one.
        (MPIRUN | SRUN, Launched(coordinator="10.96.0.1:62624", count=3, index=0, local=0)),
    ],
)
def test_processes_of_a_launcher_know_their_number_and_process_0(launcher, variables, expected):
    launcher(variables)
    assert launched(1.0) == expected


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # sbatch, salloc
        SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # an interactive shell
        MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"},
        MPIRUN_5 | {"OMPI_COMM_WORLD_SIZE": "1"},
        SRUN | {"OMPI_COMM_WORLD_SIZE": "1"},
        POD,
    ],
)
def test_a_process_that_runs_alone_waits_for_nobody(launcher, variables):
    launcher(variables)
    assert launched(1.0) is None
    with processes(None, None, None):
        assert jax.process_count() == 1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (MPIRUN_5, r"as one of 3, but JAX does not find the others\. give --coordinator.*mpi4py"),
        (MPIRUN_5 | SRUN, "as one of 3, but JAX does not find"),
        ({"PMI_SIZE": "8"}, "as one of 8, but JAX does not find"),
        (SRUN | {"SLURM_NTASKS": "four"}, "find the others: invalid literal"),
        (MPIRUN | {"OMPI_MCA_orte_hnp_uri": "0.0;x"}, "find the others: Could not parse"),
        (POD | {"JOB_COMPLETION_INDEX": "1"}, "one of several.*kubernetes.*--processes 1"),
    ],
)
def test_processes_that_jax_cannot_place_do_not_each_run_the_whole(
    launcher, variables, words, monkeypatch
):
    launcher(variables)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mpi4py" else found(name)
    )
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(InputError, match=words):
        launched(1.0)


def test_one_process_alone_can_be_asked_for_under_any_launcher(launcher):
    launcher(SRUN)
    with processes(None, 1, None):
        assert jax.process_count() == 1


@pytest.mark.parametrize(
    ("local", "neighbours", "environment", "expected"),
    [
        (3, 4, {}, [3]),
        (0, 1, {}, None),  # one task a machine has all of its GPUs
        (None, 4, {}, None),
        (1, 2, {"CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        (1, 2, {"CUDA_VISIBLE_DEVICES": "1"}, None),  # shared out by the launcher
        (1, 2, {"JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
    ],
)
def test_processes_that_share_a_machine_take_a_gpu_each(local, neighbours, environment, expected):
    assert own_devices(local, neighbours, environment) == expected

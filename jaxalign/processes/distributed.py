"""Several processes, one program: every process computes, the first one writes.

Each process runs the same command on the same inputs (``jax.distributed``, multi-controller JAX);
arrays and meshes span the devices of all. Results are replicated, so every process holds them.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.errors import InputError
from jaxalign.processes.launchers import Launched, launched, own_devices
from jaxalign.processes.peers import LOST
from jaxalign.processes.relay import EVERYWHERE, reach, relay
from jaxalign.processes.rendezvous import rendezvous
from jaxalign.version import VERSION

PATIENCE = 120.0  # seconds to wait for the other processes
GRACE = 5.0  # seconds for the news of a lost process, after a collective has failed


@contextlib.contextmanager
def processes(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    *,
    patience: float = PATIENCE,
) -> Iterator[None]:
    """Be one process of a run, from before JAX's first use to the end of the work.

    Where nothing is given, a launcher decides (``srun``, ``mpirun``, an indexed job of Kubernetes):
    JAX detects which process of how many this one is. Where another process is lost, this one says
    which on stderr and ends at once with exit code 2, whatever it is doing. An error in here ends
    the others the same way.

    Args:
        coordinator: ``HOST:PORT`` on which process 0 listens, reachable from every process.
        count: how many processes there are; 1 alone is a single process, whatever started it.
        index: which one this is, from 0.
        patience: seconds to wait for the others.

    Raises:
        InputError: an argument is missing or out of range, the launcher's processes cannot be
            told apart, the coordinator cannot be reached, or the processes are not ``count``
            different ones with equal versions.

    Example:
        >>> with processes("node0:5000", 2, 1):
        ...     result = heads_study(model, prompts)
    """
    bind = None
    if [coordinator, count, index] == [None] * 3:
        started = launched(patience)
        bind = EVERYWHERE  # a launcher knows process 0's name, which need not be an interface's
    else:
        started = _given(coordinator, count, index)
    if started is None:
        yield
        return
    address = _address(started.coordinator)
    versions = {"jaxalign": VERSION, "jax": jax.__version__}
    peers, port, neighbours = rendezvous(
        address, started.count, started.index, versions, patience, bind=bind
    )
    peers.start()
    try:
        own = own_devices(started.local, neighbours, os.environ)
        _initialize((address[0], port), bind, started, own, patience)
        yield
        peers.leave(jax.distributed.shutdown)
    except BaseException as error:
        expected = isinstance(error, InputError | KeyboardInterrupt)
        if not expected:
            # A collective that fails raises errors of several kinds; where it failed because a
            # process was lost, the peers' watch ends this process now.
            time.sleep(GRACE)
        peers.fail(_first_line(error))
        # JAX's own shutdown at exit would wait for processes that are ending.
        atexit.register(_exit, LOST if expected else 1)
        raise


def _given(coordinator: str | None, count: int | None, index: int | None) -> Launched | None:
    """What the options say; None for a single process."""
    if coordinator is None and index is None and count == 1:
        return None
    if coordinator is None or count is None or index is None:
        given = {"--coordinator": coordinator, "--processes": count, "--process-id": index}
        missing = [flag for flag, value in given.items() if value is None]
        raise InputError(
            f"a run of several processes needs {' and '.join(missing)}, too",
            "give --coordinator HOST:PORT --processes N --process-id I",
        )
    if count < 1:
        raise InputError(
            f"--processes {count}: expected 1 or more", "count all processes of the run"
        )
    if not 0 <= index < count:
        raise InputError(
            f"--process-id {index}: expected 0 to {count - 1} for --processes {count}",
            "number the processes from 0 to N - 1, each once",
        )
    return Launched(coordinator=coordinator, count=count, index=index, local=None)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InputError(
            f"--coordinator {coordinator}: expected HOST:PORT",
            "give the address of process 0's machine and a port that is free there",
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _initialize(
    address: tuple[str, int],
    bind: str | None,
    started: Launched,
    devices: Sequence[int] | None,
    patience: float,
) -> None:
    """Start JAX's service and client, the client through a relay."""
    host, port = address
    if started.index:
        reach(address, patience).close()  # JAX's client would end the process instead
    # JAX's client speaks with a relay on the loopback interface, never through a proxy.
    os.environ["no_grpc_proxy"] = "127.0.0.1"  # noqa: SIM112 - gRPC spells it so
    jax.config.update("jax_check_proxy_envs", False)
    # With JAX's preemption service SIGTERM would no longer end a process.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    interface = "::" if bind == EVERYWHERE else host
    jax.distributed.initialize(
        f"127.0.0.1:{relay(address)}",
        started.count,
        started.index,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"[{interface}]:{port}" if ":" in interface else f"{host}:{port}",
        initialization_timeout=max(int(patience), 1),
        shutdown_timeout_seconds=int(GRACE),
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this is the process that writes files and reports."""
    return jax.process_index() == 0


def require_same(facts: Mapping[str, Any]) -> None:
    """Check that every process was given the same.

    Args:
        facts: what must be equal, by the names that the error uses; JSON values under the same
            names in every process. Only their hashes are exchanged.

    Raises:
        InputError: in every process, naming those that differ from process 0, and in what.
    """
    if jax.process_count() == 1:
        return
    contents = [json.dumps(value, sort_keys=True).encode() for value in facts.values()]
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    own = np.frombuffer(digests, np.uint8).reshape(len(facts), -1)
    every = multihost_utils.process_allgather(own)
    different = (every != every[0]).any(axis=-1)  # [process, fact]
    if different.any():
        what = [name for name, differs in zip(facts, different.any(axis=0), strict=True) if differs]
        who = np.flatnonzero(different.any(axis=1))
        raise InputError(
            f"{', '.join(what)} of process {', '.join(map(str, who))} differ from process 0's",
            "start every process with the same arguments and the same files",
        )


def from_first(content: bytes) -> bytes:
    """What process 0 holds, in every process; the others' own argument is not looked at.

    For decisions that depend on a file which only process 0 reads, such as a finished call.
    """
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    own = np.frombuffer(content, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own), np.uint8).tobytes()


def fetch(tree: Any) -> Any:
    """``jax.device_get`` of arrays that may lie on several processes' devices."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(whole, tree)

"""The start of a run: every process connects to process 0, which checks that they fit together."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from jaxalign.errors import InputError
from jaxalign.processes.peers import JsonConnection, Peers
from jaxalign.processes.relay import free_port, listen, reach

HELLO = 5.0  # seconds that a newcomer has to say who it is
LONGEST_NAME = 500  # characters of a process's name or of a version


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a process says of itself when it connects to process 0.

    Attributes:
        process: its number, from 0.
        processes: how many processes it expects.
        name: what messages call it.
        host: the name of its machine.
        versions: of the packages that must be equal in all processes.
    """

    process: int
    processes: int
    name: str
    host: str
    versions: Mapping[str, str]

    @classmethod
    def own(cls, index: int, count: int, versions: Mapping[str, str]) -> Hello:
        """What this process says: process ``index`` of ``count``, with these ``versions``."""
        host = socket.gethostname()
        name = f"process {index} ({host}, pid {os.getpid()})"
        return cls(process=index, processes=count, name=name, host=host, versions=dict(versions))

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Hello:
        """The hello in a JSON object.

        Raises:
            ValueError: the object is none, so its sender is no process of a run.
        """
        fields: dict[str, Any] = {name: message.get(name) for name in cls.__annotations__}
        texts, versions = [fields["name"], fields["host"]], fields["versions"]
        if not isinstance(versions, dict):
            raise ValueError("expected versions by name")
        for text in (*texts, *versions.values()):
            if not isinstance(text, str) or len(text) > LONGEST_NAME:
                raise ValueError("expected a short text")
        if type(fields["process"]) is not int or type(fields["processes"]) is not int:
            raise ValueError("expected the number of a process")
        if not 0 <= fields["process"] < fields["processes"]:
            raise ValueError("expected the number of a process")
        return cls(**fields)


class Met(NamedTuple):
    """What a process knows once all of them have met.

    Attributes:
        peers: the connections to the others, not yet watched.
        port: a free one on process 0's machine, the same in every process.
        neighbours: how many processes run on this process's machine, itself among them.
    """

    peers: Peers
    port: int
    neighbours: int


def rendezvous(
    address: tuple[str, int],
    count: int,
    index: int,
    versions: Mapping[str, str],
    patience: float,
    *,
    bind: str | None = None,
) -> Met:
    """Gather the processes of a run: all of them, each once, with the same versions.

    Args:
        address: where process 0 is reached, host and port.
        count: how many processes there are.
        index: which one this is, from 0.
        versions: of the packages that must be equal in all processes, by name.
        patience: seconds to wait for the others.
        bind: the address of its own machine on which process 0 listens; ``address``'s by default.

    Raises:
        InputError: somebody is missing, doubled, or of another count or version; the same in every
            process that could be told.
    """
    own = Hello.own(index, count, versions)
    if index == 0:
        return _accept_all((address[0] if bind is None else bind, address[1]), own, patience)
    return _connect(address, own, patience)


def _accept_all(address: tuple[str, int], own: Hello, patience: float) -> Met:
    """Process 0's side: wait for the others, check them, and tell them to begin."""
    place = f"{address[0] or own.host}:{address[1]}"
    try:
        listener = listen(address, backlog=own.processes + 8)
    except OSError as error:
        raise InputError(
            f"process 0 cannot listen on {place} ({error})",
            "give --coordinator an address of this machine and a free port, and number the "
            "processes from 0 to N - 1, each once",
        ) from error
    connections: dict[int, JsonConnection] = {}
    known = {0: own}
    problem = ""
    end = time.monotonic() + patience
    while not problem and len(known) < own.processes:
        left = end - time.monotonic()
        if left <= 0:
            missing = ", ".join(str(i) for i in range(own.processes) if i not in known)
            problem = (
                f"of {own.processes} processes {len(known)} came to {place} within "
                f"{patience:.0f} s; missing: {missing}"
            )
            break
        listener.settimeout(left)
        if newcomer := _newcomer(listener):
            connection, hello = newcomer
            problem = _objection(own, hello, known)
            number = own.processes if problem else hello.process
            connections[number], known[number] = connection, hello
    if problem:
        listener.close()
        for connection in connections.values():
            connection.send(refused=problem)
            connection.close()
        raise _refused(problem)
    threading.Thread(target=_reject_latecomers, args=(listener, own, known), daemon=True).start()
    port = free_port(address[0])
    hosts = [hello.host for hello in known.values()]
    for index, connection in connections.items():
        connection.send(port=port, neighbours=hosts.count(known[index].host))
    names = {index: known[index].name for index in connections}
    return Met(Peers(own.name, connections, names), port, hosts.count(own.host))


def _newcomer(listener: socket.socket) -> tuple[JsonConnection, Hello] | None:
    """The next process that connects; None for whoever is none, or when nobody comes."""
    try:
        connection = JsonConnection(listener.accept()[0])
    except OSError:
        return None
    try:
        return connection, Hello.read(connection.receive(HELLO))
    except (OSError, ValueError):
        connection.close()
        return None


def _objection(own: Hello, hello: Hello, known: Mapping[int, Hello]) -> str:
    """Why a newcomer cannot take part; empty where it can."""
    if hello.processes != own.processes:
        return (
            f"{hello.name} was started with --processes {hello.processes}, process 0 with "
            f"--processes {own.processes}"
        )
    if hello.process in known:
        return f"{hello.name} has the number of {known[hello.process].name}"
    if hello.versions != own.versions:
        return f"{hello.name} runs {_shown(hello.versions)}, process 0 {_shown(own.versions)}"
    return ""


def _shown(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _refused(problem: str) -> InputError:
    return InputError(
        f"the processes cannot run together: {problem}",
        "start every process with the same command and its own --process-id, from 0 to N - 1; "
        "--processes 1 runs this one alone, whatever started it",
    )


def _reject_latecomers(listener: socket.socket, own: Hello, known: Mapping[int, Hello]) -> None:
    """Tell every process that connects after the start why it cannot take part."""
    listener.settimeout(HELLO)
    while True:
        if newcomer := _newcomer(listener):
            connection, hello = newcomer
            problem = _objection(own, hello, known) or f"{hello.name} came too late"
            connection.send(refused=problem)
            connection.close()


def _connect(address: tuple[str, int], own: Hello, patience: float) -> Met:
    """Every other process's side: say who this process is and wait for the answer."""
    place = f"{address[0]}:{address[1]}"
    connection = JsonConnection(reach(address, patience))
    connection.send(**asdict(own))
    try:
        answer = connection.receive(2 * patience)
        problem = answer.get("refused")
        numbers: list[Any] = [answer.get("port"), answer.get("neighbours")]
        if not isinstance(problem, str) and not all(type(n) is int for n in numbers):
            raise ValueError("expected a port")
    except (OSError, ValueError) as error:
        connection.close()
        raise InputError(
            f"{place} answered, but not as process 0 of a run ({error})",
            "give --coordinator the address on which process 0 listens",
        ) from error
    if problem:
        connection.close()
        raise _refused(problem)
    names = {0: f"process 0 (the coordinator at {place})"}
    return Met(Peers(own.name, {0: connection}, names), *numbers)

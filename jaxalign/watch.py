"""Processes of one run that notice each other's end.

Every process keeps a connection to process 0. The operating system closes it when a process dies,
however it dies, so the others learn of it at once and by name; a host that falls silent is noticed
by its missing sign of life. Then every process says which one was lost and leaves with exit code 2:
a run goes on with all of its processes or with none.

JAX's own coordination service notices, too, but kills the process from C++ with a stack trace, or
leaves it waiting in a collective for a partner that is gone. So its client is led through a relay
in its own process, which keeps the client from seeing process 0 end before we do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.errors import InputError

LOST = 2  # exit code
SIGN_OF_LIFE = 1.0  # seconds between two
SILENCE = 30.0  # seconds without one, after which a process is lost
HELLO = 5.0  # seconds that a newcomer has to say who it is

AGAIN = "Its own output says why; start all processes again, finished chunks are kept"


class Line:
    """A connection that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = b""
        self._writing = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send one object; nothing happens where the other side is gone."""
        with self._writing, contextlib.suppress(OSError):
            self._connection.settimeout(SILENCE)
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, patience: float) -> dict[str, Any]:
        """The next object.

        Raises:
            TimeoutError: nothing came for ``patience`` seconds; it may be tried again.
            OSError: the other side ended.
            ValueError: what came is no such object.
        """
        self._connection.settimeout(patience)
        while b"\n" not in self._read:
            more = self._connection.recv(1 << 16)
            if not more:
                raise ConnectionResetError("its connection ended")
            self._read += more
            if len(self._read) > 1 << 16:
                raise ValueError("expected a line")
        line, _, self._read = self._read.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"expected an object, got {message!r}")
        return message

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Watch:
    """One process's watch over the others.

    Attributes:
        names: what to call the process at the other end of each line, by its number.
    """

    def __init__(self, own: str, lines: Mapping[int, Line], names: Mapping[int, str]) -> None:
        self.names = names
        self._own = own
        self._lines = lines
        self._ready = {index: threading.Event() for index in lines}
        self._over = threading.Event()
        self._ending = threading.Lock()

    def start(self) -> None:
        """Begin to give signs of life and to expect them."""
        threading.Thread(target=self._live, daemon=True).start()
        for index in self._lines:
            threading.Thread(target=self._listen, args=(index,), daemon=True).start()

    def leave(self, last: Callable[[], None]) -> None:
        """Wait until every process has come here, then call ``last`` and end the watch."""
        leads = 0 not in self._lines
        if leads:
            self._wait()
            self._over.set()  # first: whoever is told may be gone at once
        for line in self._lines.values():
            line.send(ready=True)
        if not leads:
            self._wait()
            self._over.set()
        last()
        for line in self._lines.values():
            line.close()

    def fail(self, problem: str) -> None:
        """Tell the others that this process stops, and why."""
        with self._ending:  # or this process is ending already, and has said why
            self._over.set()
        for line in self._lines.values():
            line.send(lost=f"{self._own} stopped: {problem}")

    def _wait(self) -> None:
        for event in self._ready.values():
            event.wait()

    def _live(self) -> None:
        while not self._over.wait(SIGN_OF_LIFE):
            for line in self._lines.values():
                line.send(alive=True)

    def _listen(self, index: int) -> None:
        name = self.names[index]
        silent = 0  # in our own waking time: a suspended machine has not been waiting
        while not self._over.is_set():
            try:
                message = self._lines[index].receive(SIGN_OF_LIFE)
                silent = 0
            except TimeoutError:
                silent += 1
                if silent * SIGN_OF_LIFE < SILENCE:
                    continue
                return self._end(f"{name} was lost: no sign of life for {SILENCE:.0f} s")
            except (OSError, ValueError) as error:
                return self._end(f"{name} was lost: {error}")
            if "lost" in message:
                return self._end(str(message["lost"]))
            if "ready" in message:
                self._ready[index].set()
                if index == 0:
                    return  # process 0 says it last, and may close the line then

    def _end(self, problem: str) -> None:
        """Pass the news on and end this process, wherever its main thread may hang."""
        with self._ending:
            if self._over.is_set():
                return
            for line in self._lines.values():
                line.send(lost=problem)
            text = " ".join(problem.split()).rstrip(".")
            start = "\n" if os.isatty(2) else ""  # below a progress bar
            os.write(2, f"{start}jaxalign: error: {text}. {AGAIN}.\n".encode())
            os._exit(LOST)


def meet(
    address: tuple[str, int], count: int, index: int, versions: Mapping[str, str], patience: float
) -> tuple[Watch, int]:
    """Gather the processes of a run: all of them, each once, with the same versions.

    Args:
        address: where process 0 listens, host and port.
        patience: seconds to wait for the others.

    Returns:
        The watch, not yet started, and a free port on process 0's host, the same in every process.

    Raises:
        InputError: somebody is missing, doubled, or of another count or version; the same in every
            process that could be told.
    """
    own = {
        "process": index,
        "processes": count,
        "name": f"process {index} ({socket.gethostname()}, pid {os.getpid()})",
        "versions": dict(versions),
    }
    if index == 0:
        return _gather(address, own, patience)
    return _join(address, own, patience)


def _gather(address: tuple[str, int], own: dict[str, Any], patience: float) -> tuple[Watch, int]:
    """Process 0's side: wait for the others, check them, and give the word."""
    place = f"{address[0]}:{address[1]}"
    try:
        listener = socket.create_server(address, backlog=own["processes"] + 8)
    except OSError as error:
        raise InputError(
            f"process 0 cannot listen on {place} ({error})",
            "give --coordinator an address of this machine and a free port, and number the "
            "processes from 0 to N - 1, each once",
        ) from error
    lines: dict[int, Line] = {}
    names: dict[int, str] = {}
    end = time.monotonic() + patience
    problem = ""
    while not problem and len(lines) < own["processes"] - 1:
        listener.settimeout(max(end - time.monotonic(), 0.01))
        try:
            line = Line(listener.accept()[0])
        except TimeoutError:
            missing = sorted(set(range(1, own["processes"])) - lines.keys())
            problem = (
                f"of {own['processes']} processes {len(lines) + 1} came to {place} within "
                f"{patience:.0f} s; missing: {', '.join(map(str, missing))}"
            )
            break
        try:
            hello = line.receive(HELLO)
            problem = _objection(own, hello, names)
            newcomer = len(lines) + 1 if problem else hello["process"]
            lines[newcomer], names[newcomer] = line, hello["name"]
        except (OSError, ValueError, KeyError):
            line.close()  # not one of ours
    if problem:
        listener.close()
        for line in lines.values():
            line.send(refused=problem)
            line.close()
        raise _refused(problem)
    threading.Thread(target=_turn_away, args=(listener, own, names), daemon=True).start()
    port = free_port(address[0])
    for line in lines.values():
        line.send(port=port)
    return Watch(own["name"], lines, names), port


def _objection(own: Mapping[str, Any], hello: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """Why a newcomer cannot take part; empty where it can."""
    index, name = hello["process"], hello["name"]
    if hello["processes"] != own["processes"]:
        return (
            f"{name} was started with --processes {hello['processes']}, process 0 with "
            f"--processes {own['processes']}"
        )
    if index in names or index == 0:
        return f"{name} has the number of {names.get(index, own['name'])}"
    if hello["versions"] != own["versions"]:
        return f"{name} runs {_shown(hello['versions'])}, process 0 {_shown(own['versions'])}"
    return ""


def _shown(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _refused(problem: str) -> InputError:
    return InputError(
        f"the processes cannot run together: {problem}",
        "start every process with the same command and its own --process-id, from 0 to N - 1",
    )


def _turn_away(listener: socket.socket, own: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Say to whoever comes after the start why it cannot take part."""
    listener.settimeout(None)
    while True:
        line = Line(listener.accept()[0])
        with contextlib.suppress(OSError, ValueError, KeyError):
            hello = line.receive(HELLO)
            problem = _objection(own, hello, names) or f"{hello['name']} came too late"
            line.send(refused=problem)
        line.close()


def _join(address: tuple[str, int], own: dict[str, Any], patience: float) -> tuple[Watch, int]:
    """Any other process's side: say who we are and wait for the word."""
    place = f"{address[0]}:{address[1]}"
    line = Line(reach(address, patience))
    line.send(**own)
    try:
        answer = line.receive(2 * patience)
        problem = str(answer.get("refused", ""))
        port = 0 if problem else int(answer["port"])
    except (OSError, ValueError, KeyError) as error:
        line.close()
        raise InputError(
            f"{place} answered, but not as process 0 of a run ({error})",
            "give --coordinator the address on which process 0 listens",
        ) from error
    if problem:
        line.close()
        raise _refused(problem)
    return Watch(own["name"], {0: line}, {0: f"process 0 (the coordinator at {place})"}), port


def reach(address: tuple[str, int], patience: float) -> socket.socket:
    """A connection to process 0's machine, tried again until it listens.

    Raises:
        InputError: nobody listened for ``patience`` seconds, or there is no such machine.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection(address, timeout=max(end - time.monotonic(), 0.01))
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() >= end:
                raise InputError(
                    f"process 0 cannot be reached at {address[0]}:{address[1]} within "
                    f"{patience:.0f} s ({error})",
                    "start process 0 with the same --coordinator, and let all ports between the "
                    "machines of a run through the firewall",
                ) from error
            time.sleep(0.2)


def free_port(host: str) -> int:
    """A port on which nobody listens at ``host``, an address of this machine."""
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def relay(address: tuple[str, int]) -> int:
    """Forward a new port of the loopback interface to ``address``; returns the port.

    What comes in at this side of a connection never learns that the other side ended.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket, ends: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            if ends:
                sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection(address)
            except OSError:
                near.close()
                continue
            threading.Thread(target=pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=pump, args=(far, near, False), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])

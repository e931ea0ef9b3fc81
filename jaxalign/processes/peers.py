"""Processes of one run that notice each other's end.

Every process keeps a connection to process 0. The operating system closes it when a process dies,
however it dies, so the others learn of it at once and by name; a host that falls silent is noticed
by its missing sign of life. Then every process says which one was lost and leaves with exit code 2:
a run goes on with all of its processes or with none.

JAX's coordination service also detects a lost process, but aborts every other one from C++, with a
stack trace and exit code 134, or, where it may recover, hangs in a collective
(``docs/scaling_out.md`` has what was observed). We connect its client through a local relay that
hides the end of process 0 until our own watch has handled it.
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

from jaxalign.errors import printable

LOST = 2  # exit code
SIGN_OF_LIFE = 1.0  # seconds between two
SILENCE = 30.0  # seconds without one, after which a process is lost

AGAIN = "Its own output says why; start all processes again, finished chunks are kept"


class JsonConnection:
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

        Args:
            patience: seconds in which the whole object has to come.

        Raises:
            TimeoutError: it did not; it may be tried again.
            OSError: the other side ended.
            ValueError: what came is no such object.
        """
        end = time.monotonic() + patience
        while b"\n" not in self._read:
            if (left := end - time.monotonic()) <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            more = self._connection.recv(1 << 16)
            if not more:
                raise ConnectionResetError("its connection ended")
            self._read += more
            if len(self._read) > 1 << 16:
                raise ValueError("expected a line")
        line, _, self._read = self._read.partition(b"\n")
        try:
            message = json.loads(line)
        except RecursionError as error:
            raise ValueError("expected no deeply nested object") from error
        if not isinstance(message, dict):
            raise ValueError(f"expected an object, got {message!r}")
        return message

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Peers:
    """The other processes of a run, as one process watches them.

    Process 0 is connected to all others, and every other one to process 0.
    """

    def __init__(
        self, own: str, connections: Mapping[int, JsonConnection], names: Mapping[int, str]
    ) -> None:
        """Watch nobody yet; ``start`` does.

        Args:
            own: what messages call this process.
            connections: to other processes, by their numbers.
            names: what messages call those processes, by their numbers.
        """
        self._own = own
        self._connections = connections
        self._names = names
        self._ready = {index: threading.Event() for index in connections}
        self._over = threading.Event()
        self._ending = threading.Lock()

    def start(self) -> None:
        """Begin to give signs of life and to expect them."""
        threading.Thread(target=self._live, daemon=True).start()
        for index in self._connections:
            threading.Thread(target=self._listen, args=(index,), daemon=True).start()

    def leave(self, last: Callable[[], None]) -> None:
        """Wait until every process has come here, then call ``last`` and stop watching."""
        leads = 0 not in self._connections
        if leads:
            self._wait()
            self._over.set()  # first: whoever is told may be gone at once
        for connection in self._connections.values():
            connection.send(ready=True)
        if not leads:
            self._wait()
            self._over.set()
        last()
        for connection in self._connections.values():
            connection.close()

    def fail(self, problem: str) -> None:
        """Tell the others that this process stops, and why."""
        with self._ending:  # or this process is ending already, and has said why
            self._over.set()
        for connection in self._connections.values():
            connection.send(lost=f"{self._own} stopped: {problem}")

    def _wait(self) -> None:
        for event in self._ready.values():
            event.wait()

    def _live(self) -> None:
        while not self._over.wait(SIGN_OF_LIFE):
            for connection in self._connections.values():
                connection.send(alive=True)

    def _listen(self, index: int) -> None:
        name = self._names[index]
        silent = 0  # in our own waking time: a suspended machine has not been waiting
        while not self._over.is_set():
            try:
                message = self._connections[index].receive(SIGN_OF_LIFE)
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
                    return  # process 0 says it last, and may close the connection then

    def _end(self, problem: str) -> None:
        """Pass the news on and end this process, wherever its main thread may hang."""
        with self._ending:
            if self._over.is_set():
                return
            for connection in self._connections.values():
                connection.send(lost=problem)
            text = printable(" ".join(problem.split())).rstrip(".")
            start = "\n" if os.isatty(2) else ""  # below a progress bar
            os.write(2, f"{start}jaxalign: error: {text}. {AGAIN}.\n".encode())
            os._exit(LOST)

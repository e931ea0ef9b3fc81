"""Sockets of one run: connecting to process 0, free ports, and the relay of JAX's own client."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from jaxalign.errors import InputError

EVERYWHERE = ""  # listens on every interface of this machine


def listen(address: tuple[str, int], backlog: int = 8) -> socket.socket:
    """A socket that listens at ``address``, host and port; port 0 takes a free one.

    Raises:
        OSError: the port is in use, or the host is not an address of this machine.
    """
    host = address[0]
    if host == EVERYWHERE and socket.has_dualstack_ipv6():
        return socket.create_server(
            address, family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server(address, family=family, backlog=backlog)


def free_port(host: str) -> int:
    """A port on which nobody listens at ``host``, an address of this machine."""
    with listen((host, 0)) as probe:
        return int(probe.getsockname()[1])


def reach(address: tuple[str, int], patience: float) -> socket.socket:
    """A connection to process 0's machine, tried again until it listens.

    Args:
        address: host and port.
        patience: seconds to try.

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


def relay(address: tuple[str, int]) -> int:
    """Forward a new port of the loopback interface to ``address``; returns the port.

    JAX's client aborts its process from C++ as soon as its connection to process 0 ends. Led
    through a relay the client keeps its connection: whoever connects to the new port never learns
    that the other side has ended.
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

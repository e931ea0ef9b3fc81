"""Peers: who may take part, who was lost, who waits for whom. Threads stand for processes."""

import contextlib
import json
import queue
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from jaxalign.errors import InputError
from jaxalign.processes import peers as module
from jaxalign.processes.peers import JsonConnection, Peers
from jaxalign.processes.relay import EVERYWHERE, free_port, listen, reach, relay
from jaxalign.processes.rendezvous import Hello, rendezvous

LIMIT = 600.0  # seconds that nothing here takes, however busy the machine
VERSIONS = {"jaxalign": "1", "jax": "2"}


@pytest.fixture
def address():
    return "127.0.0.1", free_port("127.0.0.1")


MET = []  # all peers of a test


@pytest.fixture(autouse=True)
def ends(monkeypatch):
    """What a process would say when it ends because of another; it does not end here."""
    said = queue.Queue()
    fake = SimpleNamespace(
        isatty=lambda _: False,
        write=lambda _, text: said.put(text.decode()),
        _exit=lambda code: said.put(code),
    )
    monkeypatch.setattr(module, "os", fake)
    yield said
    for peers in MET:
        with peers._ending:  # no thread of it ends this process afterwards
            peers._over.set()
    for peers in MET:
        for connection in peers._connections.values():
            connection.close()
    MET.clear()


def in_threads(*calls):
    """What each call returns or raises, all at once."""
    found = [None] * len(calls)

    def run(number, call):
        try:
            found[number] = call()
        except InputError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    return found


def joining(address, count, index, versions=VERSIONS, patience=5.0, after=0.0):
    def join():
        time.sleep(after)
        met = rendezvous(address, count, index, versions, patience)
        MET.append(met.peers)
        return met

    return join


def gathered(address, count):
    found = in_threads(*[joining(address, count, index) for index in range(count)])
    return [met.peers for met in found], [met.port for met in found]


# Meeting.


def test_processes_that_meet_learn_the_same_free_port(address):
    all_peers, ports = gathered(address, 3)
    assert len(set(ports)) == 1
    assert ports[0] not in (0, address[1])
    assert all(isinstance(peers, Peers) for peers in all_peers)
    socket.create_server((address[0], ports[0])).close()


def test_a_single_process_meets_nobody(address):
    peers = rendezvous(address, 1, 0, VERSIONS, 1.0).peers
    peers.start()
    peers.leave(lambda: None)


WRONG = {
    "another count": (
        [(2, 0), (3, 1)],
        "was started with --processes 3, process 0 with --processes 2",
    ),
    "a number twice": ([(3, 0), (3, 1), (3, 1)], r"process 1 \(.*\) has the number of process 1 "),
    "process 0's number": ([(2, 0), (2, 0)], "cannot listen on"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_processes_that_cannot_run_together_are_all_told_why(kind, address):
    started, words = WRONG[kind]
    late = [0.0, *[0.3] * (len(started) - 1)]
    calls = [
        joining(address, count, index, after=after, patience=1.0)
        for (count, index), after in zip(started, late, strict=True)
    ]
    found = in_threads(*calls)
    assert all(isinstance(error, InputError) for error in found)
    # Who has process 0's number cannot tell process 0, which waits for the others in vain.
    told = found[1:] if kind == "process 0's number" else found
    for error in told:
        with pytest.raises(InputError, match=words):
            raise error


def test_processes_of_different_versions_are_refused_with_both(address):
    other = VERSIONS | {"jax": "3"}
    for error in in_threads(joining(address, 2, 0), joining(address, 2, 1, other)):
        assert "runs jaxalign 1, jax 3, process 0 jaxalign 1, jax 2" in error.problem


def test_who_comes_after_the_start_is_turned_away(address):
    gathered(address, 2)
    [error] = in_threads(joining(address, 2, 1))
    assert "has the number of process 1" in error.problem


def test_who_does_not_come_is_named_to_those_who_did(address):
    first, second = in_threads(
        joining(address, 4, 0, patience=1.0), joining(address, 4, 2, patience=5.0)
    )
    for error in (first, second):
        assert "of 4 processes 2 came to 127.0.0.1:" in error.problem
        assert error.problem.endswith("missing: 1, 3")


HELLO = {"process": 1, "processes": 2, "name": "x", "host": "x", "versions": VERSIONS}
NOISE = {
    "nothing": b"",
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "no object": b"[]\n",
    "no name": b'{"process": 1}\n',
    "nested deeply": b"[" * 60_000 + b"\n",
    "no UTF-8": b'{"name": "\xff"}\n',
    "process a list": HELLO | {"process": [1]},
    "process true": HELLO | {"process": True},
    "process infinite": HELLO | {"process": float("inf")},
    "process out of range": HELLO | {"process": 2},
    "processes a text": HELLO | {"processes": "2"},
    "name null": HELLO | {"name": None},
    "name endless": HELLO | {"name": "x" * 10_000},
    "versions null": HELLO | {"versions": None},
    "versions a list": HELLO | {"versions": ["1", "2"]},
    "a version a number": HELLO | {"versions": VERSIONS | {"jax": 2}},
}


def sent(noise):
    return noise if isinstance(noise, bytes) else json.dumps(noise).encode() + b"\n"


def test_strangers_at_the_coordinators_port_do_not_disturb(address):
    def stranger(noise):
        with reach(address, 5.0) as connection, contextlib.suppress(OSError):
            connection.sendall(sent(noise))

    def strangers():
        for noise in NOISE.values():
            stranger(noise)

    first, _, second = in_threads(
        joining(address, 2, 0), strangers, joining(address, 2, 1, after=0.3)
    )
    assert first.port == second.port
    strangers()  # whoever comes late finds the same listener
    [error] = in_threads(joining(address, 2, 1))
    assert "has the number of process 1" in error.problem


@pytest.mark.parametrize("kind", [kind for kind in NOISE if kind not in ("nothing", "no UTF-8")])
def test_a_hello_of_wrong_types_is_none(kind):
    left, right = socket.socketpair()
    with left:
        left.sendall(sent(NOISE[kind]))
        with pytest.raises(ValueError, match=r"expected|Expecting"):
            Hello.read(JsonConnection(right).receive(1.0))
    right.close()


def test_whoever_sends_a_hello_byte_by_byte_has_no_more_time_than_others():
    left, right = socket.socketpair()
    stop = threading.Event()

    def drip():
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                left.sendall(b"x")

    threading.Thread(target=drip, daemon=True).start()
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        JsonConnection(right).receive(0.2)
    assert time.monotonic() - begin < LIMIT  # it would wait for ever
    stop.set()
    left.close()
    right.close()


def test_processes_learn_how_many_of_them_share_their_machine(address, monkeypatch):
    names = iter(["one", "two", "one"])
    lock = threading.Lock()

    def gethostname():
        with lock:
            return next(names)

    monkeypatch.setattr(socket, "gethostname", gethostname)
    met = in_threads(*[joining(address, 3, index) for index in range(3)])
    assert sorted(each.neighbours for each in met) == [1, 2, 2]


def test_process_0_of_a_launcher_listens_on_every_interface():
    port = free_port(EVERYWHERE)
    with listen((EVERYWHERE, port)) as server:
        for host in ("127.0.0.1", socket.gethostname()):
            with reach((host, port), 1.0):
                server.accept()[0].close()


@pytest.mark.parametrize(
    "answers", [b"220 ready\r\n", b'{"port": null}\n', b'{"port": [1], "neighbours": 1}\n']
)
def test_a_port_where_something_else_answers_is_not_process_0(answers, address):
    with socket.create_server(address) as other:

        def answer():
            connection, _ = other.accept()
            with connection:
                connection.sendall(answers)

        _, error = in_threads(answer, joining(address, 2, 1))
    assert f"127.0.0.1:{address[1]} answered, but not as process 0 of a run" in error.problem


# Running and leaving.


def test_everybody_leaves_after_the_last_one_is_ready(address, ends):
    all_peers, _ = gathered(address, 3)
    for peers in all_peers:
        peers.start()
    left = []

    def leave(number):
        time.sleep(0.2 * number)
        all_peers[number].leave(lambda: left.append((number, time.monotonic())))

    begin = time.monotonic()
    in_threads(*[lambda number=number: leave(number) for number in range(3)])
    assert sorted(number for number, _ in left) == [0, 1, 2]
    assert min(when for _, when in left) - begin >= 0.4
    assert ends.empty()


def test_a_process_that_fails_tells_the_others_why(address, ends):
    (first, second), _ = gathered(address, 2)
    first.start()
    second.fail("the disk is full.\nAnd more")
    line, code = ends.get(timeout=LIMIT), ends.get(timeout=LIMIT)
    assert code == 2
    assert line.startswith("jaxalign: error: process 1 (")
    assert line.endswith(
        "stopped: the disk is full. And more. Its own output says why; start all processes again, "
        "finished chunks are kept.\n"
    )
    assert line.count("\n") == 1


def test_a_lost_process_is_made_known_to_all_others(address, ends):
    (first, second, third), _ = gathered(address, 3)
    first.start()
    third.start()
    second._connections[0].close()
    said = [ends.get(timeout=LIMIT) for _ in range(4)]
    lines = [text for text in said if text != 2]
    assert len(lines) == 2
    assert all("process 1 (" in line and "was lost" in line for line in lines)


def test_a_process_without_a_sign_of_life_is_lost(address, ends, monkeypatch):
    monkeypatch.setattr(module, "SIGN_OF_LIFE", 0.05)
    monkeypatch.setattr(module, "SILENCE", 0.5)
    (first, second), _ = gathered(address, 2)
    first.start()
    assert "process 1 (" in (line := ends.get(timeout=LIMIT))
    assert "was lost: no sign of life for " in line
    assert second  # its connection is open


def test_signs_of_life_keep_a_waiting_run_alive(address, ends, monkeypatch):
    monkeypatch.setattr(module, "SIGN_OF_LIFE", 0.05)
    monkeypatch.setattr(module, "SILENCE", 3.0)
    all_peers, _ = gathered(address, 2)
    for peers in all_peers:
        peers.start()
    time.sleep(4)
    assert ends.empty()
    in_threads(*[lambda peers=peers: peers.leave(lambda: None) for peers in all_peers])


def test_a_process_that_says_why_it_stops_is_not_ended_by_another(address, ends):
    (first, second), _ = gathered(address, 2)
    first.fail("its own reason")
    second.fail("another")
    first._end("too late")
    assert ends.empty()


# Connections and the relay.


def test_a_connection_carries_objects_however_they_are_cut(address):
    left, right = socket.socketpair()
    connection = JsonConnection(right)
    for part in (b'{"a"', b': 1}\n{"b": 2}', b"\n"):
        left.sendall(part)
    assert [connection.receive(1.0), connection.receive(1.0)] == [{"a": 1}, {"b": 2}]
    with pytest.raises(TimeoutError):
        connection.receive(0.05)
    left.sendall(b"[1]\n" + b"x" * 70_000)
    with pytest.raises(ValueError, match="expected an object"):
        connection.receive(1.0)
    left.close()
    with pytest.raises(ValueError, match="expected a line"):
        connection.receive(1.0)
    connection.close()
    connection.send(nothing="happens")


def test_a_relay_carries_both_ways_and_hides_that_the_far_side_ended(address):
    with socket.create_server(address) as server:
        near = reach(("127.0.0.1", relay(address)), LIMIT)
        far, _ = server.accept()
    near.settimeout(LIMIT)
    far.settimeout(LIMIT)
    near.sendall(b"to")
    assert far.recv(10) == b"to"
    far.sendall(b"fro")
    assert near.recv(10) == b"fro"
    far.close()
    near.settimeout(0.3)
    with pytest.raises(TimeoutError):
        near.recv(10)
    near.close()


def test_a_relay_passes_on_that_the_near_side_ended(address):
    with socket.create_server(address) as server:
        near = reach(("127.0.0.1", relay(address)), LIMIT)
        far, _ = server.accept()
    far.settimeout(LIMIT)
    near.close()
    assert far.recv(10) == b""
    far.close()

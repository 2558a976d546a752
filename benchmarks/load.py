"""Load on a server, from a process of its own, over sockets of its own.

    echo '{"port": …, …}' | python -m benchmarks.load

Client libraries take longer for a call than the servers that are to be measured, so this one
writes and reads HTTP/1.1 and gRPC's HTTP/2 frames itself: what goes out is made once, and of what
comes in only frames and lengths are looked at. Needs nothing but the standard library.
"""

import heapq
import json
import random
import selectors
import socket
import struct
import sys
import time

_ENDED, _ACKNOWLEDGED, _HEADERS_ENDED = 1, 1, 4
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LARGEST_WINDOW = 2**31 - 1
_FIRST_WINDOW = 2**16 - 1


class Failed(Exception):
    """The server did not answer as it should."""


class Grpc:
    """A connection with any number of calls of one gRPC method at the same time."""

    def __init__(self, port, path, body, headers):
        self.socket = _connect(port)
        self._body = struct.pack(">BI", 0, len(body)) + body
        names = [(b"te", b"trailers"), *((k.encode(), v.encode()) for k, v in headers.items())]
        # The first call teaches the server what headers the others mean: HPACK, RFC 7541.
        self._first = b"\x83\x86" + b"".join(
            [
                b"\x44" + _text(path.encode()),
                b"\x41" + _text(b"localhost"),
                b"\x5f" + _text(b"application/grpc"),
                *(b"\x40" + _text(name) + _text(value) for name, value in names),
            ]
        )
        self._others = b"\x83\x86" + bytes(0x80 | 62 + i for i in reversed(range(3 + len(names))))
        self._stream, self._window, self._read = 1, _FIRST_WINDOW, 0
        self._rest, self._waiting = b"", 0
        self._answered = {}  # By stream, how much has come of its message.
        self.last = b""
        settings = struct.pack(">HIHI", 2, 0, 4, _LARGEST_WINDOW)
        widen = struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW)
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW, 0, 0, widen)
        )

    def ask(self, count):
        """Sends so many requests, or as many as the server is ready to take and the rest later."""
        self._waiting += count
        out = []
        while self._waiting and self._window >= len(self._body):
            headers = self._others if self._stream > 1 else self._first
            out.append(_frame(_HEADERS, _HEADERS_ENDED, self._stream, headers))
            out.append(_frame(_DATA, _ENDED, self._stream, self._body))
            self._answered[self._stream] = False
            self._stream += 2
            self._window -= len(self._body)
            self._waiting -= 1
        if out:
            self.socket.sendall(b"".join(out))

    def answers(self):
        """Returns the sizes of the answers that have come."""
        data, at, sizes, blocked = self._rest + _receive(self.socket), 0, [], self._waiting
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, data[at + 9 : at + 9 + size], sizes)
            at += 9 + size
        self._rest = data[at:]
        if blocked:
            self.ask(0)
        return sizes

    def _take(self, kind, flags, stream, payload, sizes):
        if kind == _DATA:
            self._answered[stream] += len(payload)
            self.last = payload
            self._read += len(payload)
            if self._read > _LARGEST_WINDOW // 4:
                self.socket.sendall(_frame(_WINDOW, 0, 0, struct.pack(">I", self._read)))
                self._read = 0
        elif kind == _WINDOW and not stream:
            self._window += int.from_bytes(payload, "big")
        elif kind in (_SETTINGS, _PING) and not flags & _ACKNOWLEDGED:
            reply = payload if kind == _PING else b""
            self.socket.sendall(_frame(kind, _ACKNOWLEDGED, 0, reply))
        elif kind in (_GOAWAY, _RESET):
            raise Failed(f"the server ended {'a call' if kind == _RESET else 'the connection'}")
        if kind in (_DATA, _HEADERS) and flags & _ENDED:
            size = self._answered.pop(stream)
            if not size:
                raise Failed(f"a call had no answer: {payload!r}")
            sizes.append(size)


class Http:
    """A connection with one HTTP/1.1 request at a time."""

    def __init__(self, port, path, body, headers):
        self.socket = _connect(port)
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._request = "\r\n".join([*lines, "", ""]).encode() + body
        self._rest = self.last = b""

    def ask(self, count):
        """Sends a request."""
        if count:
            self.socket.sendall(self._request)

    def answers(self):
        """Returns the size of the answer, if it has come."""
        self._rest += _receive(self.socket)
        head, found, body = self._rest.partition(b"\r\n\r\n")
        if not found:
            return []
        length = _length(head)
        if length is None:  # One chunk, and an empty one.
            end = body.find(_LAST_CHUNK)
            length = end + len(_LAST_CHUNK) if end >= 0 else len(body) + 1
        if len(body) < length:
            return []
        if b" 200 " not in head[:20]:
            raise Failed(f"{head.splitlines()[0].decode()}: {body[:200]!r}")
        self._rest = body[length:]
        self.last = body[:length].removesuffix(_LAST_CHUNK).rpartition(b"\r\n")[2]
        return [length]


def closed_loop(connections, in_flight, seconds):
    """Returns what `in_flight` clients see, each of which asks again once it is answered."""
    asked = {each: [] for each in connections}
    with selectors.DefaultSelector() as selector:
        for number, connection in enumerate(connections):
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            share = in_flight // len(connections) + (number < in_flight % len(connections))
            asked[connection] = [time.perf_counter()] * share
            connection.ask(share)
        return _closed(selector, asked, seconds)


def _closed(selector, asked, seconds):
    took, begun, warm = [], time.perf_counter(), seconds / 4
    while True:
        ready = selector.select(10)
        now = time.perf_counter()
        if not ready:
            raise Failed("no answer for 10 s")
        if now - begun >= warm + seconds:
            return _seen(took, seconds)
        for key, _ in ready:
            connection = key.data
            count = len(connection.answers())
            times = asked[connection]  # Who waits longest is who is answered, near enough.
            if now - begun >= warm:
                took += [now - each for each in times[:count]]
            del times[:count]
            times += [now] * count
            connection.ask(count)


def open_loop(connections, rate, seconds):
    """Returns what clients see that come at random, `rate` a second, whoever is waiting."""
    generator = random.Random(0)
    due, arrivals = 0.0, []
    while due < seconds:
        due += generator.expovariate(rate)
        arrivals.append(due)
    free = list(range(len(connections)))
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        return _open(selector, connections, free, arrivals, seconds)


def _open(selector, connections, free, arrivals, seconds):
    """Takes turns among connections; of HTTP/1.1 a request waits for a free one."""
    many = isinstance(connections[0], Grpc)
    heapq.heapify(free)
    asked = {each: [] for each in connections}
    took, begun, at, answered = [], time.perf_counter(), 0, 0
    while answered < len(arrivals):
        now = time.perf_counter() - begun
        if now > 2 * seconds + 5:
            break
        while at < len(arrivals) and arrivals[at] <= now and (many or free):
            connection = connections[at % len(connections) if many else heapq.heappop(free)]
            asked[connection].append(arrivals[at])
            connection.ask(1)
            at += 1
        wait = arrivals[at] - now if at < len(arrivals) and (many or free) else 1
        for key, _ in selector.select(max(wait, 0)):
            connection = key.data
            count = len(connection.answers())
            now = time.perf_counter() - begun
            took += [now - each for each in asked[connection][:count]]
            del asked[connection][:count]
            answered += count
            if count and not many:
                heapq.heappush(free, connections.index(connection))
    took += [2 * seconds + 5] * (len(arrivals) - answered)
    return _seen(took, seconds)


def _seen(took, seconds):
    took.sort()
    if not took:
        raise Failed("no answers")
    return {
        "rate": len(took) / seconds,
        **{f"p{q}": took[int(len(took) * q / 100)] for q in (50, 99)},
    }


def _connect(port):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection):
    data = connection.recv(2**18)
    if not data:
        raise Failed("the server closed the connection")
    return data


def _text(value):
    if len(value) > 126:
        raise ValueError(f"longer than this client knows to write: {value!r}")
    return bytes([len(value)]) + value


def _frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _length(head):
    """Returns the length of a body; None where it comes in chunks."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    if b"chunked" in head.lower():
        return None
    raise Failed(f"an answer without a length: {head!r}")


def main():
    """Reads what is wanted from stdin, and writes what was seen to stdout, both as JSON."""
    wanted = json.load(sys.stdin)
    kind = {"grpc": Grpc, "http": Http}[wanted["protocol"]]
    with open(wanted["body"], "rb") as file:
        body = file.read()
    in_flight = wanted["in_flight"]
    count = min(in_flight, 8) if kind is Grpc else in_flight
    how = wanted["port"], wanted["path"], body, wanted.get("headers", {})
    try:
        connections = [kind(*how) for _ in range(count)]
        if "rate" in wanted:
            seen = open_loop(connections, wanted["rate"], wanted["seconds"])
        else:
            seen = closed_loop(connections, in_flight, wanted["seconds"])
        if wanted.get("show"):
            seen["answer"] = connections[0].last.hex()
    except (Failed, OSError) as error:
        seen = {"error": str(error)}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()

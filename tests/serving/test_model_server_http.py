"""HTTP/1.1 at the level of bytes: what is a request, what is none, and who is not waited for."""

import socket
import struct
import threading
import time
from types import SimpleNamespace

import pytest

from serving.model_server.http_messages import Request, Response
from serving.model_server.http_server import HttpServer

BEGUN = threading.Event()


def answer(request: Request) -> Response:
    """Gives back what came."""
    if request.path == "/slow":
        BEGUN.set()
        time.sleep(0.3)
    line = f"{request.method} {request.path} {len(request.body)} ".encode()
    return Response(200, line + request.body[:100], {"X-Echo": request.headers.get("x-echo", "")})


@pytest.fixture
def serve(free_port):
    running = []

    def start(seconds=5.0, largest_body=0):
        port = free_port()
        running.append(HttpServer(port, answer, seconds, largest_body))
        running[-1].start()
        return port

    yield start
    for server in running:
        server.stop(grace_seconds=5)


@pytest.fixture
def port(serve):
    return serve()


@pytest.fixture
def watched(free_port):
    """A server that answers once it is told to, or once the caller has left; it notes which."""
    looked, told, left = (threading.Event() for _ in range(3))

    def watch(request):
        while not (told.is_set() or left.is_set()):
            if request.is_gone():
                left.set()
            looked.set()
            time.sleep(0.005)
        return Response(200)

    port = free_port()
    server = HttpServer(port, watch, 5)
    server.start()
    yield SimpleNamespace(port=port, looked=looked, told=told, left=left)
    told.set()
    server.stop(grace_seconds=5)


class Caller:
    """Sends bytes, and reads what comes."""

    def __init__(self, port, host="localhost"):
        self._socket = socket.create_connection((host, port), timeout=10)
        self._file = self._socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._socket.close()

    def send(self, data):
        self._socket.sendall(data)

    def end(self):
        self._socket.shutdown(socket.SHUT_WR)

    def response(self):
        """Returns status, headers and body."""
        status = int(self._file.readline().split()[1])
        lines = iter(self._file.readline, b"\r\n")
        pairs = (line.decode().rstrip("\r\n").split(": ", 1) for line in lines)
        headers = dict(pairs)
        return status, headers, self._file.read(int(headers["Content-Length"]))

    def is_closed(self):
        return self._file.read(1) == b""


def ask(port, data):
    """Returns status and body of the answer, and whether the connection is closed after it."""
    with Caller(port) as caller:
        caller.send(data)
        status, headers, body = caller.response()
        return status, body, headers.get("Connection") == "close"


@pytest.mark.parametrize(
    ("data", "body", "closed"),
    [
        (b"GET /a HTTP/1.1\r\n\r\n", b"GET /a 0 ", False),
        (b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET /a 0 ", True),
        (b"GET /a HTTP/1.0\r\n\r\n", b"GET /a 0 ", True),
        (b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"GET /a 0 ", False),
        (b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"POST /a 3 abc", False),
        (b"\r\nGET /a HTTP/1.1\r\n\r\n", b"GET /a 0 ", False),
        (
            b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\nTrailer: t\r\n\r\n",
            b"POST /a 3 abc",
            False,
        ),
    ],
)
def test_a_request_is_read_whole(port, data, body, closed):
    assert ask(port, data) == (200, body, closed)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /a\r\n\r\n", 400),
        (b"GET /a HTTP/2.0\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\n: v\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nname : v\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\na: b\n c: d\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", 400),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 300, 431),
        (b"GET /" + b"a" * 70_000, 431),
        (b"GET /a HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
    ],
)
def test_what_is_no_request_is_refused_and_ends_the_connection(port, data, status):
    assert ask(port, data) == (status, b"", True)


def test_requests_come_one_after_the_other_and_even_at_once(port):
    with Caller(port) as caller:
        caller.send(b"GET /a HTTP/1.1\r\n\r\n")
        assert caller.response()[2] == b"GET /a 0 "
        caller.send(b"GET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n")
        assert [caller.response()[2] for _ in range(2)] == [b"GET /b 0 ", b"GET /c 0 "]


def test_a_request_may_come_byte_by_byte(port):
    with Caller(port) as caller:
        for byte in b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nab":
            caller.send(bytes([byte]))
        assert caller.response()[2] == b"POST /a 2 ab"


def test_ipv4_and_ipv6_are_served_alike(port):
    for host in ("127.0.0.1", "::1"):
        with Caller(port, host) as caller:
            caller.send(b"GET /a HTTP/1.1\r\n\r\n")
            assert caller.response()[0] == 200


def test_the_caller_is_told_to_go_on_where_it_asks(port):
    with Caller(port) as caller:
        caller.send(b"POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert caller._file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert caller._file.readline() == b"\r\n"
        caller.send(b"x")
        assert caller.response()[2] == b"POST /a 1 x"


def test_the_head_alone_is_given_where_it_alone_is_asked_for(port):
    with Caller(port) as caller:
        caller.send(b"HEAD /a HTTP/1.1\r\n\r\n")
        line = caller._file.readline()
        headers = list(iter(caller._file.readline, b"\r\n"))
        assert (line, headers[-1]) == (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 10\r\n")
        caller.send(b"GET /b HTTP/1.1\r\n\r\n")
        assert caller.response()[2] == b"GET /b 0 "


def test_repeated_headers_are_joined(port):
    with Caller(port) as caller:
        caller.send(b"GET /a HTTP/1.1\r\nX-Echo: a\r\nx-echo: b\r\n\r\n")
        assert caller.response()[1]["X-Echo"] == "a, b"


@pytest.mark.parametrize(
    "data",
    [
        b"POST /a HTTP/1.1\r\nContent-Length: 11\r\n\r\n" + b"x" * 11,
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n8\r\n12345678",
    ],
)
def test_a_body_above_the_limit_is_refused(serve, data):
    assert ask(serve(largest_body=10), data)[0] == 413


def test_a_body_at_the_limit_is_taken(serve):
    data = b"POST /a HTTP/1.1\r\nContent-Length: 10\r\n\r\n" + b"x" * 10
    assert ask(serve(largest_body=10), data)[0] == 200


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /a HT",
        b"GET /a HTTP/1.1\r\nX: ",
        b"POST /a HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\nx",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n",
    ],
)
def test_nobody_who_stops_sending_is_waited_for(serve, beginning):
    with Caller(serve(seconds=0.3)) as caller:
        start = time.monotonic()
        caller.send(beginning)
        assert caller.is_closed()
        assert 0.2 < time.monotonic() - start < 8


def test_nobody_who_sends_a_byte_now_and_then_is_waited_for(serve):
    with Caller(serve(seconds=0.5)) as caller:
        start = time.monotonic()
        try:
            for byte in b"GET /" + b"a" * 100:
                caller.send(bytes([byte]))
                time.sleep(0.05)
            pytest.fail("it was waited for")
        except OSError:
            pass  # Broken pipe, or reset.
        assert time.monotonic() - start < 4


def test_others_are_answered_while_one_stalls(serve):
    port = serve()
    with Caller(port) as stalled:
        stalled.send(b"GET /")
        assert ask(port, b"GET /a HTTP/1.1\r\n\r\n")[0] == 200


def test_half_closed_callers_still_get_their_answer(port):
    with Caller(port) as caller:
        caller.send(b"GET /a HTTP/1.1\r\n\r\n")
        caller.end()
        assert caller.response()[2] == b"GET /a 0 "
        assert caller.is_closed()


def reset(caller):
    caller._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.__exit__()


def ask_more_and_close(caller):
    caller.send(b"GET /b HTTP/1.1\r\n\r\n")
    caller.__exit__()


@pytest.mark.parametrize("leave", [Caller.__exit__, reset, ask_more_and_close])
def test_it_is_noticed_that_a_caller_leaves_before_its_answer(watched, leave):
    caller = Caller(watched.port)
    caller.send(b"GET /a HTTP/1.1\r\n\r\n")
    assert watched.looked.wait(10)
    leave(caller)
    assert watched.left.wait(10)


@pytest.mark.parametrize(
    ("version", "interim"), [(b"1.0", []), (b"1.1", [b"HTTP/1.1 100 Continue\r\n", b"\r\n"])]
)
def test_half_closed_callers_have_not_left(watched, version, interim):
    with Caller(watched.port) as caller:
        caller.send(b"GET /a HTTP/%s\r\n\r\n" % version)
        caller.end()
        assert watched.looked.wait(10)
        assert [caller._file.readline() for _ in interim] == interim
        assert not watched.left.wait(0.1)
        watched.told.set()
        assert caller.response()[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 no request",
        b"GET /a HTTP/1.1\r\nHost: a\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
    ],
)
def test_half_closed_callers_are_told_that_a_request_is_not_whole(port, data):
    with Caller(port) as caller:
        caller.send(data)
        caller.end()
        status, headers, _ = caller.response()
        assert (status, headers["Connection"]) == (400, "close")
        assert caller.is_closed()


def test_callers_that_break_off_leave_nothing_behind(port):
    before = threading.active_count()
    for data in (b"", b"GET", b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"GET /slow "):
        with Caller(port) as caller:
            caller.send(data)
    deadline = time.monotonic() + 20
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stopping_lets_an_answer_out_and_closes_what_is_idle(free_port):
    port = free_port()
    server = HttpServer(port, answer, 5)
    server.start()
    with Caller(port) as busy, Caller(port) as idle:
        idle.send(b"GET /a HTTP/1.1\r\n\r\n")
        idle.response()
        BEGUN.clear()
        busy.send(b"GET /slow HTTP/1.1\r\n\r\n")
        assert BEGUN.wait(20)
        start = time.monotonic()
        server.stop(grace_seconds=20)
        assert time.monotonic() - start < 15
        status, headers, body = busy.response()
        assert (status, headers["Connection"], body) == (200, "close", b"GET /slow 0 ")
        assert idle.is_closed()
    with pytest.raises(OSError):  # noqa: PT011, refused or reset
        Caller(port)


def test_a_hundred_connections_are_served_side_by_side(port):
    callers = [Caller(port) for _ in range(100)]
    for caller in callers:
        caller.send(b"GET /a HTTP/1.1\r\n\r\n")
    assert {caller.response()[0] for caller in callers} == {200}
    for caller in callers:
        caller.__exit__()

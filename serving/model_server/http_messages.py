"""HTTP/1.1 as it comes from and goes to a socket: requests in, responses out."""

import http
import socket
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

_LARGEST_HEAD = 64 * 2**10
_MOST_HEADERS = 100
_LARGEST_CHUNK_LINE = 256
_READ = 64 * 2**10
_WRITE = 256 * 2**10
_SLOWEST = 10_000  # Bytes a second: who takes or sends less is not waited for.
_CLIENT_CLOSED = 499


class Request(NamedTuple):
    """A request in full; header names are in lower case.

    While it is answered, `is_gone` tells whether its caller has left.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    keeps_connection: bool
    version: str
    peer: str = ""
    is_gone: Callable[[], bool] = lambda: False


class Response(NamedTuple):
    """A response before it is written."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Refused(Exception):
    """What came is no request that can be answered; the connection cannot go on.

    Args:
        status: What to tell the caller.
    """

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


class Gone(Exception):
    """The other side has gone, or is too slow to be waited for."""


class _Ended(Gone):
    """The other side says that it sends no more."""


class Reader:
    """Reads requests from a socket, each within a time that its size allows.

    Args:
        connection: The socket.
        seconds: How long the head of a request may take to arrive.
        largest_body: In bytes; 0 for any.
    """

    def __init__(self, connection: socket.socket, seconds: float, largest_body: int):
        self._connection = connection
        self._seconds = seconds
        self._largest_body = largest_body
        self._buffer = bytearray()
        self._deadline = 0.0

    def wait(self, seconds: float) -> bool:
        """Tells whether something of a request has arrived within so many seconds."""
        self._deadline = time.monotonic() + seconds
        try:
            return bool(self._buffer) or self._fill()
        except Gone:
            return False

    def request(self, go_on: Callable[[], None]) -> Request:
        """Returns the next request.

        Args:
            go_on: Called where the caller waits to be told to send the body.

        Raises:
            Refused: It is none, or not all of one.
            Gone: It did not arrive.
        """
        self._deadline = time.monotonic() + self._seconds
        try:
            method, path, version, headers = self._head()
            if headers.get("expect", "").lower() == "100-continue":
                go_on()
            body = self._body(headers)
        except _Ended:  # Who sends no more may still listen.
            raise Refused(400) from None
        wish = headers.get("connection", "").lower()
        keeps = "close" not in wish and (version != "HTTP/1.0" or "keep-alive" in wish)
        return Request(method, path, headers, body, keeps, version)

    def _head(self) -> tuple[str, str, str, dict[str, str]]:
        size = self._find(b"\r\n\r\n", _LARGEST_HEAD)
        text = bytes(self._buffer[:size]).decode("latin-1")
        del self._buffer[: size + 4]
        first, *lines = text.lstrip("\r\n").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):
            raise Refused(400)
        if len(lines) > _MOST_HEADERS:
            raise Refused(431)
        return *words, _headers(lines)

    def _body(self, headers: Mapping[str, str]) -> bytes:
        length, coding = headers.get("content-length"), headers.get("transfer-encoding", "")
        if coding:
            if coding.lower() != "chunked" or length is not None:
                raise Refused(400)
            return self._chunks()
        if length is None:
            return b""
        if not (length.isascii() and length.isdigit()):
            raise Refused(400)
        return self._exactly(int(length))

    def _chunks(self) -> bytes:
        body = bytearray()
        while size := self._chunk_size():
            body += self._exactly(size, len(body))
            if self._exactly(2) != b"\r\n":
                raise Refused(400)
        while self._line():
            pass  # Headers after the body.
        return bytes(body)

    def _chunk_size(self) -> int:
        digits = self._line().partition(b";")[0].strip()
        try:
            size = int(digits, 16)
        except ValueError:
            raise Refused(400) from None
        if size < 0:
            raise Refused(400)
        return size

    def _line(self) -> bytes:
        size = self._find(b"\r\n", _LARGEST_CHUNK_LINE)
        line = bytes(self._buffer[:size])
        del self._buffer[: size + 2]
        return line

    def _exactly(self, size: int, before: int = 0) -> bytes:
        if self._largest_body and before + size > self._largest_body:
            raise Refused(413)
        while len(self._buffer) < size:
            self._fill()
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken

    def _find(self, mark: bytes, limit: int) -> int:
        """Returns where `mark` begins, which must be within the first `limit` bytes."""
        searched = 0
        while (found := self._buffer.find(mark, searched, limit)) < 0:
            if len(self._buffer) >= limit:
                raise Refused(431)
            searched = max(len(self._buffer) - len(mark), 0)
            self._fill()
        return found

    def _fill(self) -> bool:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Gone
        self._connection.settimeout(left)
        try:
            received = self._connection.recv(_READ)
        except OSError as error:  # Among them that the time is over.
            raise Gone from error
        if not received:
            raise _Ended
        self._buffer += received
        self._deadline += len(received) / _SLOWEST
        return True


def write(
    connection: socket.socket, response: Response, keep: bool, head_only: bool, seconds: float
) -> None:
    """Sends a response.

    Args:
        connection: The socket.
        response: What to send.
        keep: Whether more requests are welcome.
        head_only: Whether only the head of the response is wanted.
        seconds: How long each piece of 256 KiB may take.

    Raises:
        Gone: It could not be sent.
    """
    fields = {**response.headers, "Content-Length": str(len(response.body))}
    if not keep:
        fields["Connection"] = "close"
    head = [f"HTTP/1.1 {response.status} {_reason(response.status)}"]
    head += [f"{name}: {value}" for name, value in fields.items()]
    head_bytes = "\r\n".join([*head, "", ""]).encode("latin-1", "replace")
    body = b"" if head_only else response.body
    message = memoryview(head_bytes + body)
    connection.settimeout(seconds)
    try:
        for start in range(0, len(message), _WRITE):
            connection.sendall(message[start : start + _WRITE])
    except OSError as error:
        raise Gone from error


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if not colon or not name or name != name.strip() or "\n" in line or "\r" in line:
            raise Refused(400)
        if name in headers:
            if name in ("content-length", "transfer-encoding"):
                raise Refused(400)
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _reason(status: int) -> str:
    if status == _CLIENT_CLOSED:
        return "Client Closed Request"
    return http.HTTPStatus(status).phrase

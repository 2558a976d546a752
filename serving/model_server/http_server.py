"""A small HTTP/1.1 server: a thread a connection, and nobody is waited for without end."""

import contextlib
import functools
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

from serving.model_server.errors import Code, ServingError
from serving.model_server.http_messages import Gone, Reader, Refused, Request, Response, write

_LOG = logging.getLogger(__name__)
_IDLE_SECONDS = 60
_ACCEPT_SECONDS = 0.1
_BACKLOG = 1024
_MOST_CONNECTIONS = 8192
_LINGER_SECONDS = 1
_LINGER_READS = 64
_LINGER_BYTES = 64 * 2**10
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HANGING_UP = select.POLLHUP | getattr(select, "POLLRDHUP", 0)  # The latter is Linux's own.


class HttpServer:
    """Answers HTTP requests at a port, of IPv6 and IPv4 alike.

    Args:
        port: Where to listen.
        answer: Returns the response to a request; must not raise.
        seconds: How long a request may take to arrive, and a response to leave, beside what
            their sizes allow.
        largest_body: In bytes; 0 for any.
        tls: How to encrypt; None for not at all.

    Raises:
        ServingError: The port cannot be had.
    """

    def __init__(
        self,
        port: int,
        answer: Callable[[Request], Response],
        seconds: float,
        largest_body: int = 0,
        tls: ssl.SSLContext | None = None,
    ):
        self._answer = answer
        self._seconds = seconds
        self._largest_body = largest_body
        self._tls = tls
        self._connections: set[_Connection] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._listener = _listen(port)
        self._thread = threading.Thread(target=self._accept, name="rest", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self, grace_seconds: float) -> None:
        """Takes no new connections, lets the requests under way end, and closes the rest."""
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()
        with self._changed:
            for connection in self._connections:
                connection.close_if_idle()
            self._changed.wait_for(lambda: not self._connections, grace_seconds)
            left = set(self._connections)
        for connection in left:
            connection.close()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                accepted, address = self._listener.accept()
            except TimeoutError:
                continue  # Time to look whether to stop.
            except OSError as error:  # Too many open files, say.
                _LOG.error("Could not take a connection: %s", error)
                time.sleep(0.1)
                continue
            if self._stopping or len(self._connections) >= _MOST_CONNECTIONS:
                accepted.close()
                continue
            connection = _Connection(accepted, address[0])
            with self._changed:
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=[connection], name="rest-connection", daemon=True
            ).start()

    def _serve(self, connection: "_Connection") -> None:
        try:
            if self._tls:
                connection.encrypt(self._tls, self._seconds)
            reader = Reader(connection.socket, self._seconds, self._largest_body)
            while connection.wait(reader, lambda: self._stopping):
                if not self._serve_one(connection, reader):
                    break
        except Gone:
            _LOG.debug("The connection with %s broke", connection.peer, exc_info=True)
        finally:
            connection.close()
            with self._changed:
                self._connections.discard(connection)
                self._changed.notify_all()

    def _serve_one(self, connection: "_Connection", reader: Reader) -> bool:
        """Answers one request; tells whether another may follow."""
        try:
            request = reader.request(connection.go_on)
        except Refused as refused:
            write(connection.socket, Response(refused.status), False, False, self._seconds)
            connection.read_away()
            return False
        is_gone = functools.partial(connection.is_gone, request.version != "HTTP/1.0")
        response = self._answer(request._replace(peer=connection.peer, is_gone=is_gone))
        keep = request.keeps_connection and not self._stopping
        write(connection.socket, response, keep, request.method == "HEAD", self._seconds)
        return keep


class _Connection:
    """A socket with a caller at its other end."""

    def __init__(self, accepted: socket.socket, peer: str):
        self.socket = accepted
        self.peer = peer
        self._idle = False
        self._probed = False
        self._lock = threading.Lock()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def encrypt(self, tls: ssl.SSLContext, seconds: float) -> None:
        self.socket.settimeout(seconds)
        try:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        except OSError as error:
            raise Gone from error

    def wait(self, reader: Reader, is_stopping: Callable[[], bool]) -> bool:
        """Tells whether a request begins to arrive before this connection is given up."""
        with self._lock:
            self._idle = True
        arrived = not is_stopping() and reader.wait(_IDLE_SECONDS)
        with self._lock:
            self._idle = False
        return arrived

    def go_on(self) -> None:
        try:
            self.socket.sendall(_CONTINUE)
        except OSError as error:
            raise Gone from error

    def is_gone(self, may_ask: bool) -> bool:
        """Tells, asked again and again, whether the caller has left.

        Who sends no more may still listen: it is sent an interim response, which says nothing new.
        The machine of one that has left says so in return, in time for the next look.

        Args:
            may_ask: Whether the caller knows interim responses. Who does not is taken to listen.
        """
        try:
            poll = select.poll()
            poll.register(self.socket, _HANGING_UP)
            if not poll.poll(0):
                return False
            if may_ask and not self._probed:
                self._probed = True
                self.go_on()
            return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        except (Gone, OSError, ValueError):  # The last where the server has closed the socket.
            return True

    def read_away(self) -> None:
        """Reads some of what still comes, for the caller to see the answer before the end."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
            self.socket.settimeout(_LINGER_SECONDS)
            for _ in range(_LINGER_READS):
                if not self.socket.recv(_LINGER_BYTES):
                    break
        except OSError as error:
            raise Gone from error

    def close_if_idle(self) -> None:
        with self._lock:
            if self._idle:
                self._shut_down()

    def close(self) -> None:
        self._shut_down()
        self.socket.close()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # The other side was faster.
            self.socket.shutdown(socket.SHUT_RDWR)


def _listen(port: int) -> socket.socket:
    try:
        return _bind(socket.AF_INET6, "::", port)
    except (OSError, OverflowError):
        pass  # No IPv6 here, or the port is taken in both.
    try:
        return _bind(socket.AF_INET, "0.0.0.0", port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServingError(
            Code.UNAVAILABLE,
            f"Could not listen for REST at port {port}: {reason}. "
            "Choose another with --rest_api_port.",
        ) from None


def _bind(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.settimeout(_ACCEPT_SECONDS)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener

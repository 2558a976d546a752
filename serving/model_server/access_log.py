"""A line of JSON for every request."""

import json
import logging
import sys
from collections import defaultdict
from datetime import datetime, timezone
from logging.handlers import WatchedFileHandler

from serving.model_server.errors import not_found
from serving.model_server.journal import Entry

_LOG = logging.getLogger(__name__)
_LONGEST_MESSAGE = 512
_STDOUT = "-"


class AccessLog:
    """Writes entries to a file, which another program may move away at any time.

    Args:
        path: The file; `-` for the standard output.

    Raises:
        ServingError: The file cannot be written.
    """

    def __init__(self, path: str):
        try:
            self._handler = (
                logging.StreamHandler(sys.stdout) if path == _STDOUT else WatchedFileHandler(path)
            )
        except OSError as error:
            raise not_found(f"--access_log={path}: {error.strerror}") from None
        self._handler.handleError = self._failed
        self._has_failed = False

    def __call__(self, entry: Entry) -> None:
        """Writes one line."""
        line = json.dumps(describe(entry), ensure_ascii=False)
        self._handler.handle(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Writes what is left."""
        self._handler.close()

    def _failed(self, _) -> None:
        if not self._has_failed:
            _LOG.error("The access log cannot be written", exc_info=True)
        self._has_failed = True


def describe(entry: Entry) -> dict:
    """Returns what a line says of a request."""
    milliseconds: dict[str, float] = defaultdict(float)
    milliseconds["total"] = entry.seconds * 1e3
    for part in entry.parts:
        milliseconds[part.name] += part.seconds * 1e3
    start = datetime.fromtimestamp(entry.start, timezone.utc)
    line = {
        "time": start.isoformat(timespec="milliseconds"),
        "request_id": entry.id,
        "entrypoint": entry.entrypoint,
        "method": entry.method,
        "model": entry.model,
        "version": entry.version,
        "signature": entry.signature,
        "status": entry.code.name,
        "milliseconds": {name: round(value, 3) for name, value in milliseconds.items()},
        "bytes_in": entry.bytes_in,
        "bytes_out": entry.bytes_out,
        "peer": entry.peer,
    }
    if entry.message:
        line["message"] = entry.message[:_LONGEST_MESSAGE]
    return line

"""JSON as TF Serving reads it, that is, as RapidJSON 1.1 does: with NaN and infinities.

Python's own reader is written in C, and takes what is plainly a document. What it refuses, and the
little that it may take otherwise, is read once more here, to say what is wrong and where.
"""

import codecs
import json
import math
import re
from typing import Any, NoReturn

from serving.model_server.errors import ServingError, invalid

_MOST_DIGITS = 308  # A number of more may be too big.
_BLOCK = (_MOST_DIGITS + 2) // 2  # A row of more digits has one aligned block of so many.
_LONE_HALF = (  # Of a pair of surrogates; or so it seems, behind a backslash.
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F])"
)
_DOUBTS = [re.compile(text) for text in (rb"e\+?\d{3}", rb"E\+?\d{3}", _LONE_HALF, rb"\\\\u")]
_BLANKS = re.compile(rb"[ \t\r\n]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(rb"[0-9]*")
_WHOLE = re.compile(rb"0|[1-9][0-9]*")
_HEX = re.compile(rb"[0-9A-Fa-f]{4}")
_ENDS = (b"", b"\0")
_ESCAPES = {
    **{letter: letter for letter in (b'"', b"\\", b"/")},
    **{b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"},
}


def read(body: bytes) -> Any:
    """Returns the value that `body` begins with; what follows it is passed over.

    Of members of one name the first counts. Bytes that are no UTF-8 stand in strings as
    `surrogateescape` has them.

    Raises:
        ServingError: With TF Serving's message.
    """
    try:
        if not _is_doubtful(body):
            text = body.decode("utf-8", "surrogateescape").lstrip(" \t\r\n")
            return _decoder.raw_decode(text)[0]
    except ValueError:
        pass
    except RecursionError:
        raise _too_deep() from None
    try:
        return _Reader(body).read()
    except RecursionError:
        raise _too_deep() from None


def _is_doubtful(body: bytes) -> bool:
    """Tells whether Python may take what RapidJSON does not: big numbers, halves of characters."""
    if any(doubt.search(body) for doubt in _DOUBTS):
        return True
    starts = range(0, len(body) - _BLOCK + 1, _BLOCK)
    return any(body[start : start + _BLOCK].isdigit() for start in starts)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else dict(reversed(pairs))


_decoder = json.JSONDecoder(object_pairs_hook=_members)


def _too_deep() -> ServingError:
    return invalid("JSON Parse error: The document is nested too deeply.")


class _Reader:
    """Reads byte by byte; offsets are RapidJSON's."""

    def __init__(self, body: bytes):
        self._body = body
        self._at = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0

    def read(self) -> Any:
        if self._next() in _ENDS:
            self._fail("The document is empty.")
        return self._value()

    def _value(self) -> Any:
        match self._peek():
            case b"{":
                return self._object()
            case b"[":
                return self._array()
            case b'"':
                return self._string()
            case b"t":
                return self._word(b"true", True)
            case b"f":
                return self._word(b"false", False)
            case b"n":
                return self._word(b"null", None)
        return self._number()

    def _object(self) -> dict[str, Any]:
        self._at += 1
        pairs: list[tuple[str, Any]] = []
        if self._next() == b"}":
            self._at += 1
            return {}
        while True:
            if self._peek() != b'"':
                self._fail("Missing a name for object member.")
            name = self._string()
            if self._next() != b":":
                self._fail("Missing a colon after a name of object member.")
            self._at += 1
            self._next()
            pairs.append((name, self._value()))
            if self._ends(b"}", "Missing a comma or } after an object member."):
                return _members(pairs)

    def _array(self) -> list:
        self._at += 1
        values: list = []
        if self._next() == b"]":
            self._at += 1
            return values
        while True:
            values.append(self._value())
            if self._ends(b"]", "Missing a comma or ] after an array element."):
                return values

    def _ends(self, bracket: bytes, otherwise: str) -> bool:
        """Tells whether a bracket closes here, and not a comma goes on; passes over either."""
        found = self._next()
        if found not in (b",", bracket):
            self._fail(otherwise)
        self._at += 1
        if found == b",":
            self._next()
        return found == bracket

    def _string(self) -> str:
        self._at += 1
        pieces = []
        while True:
            plain = _PLAIN.match(self._body, self._at)
            pieces.append(plain[0])
            self._at = plain.end()
            found = self._peek()
            if found == b'"':
                self._at += 1
                return b"".join(pieces).decode("utf-8", "surrogateescape")
            if found in _ENDS:
                self._fail("Missing a closing quotation mark in string.")
            if found != b"\\":
                self._fail("Invalid escape character in string.")  # A control character.
            pieces.append(self._escaped())

    def _escaped(self) -> bytes:
        start = self._at
        self._at += 1
        letter = self._peek()
        self._at += 1
        if letter in _ESCAPES:
            return _ESCAPES[letter]
        if letter != b"u":
            self._fail("Invalid escape character in string.", start)
        point = self._hex(start)
        if 0xD800 <= point < 0xE000:
            low = 0
            if point < 0xDC00 and self._body.startswith(b"\\u", self._at):
                self._at += 2
                low = self._hex(start)
            if not 0xDC00 <= low < 0xE000:
                self._fail("The surrogate pair in string is invalid.", start)
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
        return chr(point).encode()

    def _hex(self, start: int) -> int:
        digits = _HEX.match(self._body, self._at)
        if not digits:
            self._fail("Incorrect hex digit after \\u escape in string.", start)
        self._at = digits.end()
        return int(digits[0], 16)

    def _number(self) -> int | float:
        start = self._at
        sign = -1 if self._take(b"-") else 1
        if self._peek() == b"N":
            return self._word(b"NaN", math.nan)
        if self._peek() == b"I":
            self._word(b"Inf", None)
            return sign * self._word(b"inity" if self._peek() == b"i" else b"", math.inf)
        whole = _WHOLE.match(self._body, self._at)
        if not whole:
            self._fail("Invalid value.")
        self._at = end = whole.end()
        if self._take(b"."):
            self._digits("Miss fraction part in number.")
        if self._take(b"e") or self._take(b"E"):
            if not self._take(b"-"):
                self._take(b"+")
            self._digits("Miss exponent in number.")
        text = self._body[start : self._at]
        number = float(text)
        if math.isinf(number):
            self._fail("Number too big to be stored in double.", start)
        return int(text) if self._at == end else number

    def _digits(self, otherwise: str) -> None:
        end = _DIGITS.match(self._body, self._at).end()
        if end == self._at:
            self._fail(otherwise)
        self._at = end

    def _word(self, word: bytes, value: Any) -> Any:
        for letter in word:
            if not self._take(bytes([letter])):
                self._fail("Invalid value.")
        return value

    def _take(self, byte: bytes) -> bool:
        """Passes over `byte`, if it is here."""
        found = self._peek() == byte
        self._at += found
        return found

    def _peek(self) -> bytes:
        return self._body[self._at : self._at + 1]

    def _next(self) -> bytes:
        """Returns the next byte that is not blank, and goes there."""
        self._at = _BLANKS.match(self._body, self._at).end()
        return self._peek()

    def _fail(self, text: str, offset: int | None = None) -> NoReturn:
        at = self._at if offset is None else offset
        raise invalid(f"JSON Parse error: {text} at offset: {at}")

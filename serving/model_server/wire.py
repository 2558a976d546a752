"""Protobuf's wire format, as far as tensors are written straight into it or read from it."""

LENGTH_DELIMITED = 2
_LONGEST_VARINT = 10  # Bytes.


def varint(value: int) -> bytes:
    """Returns a number that is not negative: seven bits a byte, the lowest first."""
    if value < 128:
        return _SHORT[value]
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


_SHORT = [bytes([value]) for value in range(128)]


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """Returns the number at a place in `content`, and the place behind it.

    Raises:
        ValueError: `content` ends before the number does.
    """
    value = 0
    for shift, byte in enumerate(content[at : at + _LONGEST_VARINT]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("no number ends here")


def head(number: int, length: int) -> bytes:
    """Returns what stands before a field of bytes, a message or packed numbers."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(length)


def field(number: int, value: bytes) -> bytes:
    """Returns a field of bytes, a message or packed numbers."""
    return head(number, len(value)) + value

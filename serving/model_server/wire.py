"""Protobuf's wire format, as far as answers are written straight into it."""

LENGTH_DELIMITED = 2


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


def head(number: int, length: int) -> bytes:
    """Returns what stands before a field of bytes, a message or packed numbers."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(length)


def field(number: int, value: bytes) -> bytes:
    """Returns a field of bytes, a message or packed numbers."""
    return head(number, len(value)) + value

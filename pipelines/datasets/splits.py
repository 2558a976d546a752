"""What every data set shares: the split of an example, and the error of data that is no use."""

import hashlib
import unicodedata
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class DataError(ValueError):
    """Data that cannot be used. The message names the place and says what to do about it."""


def split_of(text: str) -> Split:
    """Returns the split that a text belongs to: 90 % train, 5 % validation, 5 % test.

    The answer depends on nothing but the text, taken in its NFC form: not on the order or the
    number of the examples, nor on the process or the machine. All examples of one text are
    therefore on the same side, and an example that is added moves no other.

    Args:
        text: What the split goes by: the written word, say, whose pronunciations stay together.
    """
    digest = hashlib.blake2b(unicodedata.normalize("NFC", text).encode(), digest_size=8).digest()
    percentile = int.from_bytes(digest, "big") % 100
    if percentile < 90:
        return "train"
    return "validation" if percentile < 95 else "test"

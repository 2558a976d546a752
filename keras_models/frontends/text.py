"""Text to symbol numbers and back: the same code in tf.data and in the served graph."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_models import PADDING
from keras_models.configs.transcription import Text

# Holds number 0 in a vocabulary file, so that a symbol's number is its line's.
_PADDING_LINE = "<pad>"
# The most bytes of a character's UTF-8 that can be there without it being whole.
_UNFINISHED = 3
# A text whose last token may not be whole; all before that is group 1.
_LAST_TOKEN = r"\A((?s:\C*)[ \t-\r])?\C*\z"
# How the line of a symbol is written that cannot be a line itself. Where a symbol begins with a
# backslash, so that it could be taken for one of these, one more goes before it.
_BREAKS = {"\n": r"\n", "\r": r"\r"}


def _fold(text: tf.Tensor, config: Text) -> tf.Tensor:
    """Returns each text in the letter case of the vocabulary, `[B]` string."""
    return tf.strings.lower(text, encoding="utf-8") if config.lowercase else text


def _cut(text: tf.Tensor, config: Text) -> tf.RaggedTensor:
    """Returns the symbols of each text, `[B, (symbols)]` string."""
    if config.unit == "token":
        return tf.strings.split(text)
    if config.unit == "subword":  # it is those characters that may be unknown
        text = tf.strings.regex_replace(text, r"\s", "")
    return tf.strings.unicode_split(text, "UTF-8", errors="ignore")


def vocabulary_path(folder: Path, config: Text) -> Path:
    """Returns where the vocabulary of a field lies."""
    return folder / f"{config.field}.txt"


def build_vocabulary(batches: Iterable[tf.Tensor], config: Text, folder: Path) -> None:
    """Writes every symbol that is frequent enough, the most frequent first, one a line.

    Line 0 stands for number 0, which pads a sequence and is the blank of a transducer. Symbols
    are of composed characters (NFC). A line break is written as `\\n` or `\\r`, and a symbol that
    begins with a backslash with one more before it.

    Args:
        batches: `[B]` string each, UTF-8; bytes that are not are passed over.
        config: How to cut the texts.
        folder: Where to write `FIELD.txt`.
    """
    if config.unit == "subword":
        raise ValueError(
            "`unit` must be 'character' or 'token' in this task: parts of words are for a text "
            "that becomes another text. Received: 'subword'"
        )
    counts: dict[bytes, int] = {}
    for batch in batches:
        flat = _cut(tf.constant(folded(batch, config), tf.string), config).flat_values.numpy()
        for symbol, count in zip(*np.unique(flat, return_counts=True), strict=True):
            counts[symbol] = counts.get(symbol, 0) + int(count)
    frequent = {symbol for symbol, count in counts.items() if count >= config.min_count}
    known = frequent - {_PADDING_LINE.encode()}
    symbols = sorted(known, key=lambda symbol: (-counts[symbol], symbol))
    write_vocabulary([symbol.decode("utf-8") for symbol in symbols], config, folder)


def folded(batch: tf.Tensor, config: Text) -> list[str]:
    """Returns texts `[B]` as a vocabulary is made of them: in its letter case, composed."""
    return [_composed(text) for text in _fold(batch, config).numpy()]


def write_vocabulary(symbols: Iterable[str], config: Text, folder: Path) -> None:
    """Writes symbols after the one that pads, one a line, to `FIELD.txt`."""
    lines = [_PADDING_LINE, *map(_to_line, symbols)]
    folder.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines)
    vocabulary_path(folder, config).write_bytes(content.encode("utf-8"))


class TextFrontend(tf.Module):
    """Turns text into symbol numbers by a vocabulary, and numbers into text.

    A symbol that the vocabulary lacks is left out, as if the text did not contain it. Text may
    come composed or decomposed (NFC, NFD): the vocabulary's characters are composed here too.

    Args:
        config: How to cut the text.
        folder: Holds the vocabulary, as `build_vocabulary` left it. The file becomes an asset of
            an exported model.
    """

    def __init__(self, config: Text, folder: Path):
        super().__init__()
        self._config = config
        vocabulary = vocabulary_path(folder, config)
        lines = vocabulary.read_text(encoding="utf-8").split("\n")[:-1]
        self.symbols = tuple(map(_to_symbol, lines))
        self._escapes = self.symbols != tuple(lines)
        self._compositions = _compositions(self.symbols)
        self._openings = _openings(self._compositions, config)
        whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        path = str(vocabulary)
        self._numbers = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(path, tf.string, whole, tf.int64, number), PADDING
        )
        self._texts = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(path, tf.int64, number, tf.string, whole), ""
        )

    @property
    def field(self) -> str:
        """Name of the text in records, features and served signatures."""
        return self._config.field

    @property
    def size(self) -> int:
        """Number of symbols, number 0 counted."""
        return len(self.symbols)

    def encode(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Returns the symbol numbers of each text, `[B, (symbols)]` int32, for `[B]` string."""
        numbers = self._lookup(text)
        known = tf.ragged.boolean_mask(numbers, numbers != PADDING)
        return tf.cast(known, tf.int32)

    def encode_all(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Returns the same with the unknown symbols, each of which has the number `size`."""
        numbers = self._lookup(text)
        unknown = tf.fill(tf.shape(numbers.flat_values), tf.cast(self.size, numbers.dtype))
        known = tf.where(numbers.flat_values == PADDING, unknown, numbers.flat_values)
        return tf.cast(numbers.with_flat_values(known), tf.int32)

    def unknown(self, text: tf.Tensor) -> tf.Tensor:
        """Returns of `[B]` string how many symbols the vocabulary lacks and how many there are."""
        numbers = self._lookup(text).flat_values
        return tf.stack([tf.math.count_nonzero(numbers == PADDING), tf.size(numbers, tf.int64)])

    def _lookup(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Returns the number of every symbol, `[B, (symbols)]` int64, 0 for those unknown."""
        symbols = _cut(self._normal(text), self._config)
        return symbols.with_flat_values(self._numbers_of(symbols.flat_values))

    def _normal(self, text: tf.Tensor) -> tf.Tensor:
        """Returns texts in the letter case of the vocabulary, its characters composed."""
        text = _fold(text, self._config)
        for decomposed, composed in self._compositions:
            text = tf.strings.regex_replace(text, decomposed, composed)
        return text

    def _numbers_of(self, symbols: tf.Tensor) -> tf.Tensor:
        """Returns the number of each symbol, int64, 0 of those unknown."""
        return self._numbers.lookup(_to_lines(symbols) if self._escapes else symbols)

    def words(self, numbers: tf.RaggedTensor) -> tf.Tensor:
        """Returns `[B]`, how many words texts have that `encode` gave the numbers of."""
        if self._config.unit == "token":
            return numbers.row_lengths()
        return 1 + self._count(numbers, [symbol.isspace() for symbol in self.symbols])

    def _count(self, numbers: tf.RaggedTensor, counted: Sequence[bool]) -> tf.Tensor:
        """Returns `[B]`, how many of the numbers are counted."""
        found = tf.gather(tf.constant(counted), numbers.flat_values)
        return tf.reduce_sum(numbers.with_flat_values(tf.cast(found, tf.int64)), axis=1)

    def settle(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns each text in two parts `[B]`: what is settled whatever follows, and the rest.

        The rest is an unfinished token; or bytes of an unfinished character, or what a mark could
        still be composed with. It is to be put before what follows, and is settled at the end.
        So parted, a text has the symbols of the whole wherever it comes in two, in the midst of a
        character even, but for the last letter of a Greek word in capitals: a lone Σ becomes σ.
        """
        if self._config.lowercase:
            text = tf.strings.regex_replace(text, "Σ", "σ")  # noqa: RUF001
        if self._config.unit != "character":
            settled = tf.strings.regex_replace(text, _LAST_TOKEN, r"\1")
        else:
            end = _end_of_characters(text)
            settled = tf.strings.substr(text, tf.zeros_like(end), end)
            settled = tf.strings.regex_replace(settled, self._openings, "")
        start = tf.strings.length(settled)
        return settled, tf.strings.substr(text, start, tf.strings.length(text))

    def join(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        """Returns what `decode` gives for numbers in one piece, from what it gave for two."""
        if self._config.unit == "character":
            return first + second
        return first + tf.where((first == "") | (second == ""), "", " ") + second

    def decode(self, numbers: tf.Tensor) -> tf.Tensor:
        """Returns `[…]` string for symbol numbers `[…, U]` int32 that 0 pads."""
        separator = " " if self._config.unit == "token" else ""
        text = tf.strings.reduce_join(self.spell(numbers), axis=-1, separator=separator)
        return tf.strings.strip(text) if separator else text

    def spell(self, numbers: tf.Tensor) -> tf.Tensor:
        """Returns the symbol of each number, a string; of 0 it is empty."""
        symbols = self._texts.lookup(tf.cast(numbers, tf.int64))
        if self._escapes:
            symbols = _to_symbols(symbols)
        return tf.where(numbers == PADDING, "", symbols)


def _to_line(symbol: str) -> str:
    return "\\" + symbol if symbol.startswith("\\") else _BREAKS.get(symbol, symbol)


def _to_symbol(line: str) -> str:
    breaks = {line: symbol for symbol, line in _BREAKS.items()}
    return line[1:] if line.startswith(r"\\") else breaks.get(line, line)


def _to_lines(symbols: tf.Tensor) -> tf.Tensor:
    """Returns `_to_line` of each symbol."""
    lines = tf.strings.regex_replace(symbols, r"^\\", r"\\\\")
    for symbol, line in _BREAKS.items():
        lines = tf.where(symbols == symbol, line, lines)
    return lines


def _to_symbols(lines: tf.Tensor) -> tf.Tensor:
    """Returns `_to_symbol` of each line."""
    symbols = tf.strings.regex_replace(lines, r"^\\\\", r"\\")
    for symbol, line in _BREAKS.items():
        symbols = tf.where(lines == line, symbol, symbols)
    return symbols


def _composed(text: bytes) -> str:
    return unicodedata.normalize("NFC", text.decode("utf-8", errors="ignore"))


def _compositions(symbols: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (decomposed, composed) for the characters of `symbols` that have two forms.

    The longest come first: ế is not to be taken for an é or ê with one more mark.
    """
    composed = sorted({character for symbol in symbols[1:] for character in symbol})
    forms = ((unicodedata.normalize("NFD", character), character) for character in composed)
    pairs = [(decomposed, character) for decomposed, character in forms if decomposed != character]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def _openings(compositions: Sequence[tuple[str, str]], config: Text) -> str:
    """Returns the regular expression of a text's end that what follows could be composed with."""
    decomposed = [pair[0] for pair in compositions]
    openings = {whole[:end] for whole in decomposed for end in range(1, len(whole))}
    case = "(?i)" if config.lowercase else ""
    return rf"{case}(?:{'|'.join(sorted(openings))})\z" if openings else r"\z"


def _end_of_characters(text: tf.Tensor) -> tf.Tensor:
    """Returns `[B]` int32, the number of a text's bytes before a last unfinished character."""
    characters, starts = tf.strings.unicode_split_with_offsets(text, "UTF-8", errors="ignore")
    ends = tf.cast(starts, tf.int32) + tf.strings.length(characters)
    last = tf.reduce_max(tf.concat([ends, tf.zeros_like(text, tf.int32)[:, None]], 1), axis=1)
    return tf.maximum(last, tf.strings.length(text) - _UNFINISHED)

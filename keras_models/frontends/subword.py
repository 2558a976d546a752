"""Text to parts of words and back: learnt by SentencePiece, applied by TensorFlow's own ops."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_models import PADDING
from keras_models.configs.transcription import Text
from keras_models.frontends.text import TextFrontend, folded, write_vocabulary

# Begins the first part of each word, and is a character of it.
_WORD = "\N{LOWER ONE EIGHTH BLOCK}"


def scores_path(folder: Path, config: Text) -> Path:
    """Returns where the scores of a field's parts of words lie, beside its vocabulary."""
    return folder / f"{config.field}.scores.txt"


def build_subwords(batches: Iterable[tf.Tensor], config: Text, folder: Path) -> None:
    """Writes the parts of words that texts are best made of, and their log-probabilities.

    They are those of a unigram model (Kudo 2018, arXiv 1804.10959), as SentencePiece learns it:
    all characters, and the likeliest parts of words, `config.size` at most.

    Args:
        batches: `[B]` string each, UTF-8.
        config: How to fold the texts, and how many parts to learn.
        folder: Where to write `FIELD.txt`, as `build_vocabulary` does, and `FIELD.scores.txt`.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Parts of words are learnt by SentencePiece, which is not installed. "
            "Install it with: pip install 'transduce[translation]'"
        ) from None
    texts = (text for batch in batches for text in folded(batch, config))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_writer=model,
        model_type="unigram",
        vocab_size=config.size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    parts = [
        (processor.id_to_piece(n), processor.get_score(n))
        for n in range(processor.get_piece_size())
        if not processor.is_unknown(n) and not processor.is_control(n)
    ]
    write_vocabulary([part for part, _ in parts], config, folder)
    np.savetxt(scores_path(folder, config), [score for _, score in parts], "%.9g")


class SubwordFrontend(TextFrontend):
    """Turns text into numbers of parts of words, and numbers into text.

    A word becomes the parts whose log-probabilities have the largest sum (Viterbi's algorithm), as
    SentencePiece takes them. Characters that training did not have are left out.

    Args:
        config: How to fold the text.
        folder: Holds what `build_subwords` wrote.
    """

    def __init__(self, config: Text, folder: Path):
        super().__init__(config, folder)
        self._scores = np.loadtxt(scores_path(folder, config), np.float32, ndmin=1)
        self._scores = np.concatenate([[-np.inf], self._scores]).astype(np.float32)
        self._longest = max(map(len, self.symbols[1:]), default=1)

    def encode(self, text):
        words = tf.strings.split(self._normal(text))
        words = words.with_flat_values(self._known(words.flat_values))
        words = tf.ragged.boolean_mask(words, words != "")
        distinct, places = tf.unique(words.flat_values)
        parts = tf.gather(self._parts(distinct), places)  # [all words, (parts)]
        return words.with_flat_values(parts).merge_dims(1, 2)

    def decode(self, numbers):
        text = tf.strings.reduce_join(self.spell(numbers), axis=-1)
        return tf.strings.strip(tf.strings.regex_replace(text, _WORD, " "))

    def words(self, numbers):
        return self._count(numbers, [symbol.startswith(_WORD) for symbol in self.symbols])

    def _known(self, words: tf.Tensor) -> tf.Tensor:
        """Returns words `[N]` without the characters that training did not have."""
        characters = tf.strings.unicode_split(words, "UTF-8", errors="ignore")
        known = self._numbers_of(characters.flat_values) != PADDING
        kept = tf.ragged.boolean_mask(characters, characters.with_flat_values(known))
        return tf.strings.reduce_join(kept, axis=1)

    def _parts(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Returns the numbers of the parts of each word, `[N, (parts)]` int32, for `[N]`."""
        characters = tf.strings.unicode_split(_WORD + words, "UTF-8")
        lengths = tf.cast(characters.row_lengths(), tf.int32)
        shape = [-1, tf.reduce_max(tf.pad(lengths, [[0, 1]], constant_values=1))]
        numbers = self._numbers_of(self._endings(characters.to_tensor("", shape=tf.stack(shape))))
        # [characters, N, L]: the part of each length that ends with a character.
        numbers = tf.transpose(numbers, [1, 0, 2])
        scores = tf.gather(tf.constant(self._scores), numbers)
        sizes = _best_sizes(scores)  # [characters, N]
        ends = tf.transpose(_ends(sizes, lengths))  # [N, characters]
        chosen = tf.gather(numbers, sizes - 1, batch_dims=2)
        return tf.ragged.boolean_mask(tf.cast(tf.transpose(chosen), tf.int32), ends)

    def _endings(self, characters: tf.Tensor) -> tf.Tensor:
        """Returns the last 1 … L characters up to each, `[N, C, L]`, for `[N, C]` string.

        Where there are less, it is a text that no part is.
        """
        before, ending, endings = characters, characters, [characters]
        for _ in range(1, self._longest):
            before = tf.concat([tf.fill([tf.shape(before)[0], 1], " "), before[:, :-1]], axis=1)
            ending = before + ending
            endings.append(ending)
        return tf.stack(endings, axis=2)


def _best_sizes(scores: tf.Tensor) -> tf.Tensor:
    """Returns the size of the last part of the best way up to each character, `[C, N]` int32.

    Args:
        scores: `[C, N, L]`, the log-probability of the part of each size that ends there.
    """
    nothing = tf.fill(tf.shape(scores)[1:], -np.inf)
    start = tf.concat([tf.zeros_like(nothing[:, :1]), nothing[:, 1:]], axis=1)

    def step(before, now):
        # [N, L], the best up to each of the last L characters, the nearest first.
        window, _ = before
        totals = window + now
        best = tf.reduce_max(totals, axis=1, keepdims=True)
        window = tf.concat([best, window[:, :-1]], axis=1)
        return window, tf.argmax(totals, axis=1, output_type=tf.int32) + 1

    _, sizes = tf.scan(step, scores, (start, tf.zeros_like(scores[0, :, 0], tf.int32)))
    return sizes


def _ends(sizes: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Returns `[C, N]` bool: where the parts of the best way through words of `lengths` end."""
    places = tf.range(1, tf.shape(sizes)[0] + 1)

    def step(after, now):
        end, _ = after
        place, size = now
        here = end == place
        return tf.where(here, end - size, end), here

    start = lengths, tf.zeros_like(lengths, tf.bool)
    _, ends = tf.scan(step, (places, sizes), start, reverse=True)
    return ends

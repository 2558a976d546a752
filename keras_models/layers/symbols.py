"""The encoder that several architectures begin with: symbols, their vectors, LSTMs."""

import keras
import tensorflow as tf

from keras_models.configs.encoder import EncoderConfig
from keras_models.layers.dropout import dropout, fold_in
from keras_models.layers.recurrent import StackedLSTM
from keras_models.layers.streaming import CausalLSTM, ChunkedLSTM


class SymbolEncoder(keras.layers.Layer):
    """An embedding of symbols and LSTMs over it, with dropout around them.

    Args:
        config: Sizes.
        symbols: Number of symbols, padding counted.
    """

    def __init__(self, config: EncoderConfig, symbols: int):
        super().__init__()
        self._dropout = config.dropout
        self._embedding = keras.layers.Embedding(symbols, config.embedding_units)
        self._recurrent = _recurrent(config)
        self._embedding.build()
        self._recurrent.build((None, None, config.embedding_units))
        self.built = True
        self.output_width = self._recurrent.output_width

    def call(self, inputs, input_lengths, dropout_seed=None) -> tf.Tensor:
        """Returns `[B, T, output width]` for symbols `[B, T]` int32 of lengths `[B]`.

        Args:
            inputs: Symbols.
            input_lengths: How many they are.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """
        embedded = dropout(self._embedding(inputs), self._dropout, fold_in(dropout_seed, 0))
        seed = fold_in(dropout_seed, 1)
        encoding, _ = self._recurrent(embedded, input_lengths, dropout_seed=seed)
        return dropout(encoding, self._dropout, fold_in(dropout_seed, 2))

    @property
    def streams(self) -> bool:
        """Whether there is a `stream`: whether the LSTMs need not see all of an input."""
        return hasattr(self._recurrent, "stream")

    def zero_state(self, batch_size: tf.Tensor):
        """Returns the state of a stream before any input."""
        return self._recurrent.zero_state(batch_size)

    def stream(self, inputs, input_lengths, state, final: bool):
        """Returns what `layers.streaming` says of a part of the inputs."""
        return self._recurrent.stream(self._embedding(inputs), input_lengths, state, final)


def _recurrent(config: EncoderConfig) -> keras.layers.Layer:
    sizes = {
        "units": config.encoder_units,
        "layers": config.encoder_layers,
        "dropout": config.dropout,
    }
    if config.encoder == "causal":
        return CausalLSTM(**sizes)
    if config.encoder == "chunked":
        return ChunkedLSTM(**sizes, chunk=config.chunk, lookahead=config.lookahead)
    return StackedLSTM(**sizes, bidirectional=True)

"""What tasks have in common that answer one input, an image or a series, say, as a whole."""

from __future__ import annotations

import abc
from pathlib import Path

import tensorflow as tf

from keras_models.tasks.task import Task


class OneInputTask(Task):
    """A task of one input, which a frontend makes features of and says of which forms it may be.

    Args:
        config: Of the input: its `field`, and what builds its frontend.
        folder: Holds what the frontend knows of the training data.
    """

    def __init__(self, config, folder: Path):
        super().__init__()
        self._input = config.field
        self._frontend = config.build(folder)

    def refuses(self, records):
        return self._frontend.refuses(records[self._input])

    @property
    def refusal(self):
        return self._frontend.refusal

    def augmented(self, batch, seed):
        return {**batch, self._input: self._frontend.augmented(batch[self._input], seed)}

    def answer(self, inputs):
        """Returns the answers, by name."""
        return self._answer(self._frontend.served(inputs))

    @abc.abstractmethod
    def _answer(self, batch) -> dict[str, tf.Tensor]:
        """Returns the answers to a batch that the frontend has made, by name."""

    def signatures(self):
        """Returns `serving_default`, and the same for the frontend's other forms."""

        def served(spec, batched):
            @tf.function(input_signature=[spec])
            def serve(inputs):
                return self._answer(batched(inputs))

            return serve

        forms = {name: served(*form) for name, form in self._frontend.forms.items()}
        return {**super().signatures(), **forms}

    @property
    def input_signature(self):
        return self._frontend.signature

"""Served signatures for inputs that come in other forms than that of records."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def served_forms(
    frontend, answer: Callable
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """Returns the functions that serve each of a frontend's `forms`, by signature name.

    Args:
        frontend: Its `forms` give for each what it takes, and what makes a batch of that.
        answer: Gives the answers to a batch, by name.
    """

    def served(spec, batched):
        @tf.function(input_signature=[spec])
        def serve(inputs):
            return answer(batched(inputs))

        return serve

    return {name: served(*form) for name, form in frontend.forms.items()}

"""The contract of a translation task: sentences in, sentences in another language out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.transcription import TextToText

if TYPE_CHECKING:
    from keras_models.tasks.translator import Translator


@dataclass(frozen=True, config=STRICT)
class Translation(TextToText):
    """Sentences in one language to sentences in another."""

    learn_words: PositiveInt = 20
    """Sentences of so many words, or more, are not learnt from."""

    def build(self, model, folder: Path) -> Translator:
        """Returns the task for a model's Config and the folder that `prepare` wrote to."""
        from keras_models.tasks.translator import Translator

        return Translator(self, model, folder)

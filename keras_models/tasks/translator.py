"""Translation: a sentence in, a sentence in another language out."""

from __future__ import annotations

from itertools import zip_longest

import sacrebleu

from keras_models.tasks.task import Task
from keras_models.tasks.transcriber import Transcriber


class Translator(Transcriber):
    """A model between two languages. It is measured by BLEU, as `sacrebleu -lc` gives it."""

    many_references = False
    higher_is_better = frozenset({"bleu"})
    metrics = ("bleu",)

    def feasible(self, features):
        words = [front.words(features[name]) for name, front in self.frontends.items()]
        short = [count < self._config.learn_words for count in words]
        return super().feasible(features) & short[0] & short[1]

    def measure(self, answers, references):
        """Returns BLEU, in 0 … 100, of sentences as they are read, letter case apart."""
        bleu = sacrebleu.corpus_bleu(answers, list(zip_longest(*references)), lowercase=True)
        return {"bleu": bleu.score}

    def confusions(self, answers, references):
        return Task.confusions(self, answers, references)

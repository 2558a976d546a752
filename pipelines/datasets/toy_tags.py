"""Short English sentences with parts of speech, made by a small grammar, as a TFDS builder.

No text that anybody wrote: a sample to try a tagger on. Many words of the grammar are of several
parts of speech, so that only their neighbours tell which one.
"""

import random
import sys
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds

from pipelines.datasets.splits import SPLITS, split_of

_DESCRIPTION = """
A thousand sentences made at random by a hand-written grammar of English, with universal parts of
speech (https://universaldependencies.org/u/pos). An example is a sentence, its words separated by
blanks, and as many tags. Nine in ten train; the rest is shared between validation and test by a
hash of the sentence.
"""

_SENTENCES = 1000

# A name on the left stands for one of the alternatives on the right, and WORD/TAG for itself.
_GRAMMAR = """
sentence = clause ./PUNCT | clause ./PUNCT | question ?/PUNCT | clause and/CCONJ clause ./PUNCT
sentence = when/SCONJ clause ,/PUNCT clause ./PUNCT | someone says/VERB that/SCONJ clause ./PUNCT
clause = someone acts | someone acts manner | someone will act | that/PRON is/AUX quality
clause = someone wants to/PART act | thing is/AUX quality
question = aux someone act | where/ADV is/AUX thing | who/PRON acts
someone = he/PRON | she/PRON | the/DET person | her/DET person | that/DET quality person
someone = Anna/PROPN | the/DET person place | Peter/PROPN | my/DET person
person = cook/NOUN | nurse/NOUN | pilot/NOUN | judge/NOUN | guide/NOUN | guard/NOUN | child/NOUN
thing = the/DET object | my/DET quality object | that/DET object | her/DET object
thing = the/DET object place
object = watch/NOUN | book/NOUN | light/NOUN | can/NOUN | fish/NOUN | plant/NOUN | water/NOUN
object = play/NOUN | walk/NOUN | paint/NOUN | train/NOUN | match/NOUN | well/NOUN
object = stone/NOUN | will/NOUN
quality = light/ADJ | fast/ADJ | old/ADJ | early/ADJ | well/ADJ | green/ADJ | open/ADJ
quality = very/ADV quality
place = in/ADP thing | near/ADP thing | to/ADP the/DET object | on/ADP Monday/PROPN
manner = fast/ADV | early/ADV | well/ADV | there/ADV | place
acts = walks/VERB | sees/VERB thing | books/VERB thing | opens/VERB thing | watches/VERB her/PRON
acts = plants/VERB thing | paints/VERB thing | fishes/VERB place | sees/VERB that/PRON
act = walk/VERB | watch/VERB thing | book/VERB thing | light/VERB thing | plant/VERB thing
act = fish/VERB | cook/VERB thing | open/VERB thing | guide/VERB her/PRON | play/VERB
act = judge/VERB that/PRON | guard/VERB thing
act = train/VERB person | water/VERB thing | match/VERB thing
wants = wants/VERB | has/VERB | likes/VERB
will = will/AUX | can/AUX | may/AUX
aux = will/AUX | can/AUX | does/AUX
"""


class ToyTags(tfds.core.GeneratorBasedBuilder):
    """Builds the data set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "tags": tfds.features.Text()}
            ),
            supervised_keys=("text", "tags"),
            license="Apache-2.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        of_split = {split: [] for split in SPLITS}
        for text, tags in sentences(_SENTENCES):
            of_split[split_of(text)].append((text, tags))
        return {split: self._generate_examples(of_split[split]) for split in SPLITS}

    def _generate_examples(self, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict]]:
        for text, tags in pairs:
            yield text, {"text": text, "tags": tags}


def sentences(count: int) -> list[tuple[str, str]]:
    """Returns so many sentences, all different and always the same ones, each with its tags."""
    rules: dict[str, list[str]] = {}
    for line in _GRAMMAR.strip().splitlines():
        name, _, alternatives = line.partition(" = ")
        rules.setdefault(name, []).extend(alternatives.split(" | "))
    chance, made = random.Random(1), {}
    while len(made) < count:
        pairs = [token.rpartition("/") for token in _expanded("sentence", rules, chance)]
        made[" ".join(word for word, _, _ in pairs)] = " ".join(tag for _, _, tag in pairs)
    return list(made.items())


def _expanded(symbol: str, rules: dict[str, list[str]], chance: random.Random) -> list[str]:
    """Returns the WORD/TAGs that a symbol becomes."""
    if symbol not in rules:
        return [symbol]
    parts = chance.choice(rules[symbol]).split()
    return [token for part in parts for token in _expanded(part, rules, chance)]

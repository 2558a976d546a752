"""The sides of `benchmarks.decoding`: `python -m benchmarks.decoding_sides NAME [ARGUMENT]`.

Each function imports its own library and returns what `serve` takes. The kind of a case is how
many words are asked together; its array `words` are the words; what is computed is the answers,
phonemes with blanks between and no stress, and no gradients.
"""

import dataclasses
import hashlib
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.side import cache, serve


def ours(run, beam):
    """The model of a run, exported with a beam, called as a server calls it."""
    import tensorflow as tf

    from pipelines.display import Display
    from pipelines.folder import RunFolder
    from pipelines.run import Run

    folder = RunFolder(Path(run))
    model = dataclasses.replace(folder.job()[1].model, beam=int(beam))
    with tempfile.TemporaryDirectory() as models:
        path = Run(folder, Display(), model=model).export_to(Path(models), "ours")
        model = tf.saved_model.load(str(path))
    serving_default, name = model.signatures["serving_default"], "pronunciation"

    def answer(words):
        return [text.decode() for text in serving_default(tf.constant(words))[name].numpy()]

    return _in_batches(answer)


def g2p_en():
    """The network of g2p-en alone: its dictionary and its tagger of sentences are left out.

    They are data of NLTK's that are not on PyPI. It takes one word at a time.
    """
    import nltk

    nltk.download = lambda *_: True
    nltk.corpus.cmudict.dict = dict
    import g2p_en as package

    network = package.G2p()
    return _in_batches(lambda words: [_plain(network.predict(word)) for word in words])


def phonetisaurus(train):
    """A joint n-gram model, trained on the words that ours was trained on: minutes, but once.

    It is a command that reads a list of words: it gets all of them at once, and one word not at
    all, as most of that would be the start of a process.
    """
    import phonetisaurus as package

    digest = hashlib.sha256(Path(train).read_bytes()).hexdigest()[:16]
    path = cache() / f"phonetisaurus-{digest}.fst"
    if not path.exists():
        with open(train, encoding="utf-8") as lexicon:
            package.train(package.load_lexicon(lexicon), path)

    def prepare(together, arrays):
        if together == "1":
            raise NotImplementedError("a process for every word")
        words = arrays["words"].tolist()

        def compute():
            found = {word: _plain(phonemes) for word, phonemes in package.predict(words, path)}
            return [found.get(word, "") for word in words], []

        return compute

    return prepare


def _in_batches(answer):
    def prepare(together, arrays):
        words, size = arrays["words"].tolist(), int(together)

        def compute():
            starts = range(0, len(words), size)
            return [each for n in starts for each in answer(words[n : n + size])], []

        return compute

    return prepare


def _plain(phonemes):
    return re.sub(r"\d", "", " ".join(phonemes))


if __name__ == "__main__":
    serve(lambda: globals()[sys.argv[1]](*sys.argv[2:]))

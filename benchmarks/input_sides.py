"""The sides of `benchmarks.input`: `python -m benchmarks.input_sides NAME`.

Each function imports its own library and returns what `serve` takes. The kinds of cases:

    epoch       the examples of one epoch, sorted
    words       batches of padded words: the number of examples in them
    images      batches of images, likewise
    training    the share of waiting, and examples a second (ours only)
"""

import itertools
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.input import SIZES, WIDTHS
from benchmarks.side import serve

BATCHES, IMAGES_IN_A_BATCH = 200, 128
STEPS = 100


def ours():
    """Ours: a store of features, and batches by their numbers."""
    import tensorflow as tf

    from pipelines import jobfile, strategies
    from pipelines.display import Display
    from pipelines.input import batch_sizes, bucket_widths, training_batches, write_examples
    from pipelines.store import FeatureStore
    from pipelines.training import Trainer

    def batches_of(arrays):
        folder = _written(arrays)
        count = len(arrays["text.splits"]) - 1 if "text.splits" in arrays else len(_first(arrays))
        shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        record = json.dumps({"examples": [count], "arrays": shapes})
        (folder / "store.json").write_text(record, encoding="utf-8")
        widths, sizes = (WIDTHS, SIZES) if "text.splits" in arrays else ([[]], [IMAGES_IN_A_BATCH])
        return training_batches(FeatureStore(folder), widths, sizes, 1).since(0)

    def trained(arrays):
        """Returns what the job's own trainer says of itself."""
        job = jobfile.load("g2p_transducer").job(quick=True)
        folder = Path(tempfile.mkdtemp())
        texts, sounds = (_letters(arrays, name) for name in ("text", "sound"))
        columns = {"text": texts, "pronunciation": [" ".join(sound) for sound in sounds]}
        records = tf.data.Dataset.from_tensor_slices(columns).batch(256)
        job.task.prepare(records, folder)
        strategy = strategies.choose("auto")
        with strategy.scope():
            task = job.task.build(job.model, folder)
        store, _ = write_examples([records], task, folder / "features")
        widths = bucket_widths(store.lengths(), job.data.buckets)
        sizes = batch_sizes(widths, job.data.batch_tokens, job.data.batch_size)
        since = training_batches(store, widths, sizes, 1).since
        # What comes once, such as compiling, is in the first half.
        config = replace(job.train, steps=2 * STEPS, log_every=STEPS, evaluate_every=2 * STEPS)
        Trainer(task, config, since, strategy, folder).train(lambda: {"loss": 0.0}, Display())
        last = json.loads((folder / "speed.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        return [last["waiting_share"], last["examples_per_second"]]

    def prepare(kind, arrays):
        if kind == "training":
            numbers = trained(arrays) if len(arrays["text.splits"]) > STEPS else []
            return lambda: (numbers, [])
        return _compute(kind, iter(batches_of(arrays)), arrays)

    return prepare


def torch(workers):
    """A DataLoader whose dataset gives all examples of a batch at once, the fastest way it has.

    Args:
        workers: processes that make batches; 0 for the loader's own.
    """
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Mapped(Dataset):
        """Arrays in files, of which any example is read at its place."""

        def __init__(self, arrays):
            folder = _written(arrays)
            self.arrays = {
                name: np.memmap(folder / name, array.dtype, "r", shape=array.shape)
                for name, array in arrays.items()
            }

        def __getitems__(self, examples):
            if "image.values" in self.arrays:
                return {name: array[examples] for name, array in self.arrays.items()}
            bucket = _bucket(self._lengths("text", examples[:1]))[0]
            names = ("text", "sound")
            return {
                name: self._padded(name, examples, width)
                for name, width in zip(names, WIDTHS[bucket], strict=True)
            }

        def _lengths(self, name, examples):
            splits = self.arrays[f"{name}.splits"]
            return splits[np.asarray(examples) + 1] - splits[examples]

        def _padded(self, name, examples, width):
            starts, lengths = self.arrays[f"{name}.splits"][examples], self._lengths(name, examples)
            real = np.arange(width) < lengths[:, None]
            places = np.where(real, starts[:, None] + np.arange(width), 0)
            return np.where(real, self.arrays[f"{name}.values"][places], 0)

    class Batches:
        """Numbers of examples by batch, endless; what does not fill one goes to the next epoch."""

        def __init__(self, arrays):
            if "text.splits" in arrays:
                self._buckets, self._sizes = _bucket(np.diff(arrays["text.splits"])), SIZES
            else:
                self._buckets = np.zeros(len(_first(arrays)), int)
                self._sizes = [IMAGES_IN_A_BATCH]

        def __iter__(self):
            random = np.random.default_rng(1)
            over = [np.zeros(0, int) for _ in self._sizes]
            while True:
                order = random.permutation(len(self._buckets))
                batches = []
                for bucket, size in enumerate(self._sizes):
                    some = order[self._buckets[order] == bucket]
                    some = np.concatenate([over[bucket], some])
                    full = len(some) // size * size
                    batches += list(some[:full].reshape(-1, size))
                    over[bucket] = some[full:]
                for n in random.permutation(len(batches)):
                    yield batches[n]

    def to_tensors(batch):
        return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in batch.items()}

    def prepare(kind, arrays):
        if kind == "training":
            raise NotImplementedError
        loader = DataLoader(
            Mapped(arrays),
            batch_sampler=Batches(arrays),
            num_workers=workers,
            collate_fn=to_tensors,
        )
        return _compute(kind, iter(loader), arrays)

    return prepare


def _compute(kind, batches, arrays):
    """Returns what `serve` calls, for endless batches of arrays by name."""
    if kind == "epoch":
        return lambda: (_sorted(batches, len(arrays["text.splits"]) - 1), [])

    def compute():
        return sum(len(_first(batch)) for batch in itertools.islice(batches, BATCHES)), []

    return compute


def _written(arrays):
    """Returns a folder with a file of each array."""
    folder = Path(tempfile.mkdtemp())
    for name, array in arrays.items():
        array.tofile(folder / name)
    return folder


def _first(arrays):
    return next(iter(arrays.values()))


def _bucket(lengths):
    """Returns the first bucket that holds words of these lengths; their sounds are as long."""
    return np.searchsorted([width for width, _ in WIDTHS], lengths)


def _letters(arrays, name):
    """Returns words of letters that stand for numbers."""
    splits, values = arrays[f"{name}.splits"], arrays[f"{name}.values"]
    letters = "".join(map(chr, values % 26 + ord("a")))
    return [letters[a:b] for a, b in itertools.pairwise(splits)]


def _sorted(batches, count):
    """Returns the first so many examples in order: the width, the word, its sounds."""
    rows, held = [], 0
    while held < count:
        batch = next(batches)
        text, sound = np.asarray(batch["text"]), np.asarray(batch["sound"])
        row = np.zeros((len(text), 1 + sum(WIDTHS[-1])), np.int64)
        row[:, 0] = text.shape[1]
        row[:, 1 : 1 + text.shape[1]] = text
        row[:, 1 + WIDTHS[-1][0] :][:, : sound.shape[1]] = sound
        rows.append(row)
        held += len(row)
    rows = np.concatenate(rows)
    return rows[np.lexsort(rows.T)]


if __name__ == "__main__":
    sides = {"ours": ours, "torch_0": lambda: torch(0), "torch_2": lambda: torch(2)}
    serve(sides[sys.argv[1]])

"""The input pipeline alone, beside a DataLoader of PyTorch that does the same work.

    python -m benchmarks.input [--quick] [--sides NAME ...]

Both sides have the features of all examples in files that are mapped into memory, go through them
in a random order, another one in each epoch, and make batches that are padded to one of six widths
(of words), or of one size (of images). PyTorch's side is asked with its batches made in its own
process, and in two workers. First the examples of an epoch are compared, then batches are timed in
turns, for 10,000 examples, 100,000 and 1,000,000: the cost of an example should not grow.

At last the training loop of the job `g2p_transducer --quick` says how much it waits and how many
examples it takes a second, of 20,000 and of 200,000.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.side import Side, ask_all, parser, pythons, time_in_turns

_TORCH = ("torch_cpu", [["torch==2.13.0", "numpy"]])
SIDES = {"ours": None, "torch_0": _TORCH, "torch_2": _TORCH}
# The widths of words and their sounds in each bucket, and how many of them make a batch.
WIDTHS = [(5, 5), (6, 6), (7, 7), (8, 8), (10, 10), (14, 14)]
SIZES = [2560 // width for width, _ in WIDTHS]
COUNTS, QUICK_COUNTS = [10_000, 100_000, 1_000_000], [2_000, 4_000]
TRAINED = [20_000, 200_000]
_ROUNDS = 9


def main():
    """Compares all sides, prints a table and, last, a line of JSON."""
    options = parser(__doc__, SIDES).parse_args()
    sides = [
        Side(
            name,
            python,
            ["-m", "benchmarks.input_sides", name],
            options.threads,
            options.huge_pages,
        )
        for name, python in pythons(SIDES, options.sides).items()
    ]
    rounds = 3 if options.quick else _ROUNDS
    counts = QUICK_COUNTS if options.quick else COUNTS
    rows, costs = [], {}
    with tempfile.TemporaryDirectory() as folder:
        _check(sides, Path(folder))
        for count in counts:
            case = f"words {count}"
            seconds = _seconds(sides, "words", _words(count), Path(folder), rounds)
            rows += _rows(case, seconds)
            costs[count] = seconds.get("ours")
        rows += _rows("images", _seconds(sides, "images", _images(counts[0]), Path(folder), rounds))
        rows += _growth(costs)
        ours = [side for side in sides if side.name == "ours"]
        rows += _training(ours, Path(folder), counts[:1] if options.quick else TRAINED)
    for side in sides:
        side.close()
    print(json.dumps({"rows": rows}))


def _words(count, multiples=False):
    """Returns values and splits of words and of their sounds.

    Args:
        count: of the words.
        multiples: whether each bucket is to hold whole batches.
    """
    random = np.random.default_rng(0)
    buckets = np.repeat(np.arange(len(WIDTHS)), SIZES if multiples else 1)
    buckets = np.resize(buckets, count)
    random.shuffle(buckets)
    ends = np.array([0, *(width for width, _ in WIDTHS)])
    lengths = random.integers(ends[buckets] + 1, ends[buckets + 1] + 1)
    arrays = {}
    for name in ("text", "sound"):
        splits = np.concatenate([[0], np.cumsum(lengths)])
        arrays[f"{name}.splits"] = splits
        arrays[f"{name}.values"] = random.integers(1, 40, splits[-1], dtype=np.int32)
    return arrays


def _images(count):
    random = np.random.default_rng(0)
    return {
        "image.values": random.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8),
        "label.values": random.integers(0, 10, count),
    }


def _check(sides, folder):
    """Raises where an epoch is not of the same examples, padded to the same widths, on all."""
    path, found = str(folder / "check.npz"), str(folder / "results.npz")
    np.savez(path, **_words(2 * sum(SIZES), multiples=True))

    def results_of(side):
        side.ask("load", kind="epoch", path=path, tiny=path)
        side.ask("results", path=found)
        with np.load(found) as results:
            return results["losses"]

    (_, expected), *others = ask_all(sides, results_of).items()
    for side, examples in others:
        np.testing.assert_array_equal(examples, expected, err_msg=side.name)


def _seconds(sides, kind, arrays, folder, rounds):
    """Returns the seconds that an example takes, by side."""
    path, tiny, found = (str(folder / f"{name}.npz") for name in ("case", "tiny", "results"))
    np.savez(path, **arrays)
    np.savez(tiny, **(_words(500) if kind == "words" else _images(300)))

    def examples_of(side):
        side.ask("load", kind=kind, path=path, tiny=tiny)
        side.ask("results", path=found)
        with np.load(found) as results:
            return int(results["losses"])

    examples = ask_all(sides, examples_of)
    seconds = time_in_turns(examples, rounds)["seconds"]
    return {
        side.name: seconds[side.name] / n for side, n in examples.items() if side.name in seconds
    }


def _rows(case, seconds):
    """Returns ours beside the peers, and prints it."""
    ours = seconds.get("ours")
    rows = []
    for name, value in seconds.items():
        ratio = value / ours if ours else float("nan")
        print(f"{case:16} {name:8} {1e6 * value:8.2f} µs {1 / value:10,.0f} a second {ratio:6.2f}")
        if ours and name != "ours":
            rows.append({"case": f"{name} {case}", "ours": ours, "peer": value, "ratio": ratio})
    return rows


def _growth(costs):
    """Returns the cost of an example among the most of them beside that among the fewest."""
    few, many = min(costs), max(costs)
    if not costs[few] or not costs[many]:
        return []
    ratio = costs[few] / costs[many]
    print(f"an example among {many:,} takes {1 / ratio:.2f} times as long as one among {few:,}")
    return [{"case": "growth", "ours": costs[many], "peer": costs[few], "ratio": ratio}]


def _training(sides, folder, counts):
    """Returns what the training step waits, and how its speed depends on the number of examples."""
    path, tiny, found = (str(folder / f"{name}.npz") for name in ("training", "tiny", "results"))
    np.savez(tiny, **_words(2))
    rows, rates = [], {}
    for side in sides:
        for count in counts:
            np.savez(path, **_words(count))
            side.ask("load", kind="training", path=path, tiny=tiny)
            side.ask("results", path=found)
            with np.load(found) as results:
                waiting, rates[count] = results["losses"].tolist()
            case = f"training {count}"
            print(f"{case:16} {rates[count]:,.0f} a second, waiting {waiting:.2%} of the time")
            rows.append({"case": case, "ours": waiting, "peer": 1.0, "ratio": 1 / waiting})
        few, many = min(rates), max(rates)
        if few < many:
            ratio = rates[many] / rates[few]
            print(
                f"training takes {1 / ratio:.2f} times as long an example of {many:,} as of {few:,}"
            )
            case = "growth of training"
            rows.append(
                {"case": case, "ours": 1 / rates[many], "peer": 1 / rates[few], "ratio": ratio}
            )
    return rows


if __name__ == "__main__":
    main()

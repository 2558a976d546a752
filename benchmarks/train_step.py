"""Training of the grapheme-to-phoneme transducer, beside the same model in PyTorch.

    python -m benchmarks.train_step [--quick] [--sides NAME ...] [--cases KIND ...] [--rounds N]

Model, optimizer and clipping are those of the job `g2p_transducer`; both sides start from the same
weights and get the same batches, of synthetic symbols in words of a dictionary's lengths. PyTorch
packs what is padded, as its LSTM knows no lengths otherwise, and has torchaudio's transducer loss.
First losses and gradients without dropout are compared. Then are timed, in turns:

    step    one optimizer step on one batch that is in memory
    loop    steps over batches of all widths, each read and made a tensor: tf.data and PyTorch's
            DataLoader, examples per second
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.side import Side, ask_all, parser, pythons, time_in_turns
from benchmarks.transducer_loss import TORCH

SIDES = {"ours": None, "torchaudio": TORCH}
# Padded input symbols in a batch, and the widths of inputs and outputs in each.
TOKENS, WIDTHS = 2560, [(5, 5), (6, 6), (7, 7), (8, 8), (10, 10), (14, 13)]
INPUTS, OUTPUTS = 31, 40


def main():
    """Compares both sides, prints a table and, last, a line of JSON."""
    arguments = parser(__doc__, SIDES, ["step", "loop"])
    arguments.add_argument("--rounds", type=int, default=15, help="of all sides")
    options = arguments.parse_args()
    sides = [
        Side(
            name,
            python,
            ["-m", "benchmarks.train_step_sides", name],
            options.threads,
            options.huge_pages,
        )
        for name, python in pythons(SIDES, options.sides).items()
    ]
    tokens, rounds = (64, 3) if options.quick else (TOKENS, options.rounds)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        batches = _batches(tokens)
        for kind in ["check", *options.cases]:
            chosen = range(len(batches)) if kind == "loop" else [2]
            arrays = {f"{name}_{n}": x for n, i in enumerate(chosen) for name, x in batches[i]}
            examples = sum(len(array) for name, array in arrays.items() if "inputs" in name)
            seconds = _compare(sides, kind, arrays, Path(folder), rounds)
            if seconds:
                rows += _rows(kind, examples, seconds)
    for side in sides:
        side.close()
    print(json.dumps({"rows": rows}))


def _batches(tokens):
    """Returns named arrays of a batch of each width: symbols, 0 past lengths below the width."""
    random = np.random.default_rng(0)
    batches, shortest = [], 3
    for width, most in WIDTHS:
        count = max(2, tokens // width)
        lengths = random.integers(shortest, width + 1, count, dtype=np.int32)
        label_lengths = np.clip(lengths - random.integers(0, 2, count), 1, most).astype(np.int32)
        lengths[0], label_lengths[0] = width, most
        batches.append(
            [
                ("inputs", _symbols(random, lengths, width, INPUTS)),
                ("input_lengths", lengths),
                ("labels", _symbols(random, label_lengths, most, OUTPUTS)),
                ("label_lengths", label_lengths),
            ]
        )
        shortest = width + 1
    return batches


def _symbols(random, lengths, width, size):
    symbols = random.integers(1, size, (len(lengths), width), dtype=np.int32)
    return np.where(np.arange(width) < lengths[:, None], symbols, 0).astype(np.int32)


def _compare(sides, kind, arrays, folder, rounds):
    """Returns the median of seconds by side; nothing where only results are compared."""
    path, found = str(folder / f"{kind}.npz"), str(folder / "results.npz")
    np.savez(path, **arrays)

    def results_of(side):
        side.ask("load", kind=kind, path=path, tiny=path)
        side.ask("results", path=found)
        with np.load(found) as results:
            return dict(results)

    results = ask_all(sides, results_of)
    if kind != "check":
        return time_in_turns(results, rounds)["seconds"]
    (first, expected), *others = results.items()
    for side, found_there in others:
        for name, array in expected.items():
            np.testing.assert_allclose(
                found_there[name],
                array,
                rtol=0,
                atol=1e-3 * np.abs(array).max(),
                err_msg=f"{name}: {side.name} beside {first.name}",
            )
    return {}


def _rows(kind, examples, seconds):
    """Returns ours beside the peer, and prints it."""
    ours = seconds.get("ours")
    rows = []
    for name, value in seconds.items():
        ratio = value / ours if ours else float("nan")
        print(
            f"{kind:5} {name:12} {1e3 * value:8.1f} ms "
            f"{examples / value:8.0f} examples/s {ratio:6.2f}"
        )
        if ours and name != "ours":
            rows.append({"case": f"{name} {kind}", "ours": ours, "peer": value, "ratio": ratio})
    return rows


if __name__ == "__main__":
    main()

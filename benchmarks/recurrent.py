"""One recurrent layer, forward and backward, beside Keras's and PyTorch's.

    python -m benchmarks.recurrent [--quick] [--sides NAME ...] [--cases KIND ...]

Sizes are (B, T, F, D): examples, steps, inputs and units. PyTorch, without a GPU, comes from PyPI
into an environment of its own in the user's cache folder at the first run. All sides get the same
inputs, weights, threads, memory allocator and huge pages; first outputs and all gradients are
compared, then the sides are timed in turns. Nothing is padded, as PyTorch has no lengths without
packing; ours and Keras's are told the lengths all the same.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.side import Side, ask_all, parser, pythons, time_in_turns

# By side: its environment and what is installed there, or None for ours.
SIDES = {
    "ours": None,
    "ours_graph": None,
    "keras_graph": None,
    "keras_xla": None,
    "torch": ("torch_cpu", [["torch==2.13.0", "numpy"]]),
}
GATES = {"lstm": 4, "gru": 3}
CASES = [(32, 100, 64, 256), (8, 400, 80, 320), (64, 20, 256, 512)]
QUICK = [(2, 5, 3, 4)]
_ROUNDS = 25


def main():
    """Compares all sides in all cases, prints a table and, last, a line of JSON."""
    options = parser(__doc__, SIDES, GATES).parse_args()
    found = pythons(SIDES, options.sides)
    rate = _rate(options)
    rows = []
    for kind in options.cases:
        for sizes in QUICK if options.quick else CASES:
            print(f"\n{kind} {_written(sizes)}")
            sides = [_side(name, python, options) for name, python in found.items()]
            seconds = _compare(sides, kind, sizes, 3 if options.quick else _ROUNDS)
            for side in sides:
                side.close()
            rows += _rows(kind, sizes, seconds, rate)
    print(json.dumps({"rows": rows}))


def _side(name, python, options):
    command = ["-m", "benchmarks.recurrent_sides", name]
    return Side(name, python, command, options.threads, options.huge_pages)


def _rate(options):
    """Returns the operations that this machine does in a second in one large product."""
    width = 256 if options.quick else 4096
    side = _side("ours", Path(sys.executable), options)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "inputs.npz")
        np.savez(path, x=np.ones((width, width), np.float32))
        side.ask("load", kind="product", path=path, tiny=path)
        rate = 2 * width**3 / min(side.ask("time") for _ in range(5))
    side.close()
    print(f"{rate / 1e9:.0f} GFLOP/s multiplied")
    return rate


def _written(sizes):
    return f"({','.join(map(str, sizes))})"


def _inputs(kind, sizes):
    """Returns inputs, the weights as Keras has them, and the outputs' gradient."""
    random = np.random.default_rng(0)
    batch, steps, inputs, units = sizes
    width = GATES[kind] * units
    shapes = {
        "inputs": (batch, steps, inputs),
        "kernel": (inputs, width),
        "recurrent_kernel": (units, width),
        "bias": (2, width) if kind == "gru" else (width,),
        "d_outputs": (batch, steps, units),
    }
    arrays = {name: random.standard_normal(x, dtype=np.float32) for name, x in shapes.items()}
    for name in ("kernel", "recurrent_kernel", "bias"):
        arrays[name] /= np.float32(units**0.5)
    return arrays


def _compare(sides, kind, sizes, rounds):
    """Returns the median of seconds by side."""
    with tempfile.TemporaryDirectory() as folder:
        path, tiny, found = (
            str(Path(folder) / f"{name}.npz") for name in ("inputs", "tiny", "results")
        )
        np.savez(path, **_inputs(kind, sizes))
        np.savez(tiny, **_inputs(kind, QUICK[0]))

        def results_of(side):
            side.ask("load", kind=kind, path=path, tiny=tiny)
            side.ask("results", path=found)
            with np.load(found) as results:
                return dict(results)

        results = ask_all(sides, results_of)
        _check_agreement(results)
        return time_in_turns(results, rounds)["seconds"]


def _check_agreement(results):
    """Raises where two sides did not compute the same thing."""
    if not results:
        return
    (first, expected), *others = results.items()
    for side, found in others:
        for name, array in expected.items():
            np.testing.assert_allclose(
                found[name],
                array,
                rtol=0,
                atol=1e-4 * np.abs(array).max(),
                err_msg=f"{name}: {side.name} beside {first.name}",
            )


def _rows(kind, sizes, seconds, rate):
    """Returns ours beside each peer, and prints it with the share of the machine's rate."""
    batch, steps, inputs, units = sizes
    # Forward, backward by the inputs and the state, and backward by the weights.
    work = 3 * 2 * batch * steps * GATES[kind] * units * (inputs + units)
    ours = seconds.get("ours")
    rows = []
    for name, value in seconds.items():
        share = f"{100 * work / value / rate:.0f} %"
        ratio = value / ours if ours else float("nan")
        print(f"  {name:12} {1e3 * value:8.1f} ms {ratio:6.2f} {share:>6} of the product rate")
        if ours and not name.startswith("ours"):
            case = f"{name} {kind} {_written(sizes)}"
            rows.append({"case": case, "ours": ours, "peer": value, "ratio": ratio})
    return rows


if __name__ == "__main__":
    main()

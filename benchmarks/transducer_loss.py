"""The transducer loss and its gradients beside every peer that can be had.

    python -m benchmarks.transducer_loss [--quick] [--sides NAME ...] [--cases KIND ...]

Peers come from PyPI into environments of their own in the user's cache folder, some gigabytes in
all, at the first run. All sides get the same inputs, threads, memory allocator and huge pages;
first their results are compared, then they are timed in turns. Memory is what computing for the
first time holds at most beyond its inputs, results included; with TensorFlow's XLA that comes
with some 20 MB for compiling.

Not here, though the literature names them: warp-transducer, k2 and warp-rnnt have no package that
installs without a compiler set up for them or a GPU; optimized_transducer overwrites its inputs.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.side import Side, ask_all, parser, pythons, time_in_turns

TORCH = (
    "torch",
    [
        ["torch==2.11.0", "torchaudio==2.11.0", "numpy", "ninja", "setuptools", "wheel"],
        ["numba", "warprnnt_numba==0.4.1"],
    ],
)
# By side: its environment and what is installed there, or None for ours.
SIDES = {
    "ours": None,
    "ours_graph": None,
    "torchaudio": TORCH,
    "fast_rnnt": TORCH,
    "warprnnt_numba": TORCH,
    "axlearn": (
        "axlearn",
        [["jax==0.10.2", "chex", "numpy"], ["--no-deps", "axlearn==0.0.1.post20240213000026"]],
    ),
    "tensorflow_asr": (
        "tensorflow_asr",
        [["tensorflow>=2.21,<2.22", "numpy"], ["--no-deps", "TensorFlowASR==2.1.0"]],
    ),
}
# By kind: sizes (B, T, U, V), and D where there is a hidden layer.
CASES = [
    ("logits", (8, 150, 20, 64)),
    ("logits", (4, 400, 60, 256)),
    ("logits", (16, 100, 40, 1024)),
    ("additive", (8, 150, 20, 64)),
    ("additive", (4, 400, 60, 256)),
    ("additive", (16, 100, 40, 1024)),
    ("additive", (8, 400, 100, 4096)),
    ("fused", (4, 400, 60, 256, 256)),
    ("fused", (16, 100, 40, 1024, 512)),
    ("fused", (8, 400, 100, 4096, 512)),
    ("fused_trained", (4, 400, 60, 256, 256)),
    ("fused_trained", (16, 100, 40, 1024, 512)),
    ("fused_trained", (8, 400, 100, 4096, 512)),
    ("accuracy", (1, 1200, 200, 8)),
]
QUICK = [
    ("logits", (2, 20, 5, 16)),
    ("additive", (2, 20, 5, 16)),
    ("fused", (2, 20, 5, 16, 24)),
    ("fused_trained", (2, 20, 5, 16, 24)),
    ("accuracy", (1, 60, 20, 8)),
]
# By kind of case, what the sides know it by where that is another.
OF_SIDES = {"accuracy": "logits", "fused_trained": "fused"}
# How far a trained joint is from a random one: by this much, the labels of the alignment have a
# probability of about one half each.
_SURENESS = 1.5


def main():
    """Compares all sides in all cases, prints a table and, last, a line of JSON."""
    options = parser(__doc__, SIDES, sorted({kind for kind, _ in CASES}))
    options.add_argument("--rounds", type=int, default=15, help="how often a side is timed")
    options = options.parse_args()
    found = pythons(SIDES, options.sides)
    limits = _limits(options)
    rows = []
    for kind, sizes in QUICK if options.quick else CASES:
        if kind not in options.cases:
            continue
        print(f"\n{kind} {_written(sizes)}")
        sides = [_side(name, python, options) for name, python in found.items()]
        measured = _compare(sides, kind, sizes, 3 if options.quick else options.rounds)
        for side in sides:
            side.close()
        rows += _rows(kind, sizes, measured)
        if "ours" in measured.get("seconds", {}):
            _print_limit(kind, sizes, limits, measured["seconds"]["ours"])
    print(json.dumps({"rows": rows}))


def _side(name, python, options):
    command = ["-m", "benchmarks.transducer_loss_sides", name]
    return Side(name, python, command, options.threads, options.huge_pages)


def _limits(options):
    """Returns the bytes that this machine moves in a second, and the operations of products."""
    width = 512 if options.quick else 8192
    x = np.ones((width, width), np.float32)
    side = _side("ours", Path(sys.executable), options)
    limits = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "inputs.npz")
        for kind, array in (("copy", x), ("product", x[: width // 2, : width // 2])):
            np.savez(path, x=array)
            side.ask("load", kind=kind, path=path, tiny=path)
            work = 2 * array.nbytes if kind == "copy" else 2 * len(array) ** 3
            limits[kind] = work / min(side.ask("time") for _ in range(5))
    side.close()
    print(
        f"{limits['copy'] / 1e9:.1f} GB/s moved, {limits['product'] / 1e9:.0f} GFLOP/s multiplied"
    )
    return limits


def _print_limit(kind, sizes, limits, seconds):
    """Prints how much of the time no program could save that does this work on this machine."""
    batch, frames, labels, symbols, *depth = sizes
    nodes = batch * frames * (labels + 1)
    limit = "copy" if kind == "logits" else "product"
    if kind == "logits":
        # Scores are read once to be normalised and once for the gradient, which is written.
        work = 3 * 4 * nodes * symbols
    elif kind == "additive":
        work = 3 * 2 * nodes * symbols
    else:
        share = _share_of_nodes(_inputs(kind, sizes))
        print(f"  {100 * share:.3g} % of the nodes have a gradient that float32 can tell from 0")
        # Scores, and of these nodes once more, and the gradients by hidden layer and kernel.
        work = (1 + 3 * share) * 2 * nodes * symbols * sum(depth)
    least = work / limits[limit]
    print(f"  of ours, {least:.3g} s or {100 * least / seconds:.0f} % are bound by {limit}")


def _written(sizes):
    return f"({','.join(map(str, sizes))})"


def _compare(sides, kind, sizes, rounds):
    """Returns what is measured, by measure and side."""
    of_sides = OF_SIDES.get(kind, kind)
    arrays = _inputs(kind, sizes)
    with tempfile.TemporaryDirectory() as folder:
        path, tiny, found = (
            str(Path(folder) / f"{name}.npz") for name in ("inputs", "tiny", "results")
        )
        np.savez(path, **arrays)
        np.savez(tiny, **_inputs(kind, (2, 3, 2, 5, 4)[: len(sizes)]))

        def results_of(side):
            side.ask("load", kind=of_sides, path=path, tiny=tiny)
            side.ask("results", path=found)
            with np.load(found) as results:
                return dict(results)

        results = ask_all(sides, results_of)
        if kind == "accuracy":
            return _errors(results, arrays)
        _check_agreement(results)
        return time_in_turns(results, rounds)


def _inputs(kind, sizes):
    """Returns the arrays of a case by name, and labels and lengths, all examples full."""
    random = np.random.default_rng(0)
    batch, frames, labels, symbols, *depth = sizes
    shapes = {
        "logits": {"logits": (batch, frames, labels + 1, symbols)},
        "additive": {"f": (batch, frames, symbols), "g": (batch, labels + 1, symbols)},
        "fused": {
            "encoding": (batch, frames, *depth),
            "prediction": (batch, labels + 1, *depth),
            "kernel": (*depth, symbols),
            "bias": (symbols,),
        },
    }[OF_SIDES.get(kind, kind)]
    arrays = {name: random.standard_normal(x, dtype=np.float32) for name, x in shapes.items()}
    arrays["labels"] = random.integers(1, symbols, (batch, labels), dtype=np.int32)
    if depth:
        arrays["kernel"] /= np.float32(depth[0] ** 0.5)
    if kind == "fused_trained":
        _favour_alignments(arrays, random)
    return {
        **arrays,
        "frames": np.full(batch, frames, np.int32),
        "lengths": np.full(batch, labels, np.int32),
    }


def _favour_alignments(arrays, random):
    """Changes encodings and predictions as if trained, each example towards a random alignment.

    By the kernel's columns, encodings are moved towards the labels that the alignment emits at
    their frame and half as far towards the blank, predictions away from the label before them.
    """
    kernel = arrays["kernel"]
    towards = np.float32(_SURENESS * len(kernel) ** 0.5) * kernel.T  # [V, D]
    arrays["encoding"] += towards[0] / 2
    frames = arrays["encoding"].shape[1]
    for encoding, prediction, labels in zip(
        arrays["encoding"], arrays["prediction"], arrays["labels"], strict=True
    ):
        emitted_at = np.sort(random.integers(0, frames, len(labels)))
        np.add.at(encoding, emitted_at, towards[labels])
        prediction[1:] -= towards[labels]


def _share_of_nodes(arrays):
    """Returns the share of nodes that the gradient of a fused loss needs in float32."""
    frames, width = arrays["encoding"].shape[1], arrays["prediction"].shape[1]
    needed = []
    for encoding, prediction, labels in zip(
        arrays["encoding"], arrays["prediction"], arrays["labels"], strict=True
    ):
        arcs = np.empty((2, frames, width))
        for t, frame in enumerate(encoding):
            scores = np.tanh(frame + prediction) @ arrays["kernel"] + arrays["bias"]
            tops = scores.max(axis=1)
            norm = tops + np.log(np.exp(scores - tops[:, None]).sum(axis=1))
            arcs[0, t] = scores[:, 0] - norm
            arcs[1, t, :-1] = scores[np.arange(width - 1), labels] - norm[:-1]
        _, by_blank, by_label = _occupancies(*arcs)
        occupied = by_blank + by_label
        needed.append(np.mean(_but_ends(occupied) | _but_ends(occupied.T).T))
    return np.mean(needed)


def _but_ends(rows):
    """Returns False for those at either end that add to half of the rounding of 1 at most."""
    backward = rows[:, ::-1].cumsum(axis=1)[:, ::-1]
    return np.minimum(rows.cumsum(axis=1), backward) > 2.0**-25


def _check_agreement(results):
    """Raises where two sides did not compute the same thing."""
    if not results:
        return
    (first, expected), *others = results.items()
    for side, found in others:
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        for name in expected:
            if name == "losses":
                continue
            tolerance = 5e-3 * np.abs(expected[name]).max()
            np.testing.assert_allclose(
                found[name],
                expected[name],
                rtol=0,
                atol=tolerance,
                err_msg=f"{name}: {side.name} beside {first.name}",
            )


def _errors(results, arrays):
    """Returns by measure and side how far losses and gradients are from those in float64."""
    loss, gradient = _exact(arrays["logits"][0].astype(np.float64), arrays["labels"][0])
    return {
        "loss error": {
            side.name: float(abs(found["losses"][0] - loss) / loss)
            for side, found in results.items()
        },
        "gradient error": {
            side.name: float(np.abs(found["gradient_0"][0] - gradient).max())
            for side, found in results.items()
        },
    }


def _exact(logits, labels):
    """Returns loss and gradient of one full example, by α and β in float64."""
    scores = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    width = scores.shape[1]
    ahead = np.empty(scores.shape[:2])
    ahead[:, :-1] = np.take_along_axis(scores[:, :-1], labels[None, :, None], 2)[..., 0]
    loss, by_blank, by_label = _occupancies(scores[:, :, 0], ahead)
    gradient = np.exp(scores) * (by_blank + by_label)[..., None]
    gradient[:, :, 0] -= by_blank
    gradient[:, np.arange(width - 1), labels] -= by_label[:, :-1]
    return loss, gradient


def _occupancies(blanks, ahead):
    """Returns the loss and the occupancies of both arcs, each `[T, U + 1]`, of their scores."""
    frames, width = blanks.shape
    blanks, ahead = blanks.copy(), ahead.copy()
    blanks[-1, :-1] = ahead[:, -1] = -np.inf
    alpha = np.full((frames + 1, width), -np.inf)
    beta = np.full((frames + 1, width), -np.inf)
    alpha[0, 0] = beta[-1, -1] = 0.0
    for t in range(frames + 1):
        if t:
            alpha[t] = alpha[t - 1] + blanks[t - 1]
        for u in range(1, width if t < frames else 0):
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t, u - 1] + ahead[t, u - 1])
    for t in reversed(range(frames)):
        beta[t] = beta[t + 1] + blanks[t]
        for u in reversed(range(width - 1)):
            beta[t, u] = np.logaddexp(beta[t, u], beta[t, u + 1] + ahead[t, u])
    by_blank = np.exp(alpha[:-1] + blanks + beta[1:] - beta[0, 0])
    by_label = np.zeros_like(by_blank)
    by_label[:, :-1] = np.exp(alpha[:-1, :-1] + ahead[:, :-1] + beta[:-1, 1:] - beta[0, 0])
    return -beta[0, 0], by_blank, by_label


def _rows(kind, sizes, measured):
    """Returns ours beside each peer, for each measure, and prints it."""
    rows = []
    shown_kind = "" if kind in ("logits", "accuracy") else f"{kind} "
    for measure, of_sides in measured.items():
        ours = of_sides.get("ours")
        for name, value in of_sides.items():
            ratio = value / ours if ours else float("nan")
            print(f"  {measure:15} {name:15} {value:12.4g} {ratio:10.2f}")
            if ours and not name.startswith("ours"):
                case = f"{name} {shown_kind}{_written(sizes)}"
                case += "" if measure == "seconds" else f" {measure}"
                rows.append({"case": case, "ours": ours, "peer": value, "ratio": ratio})
    return rows


if __name__ == "__main__":
    main()

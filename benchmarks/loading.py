"""What a version that is loaded costs the version that is running: latencies with and without.

    python -m benchmarks.loading

A server in a process of its own answers a small model over gRPC, asked at a steady rate from
here, whether it answers or not (an open loop). In every other window the folder of another model
gets one new version after the other, each with 31 MB of weights, some 300 operations and a loop,
and each warmed up by its signature.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from serving.client import Client

SIZE, LAYERS = 512, 30


class Layers(tf.Module):
    """Dense layers, then a loop of the last of them."""

    def __init__(self, size: int, layers: int, steps: int):
        generator = tf.random.Generator.from_seed(0)
        shapes = [(size, size)] * layers
        self.weights = [tf.Variable(generator.normal(s, stddev=size**-0.5)) for s in shapes]
        self.biases = [tf.Variable(tf.zeros([size])) for _ in range(layers)]
        self.steps = steps
        spec = tf.TensorSpec([None, size], tf.float32, name="x")
        self.signature = tf.function(self._call, input_signature=[spec])

    def _call(self, x):
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = tf.nn.gelu(x @ weight + bias)
        x = tf.while_loop(
            lambda step, _: step < self.steps,
            lambda step, x: (step + 1, tf.tanh(x @ self.weights[-1])),
            (0, x),
        )[1]
        return {"y": x}


def main() -> None:
    """Prints a line for each window, then both percentiles, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each window")
    parser.add_argument("--windows", type=int, default=4, help="of each kind")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "models")
        for name, module in (("small", Layers(64, 2, 1)), ("large", Layers(SIZE, LAYERS, 8))):
            path = str(Path(folder, name))
            tf.saved_model.save(module, path, signatures=module.signature)
            (root / name).mkdir(parents=True)
            (root / name / "1").symlink_to(path)
        with subprocess.Popen(_command(root), stdout=subprocess.PIPE, text=True) as server:
            try:
                _wait_until_ready(server)
                found = _measure(root, Path(folder, "large"), options)
            finally:
                server.terminate()
    _report(found, options)


def _command(root: Path) -> list[str]:
    flags = ["--port=18500", "--file_system_poll_wait_seconds=1", "--enable_signature_warmup"]
    return [sys.executable, "-m", "serving.model_server", f"--model_root={root}", *flags]


def _wait_until_ready(server: subprocess.Popen) -> None:
    for line in server.stdout:
        if line.startswith("Running"):
            return
    raise RuntimeError("The server did not start")


def _measure(root: Path, version: Path, options) -> dict[bool, list[float]]:
    found: dict[bool, list[float]] = {False: [], True: []}
    numbers = itertools.count(2)
    with Client("localhost:18500") as client:
        _ask(client, options.rate, 2.0)
        for loading in [False, True] * options.windows:
            done = threading.Event()
            changes = threading.Thread(
                target=_change, args=[root / "large", version, numbers, done]
            )
            if loading:
                changes.start()
            latencies = _ask(client, options.rate, options.seconds)
            done.set()
            if loading:
                changes.join()
                time.sleep(2)  # What is being loaded is not of the next window.
            found[loading] += latencies
            what = "loading" if loading else "quiet"
            print(f"{what:8} {_percentiles(latencies)}", flush=True)
    return found


def _change(model: Path, version: Path, numbers, done: threading.Event) -> None:
    while not done.wait(1.0):
        for old in model.iterdir():
            old.unlink()
        (model / str(next(numbers))).symlink_to(version)


def _ask(client: Client, rate: float, seconds: float) -> list[float]:
    """Returns the latencies of requests sent at a steady rate, in milliseconds, from when due."""
    x = np.ones([1, 64], np.float32)

    def one(due: float) -> float:
        client.predict("small", {"x": x})
        return (time.perf_counter() - due) * 1e3

    with ThreadPoolExecutor(8) as pool:
        futures, start = [], time.perf_counter()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            time.sleep(max(due - time.perf_counter(), 0))
            futures.append(pool.submit(one, due))
        return [future.result() for future in futures]


def _percentiles(latencies: list[float]) -> str:
    values = np.percentile(latencies, [50, 99, 100])
    return "p50 {:.2f} ms, p99 {:.2f} ms, most {:.2f} ms".format(*values)


def _report(found: dict[bool, list[float]], options) -> None:
    quiet, loading = (float(np.percentile(found[each], 99)) for each in (False, True))
    print(f"p99: quiet {quiet:.2f} ms, loading {loading:.2f} ms, {loading / quiet - 1:+.0%}")
    case = f"p99 at {options.rate:g}/s while versions are loaded"
    row = {"case": case, "ours": loading, "peer": quiet, "ratio": quiet / loading}
    print(json.dumps({"rows": [row]}))


if __name__ == "__main__":
    main()

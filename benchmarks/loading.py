"""What a version that is loaded costs the version that is running: latencies with and without.

    python -m benchmarks.loading

A server in a process of its own answers a small model over gRPC, asked by another, at random times
and half as often as it could answer. In every other window the folder of another model gets new
versions, each with 31 MB of weights, 860 operations and a loop, and each warmed up by its
signature. A window in which further processes worked, which Linux alone tells, is measured again.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from benchmarks.side import ROOT
from serving.client import Client

SIZE, LAYERS = 512, 30
OTHERS = 0.1  # Seconds that further processes may work in a second.
PORT = 18500


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
    """Prints a line for each window, then the medians of both kinds, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each window")
    parser.add_argument("--windows", type=int, default=5, help="of each kind")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between versions")
    parser.add_argument("--rate", type=float, help="requests a second; half of the most by default")
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
                found = _measure(root, Path(folder), server.pid, options)
            finally:
                server.terminate()
    _report(found, options.rate)


def _command(root: Path) -> list[str]:
    flags = ["--file_system_poll_wait_seconds=1", "--enable_signature_warmup"]
    command = [sys.executable, "-m", "serving.model_server", f"--model_root={root}"]
    return [*command, f"--port={PORT}", *flags]


def _wait_until_ready(server: subprocess.Popen) -> None:
    for line in server.stdout:
        if line.startswith("Running"):
            return
    raise RuntimeError("The server did not start")


def _measure(root: Path, folder: Path, server: int, options) -> dict[bool, list[dict]]:
    """Returns what callers saw in each window; sets the rate where none was given."""
    found: dict[bool, list[dict]] = {False: [], True: []}
    numbers = itertools.count(2)
    load = _load(folder)
    if not options.rate:
        most = _ask({**load, "in_flight": 16, "seconds": options.seconds})["rate"]
        options.rate = round(most / 2, -2)
        print(f"{most:.0f} requests/s at most, {options.rate:.0f} from here on", flush=True)
    load.update(in_flight=8, rate=options.rate, seconds=options.seconds)
    for loading in [False, True] * 2 * options.windows:  # Twice as many as are to be counted.
        if len(found[loading]) == options.windows:
            continue
        before, change = _others(server), (root / "large", folder / "large", numbers)
        seen = _ask_beside(change, options.every, load) if loading else _ask(load)
        others = (_others(server) - before) / options.seconds
        if others < OTHERS:
            found[loading].append(seen)
        print(
            f"{'loading' if loading else 'quiet':8} p50 {seen['p50'] * 1e3:.2f} ms, "
            f"p99 {seen['p99'] * 1e3:.2f} ms; others worked {others:.0%}"
            f"{'' if others < OTHERS else ': not counted'}",
            flush=True,
        )
    if not all(found.values()):
        raise RuntimeError("Further processes worked in all windows")
    _check_loaded(next(numbers) - 1)
    return found


def _load(folder: Path) -> dict:
    request = PredictRequest()
    request.model_spec.name = "small"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones([1, 64], np.float32)))
    (folder / "body").write_bytes(request.SerializeToString())
    path = "/tensorflow.serving.PredictionService/Predict"
    return {"protocol": "grpc", "port": PORT, "path": path, "body": str(folder / "body")}


def _ask(load: dict) -> dict:
    command = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(load), stdout=subprocess.PIPE, text=True, check=True
    )
    seen = json.loads(done.stdout)
    if "error" in seen:
        raise RuntimeError(seen["error"])
    return seen


def _ask_beside(change: tuple, every: float, load: dict) -> dict:
    """Returns what callers see while versions are loaded."""
    done = threading.Event()
    changing = threading.Thread(target=_change, args=[*change, every, done])
    changing.start()
    try:
        return _ask(load)
    finally:
        done.set()
        changing.join()
        time.sleep(2)  # What is being loaded is not of the next window.


def _others(server: int) -> float:
    """Returns for how many seconds processes other than these have worked so far; Linux only."""
    if sys.platform != "linux":
        return 0.0
    with open("/proc/stat") as file:
        user, nice, system, _, _, *interrupts = map(int, file.readline().split()[1:9])
    with open(f"/proc/{server}/stat") as file:
        its = file.read().rpartition(")")[2].split()  # Its name may hold anything.
    ticks = user + nice + system + sum(interrupts) - int(its[11]) - int(its[12])
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])  # With children that have ended.


def _change(model: Path, version: Path, numbers, every: float, done: threading.Event) -> None:
    """Puts versions in place, and takes away those before the last, which may still be loading."""
    while not done.is_set():
        number = next(numbers)
        for old in model.iterdir():
            if int(old.name) < number - 1:
                old.unlink()
        (model / str(number)).symlink_to(version)
        done.wait(every)


def _check_loaded(newest: int) -> None:
    """Raises RuntimeError unless the last version put in place answers, and none has failed."""
    with Client(f"localhost:{PORT}") as client:
        found = client.status("large")
    if failed := {each["version"]: each["error"] for each in found if each["error"]}:
        raise RuntimeError(f"Versions could not be loaded: {failed}")
    states = {each["version"]: each["state"] for each in found}
    if states.get(newest) != "AVAILABLE":
        raise RuntimeError(f"Version {newest} is not loaded: {states}")


def _report(found: dict[bool, list[dict]], rate: float) -> None:
    rows = []
    for measure in ("p50", "p99"):
        quiet, loading = (
            1e3 * statistics.median(each[measure] for each in found[kind]) for kind in (False, True)
        )
        print(
            f"{measure}: quiet {quiet:.2f} ms, loading {loading:.2f} ms, {loading / quiet - 1:+.0%}"
        )
        case = f"{measure} at {rate:g}/s while versions are loaded"
        rows.append({"case": case, "ours": loading, "peer": quiet, "ratio": quiet / loading})
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()

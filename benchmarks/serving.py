"""Our model server beside every peer that can be had, over sockets.

    python -m benchmarks.serving [--quick] [--sides NAME ...] [--models NAME ...]

Peers come from PyPI into environments of their own in the user's cache folder, some gigabytes in
all, at the first run. Each serves the same SavedModel, batching by its own means, and is first
asked what ours is asked: their answers must agree. Then a process of its own, `benchmarks.load`,
asks for one row at a time, with 1, 16 and 64 requests in flight, and once at random times at a
fixed rate. MLServer and Triton are asked over gRPC, the others over HTTP, which is all they have.
Beside the peers stand the limits: a servicer that does nothing, and the session without a server.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import numpy as np

from benchmarks.side import ROOT, Unavailable, cache, environment

_TENSORFLOW = "tensorflow-cpu>=2.21,<2.22"
# By side: how it is asked, and its environment, or None for ours.
SIDES = {
    "ours": ("grpc", None),
    "unbatched": ("grpc", None),
    "empty_grpc": ("grpc", None),
    "empty_grpc_aio": ("grpc", None),
    "litserve": ("json", ["litserve==0.2.19", _TENSORFLOW]),
    "bentoml": ("json", ["bentoml==1.4.39", _TENSORFLOW]),
    "ray_serve": ("json", ["ray[serve]==2.60.0", _TENSORFLOW]),
    "mlserver": ("v2", ["mlserver==1.7.1", _TENSORFLOW]),
    "pytriton": ("v2", ["nvidia-pytriton==0.7.0", _TENSORFLOW]),
}
_LIMITS = ("unbatched", "empty_grpc", "empty_grpc_aio")  # No answers of a peer's own.
_MODELS = {  # Input, output and requests a second that come at random.
    "mlp": ("x", "y", 500),
    "cnn": ("x", "y", 500),
    "g2p": ("text", "pronunciation", 20),
}
_SHAPES = {"mlp": (64,), "cnn": (28, 28, 1), "g2p": ()}
_IN_FLIGHT = (1, 16, 64)
_PATIENCE = 90.0  # Seconds for a side to begin to answer.


def main():
    """Compares all sides for all models, prints a table and, last, a line of JSON."""
    options = _options()
    pythons = _pythons(options.sides)
    rows = [] if options.quick else _codec()
    with tempfile.TemporaryDirectory() as folder:
        _run([sys.executable, "-m", "benchmarks.serving_models", folder])
        for model in options.models:
            rows += _compare(Path(folder) / model, model, pythons, options)
    print(json.dumps({"rows": rows}))


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half seconds: whether it works")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--models", nargs="+", choices=_MODELS, default=list(_MODELS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=2, help="of which the median is shown")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 0.5, 1
    if "ours" not in options.sides:
        options.sides.insert(0, "ours")
    return options


def _pythons(names):
    """Returns the Python of each side that can be had, and says which cannot."""
    pythons = {}
    for name in names:
        installs = SIDES[name][1]
        try:
            pythons[name] = environment(name, [installs]) if installs else sys.executable
        except Unavailable as why:
            print(f"{name} could not be had: {why}")
    return pythons


def _compare(folder, model, pythons, options):
    """Returns the rows of one model."""
    request = _request(model)
    expected = _describe(folder, model, request)
    seen = {}
    for _ in range(options.rounds):
        for name, python in pythons.items():
            try:
                with _Server(name, python, folder / "1") as server:
                    _measure(server, model, request, expected, options.seconds, seen)
            except Unavailable as why:
                print(f"{name} {model}: {why}")
    limit = _in_process(folder, model, request)
    print(f"\n{model}: {limit:.0f} calls a second of the session by one thread, one row each")
    return _rows(model, seen)


def _request(model):
    if model == "g2p":
        return ["transduce"]
    size = (1, *_SHAPES[model])
    return np.random.default_rng(1).standard_normal(size).astype(np.float32).round(3).tolist()


def _describe(folder, model, request):
    """Writes what sides must know of a model; returns the session's answer to the request."""
    from tensorflow_serving.apis.model_pb2 import ModelSpec

    from serving.model_server import tensors

    asked, answered, _ = _MODELS[model]
    described = {
        "strings": model == "g2p",
        "shape": _SHAPES[model],
        "input": asked,
        "output": answered,
    }
    (folder / "described.json").write_text(json.dumps(described), encoding="utf-8")
    answer = _servable(folder)(request)
    response = tensors.response(ModelSpec(name="model"), {answered: answer}, False)
    (folder / "response").write_bytes(response)
    return answer


def _servable(folder):
    """Returns the model as ours runs it, without a server."""
    from serving.model_server import quiet

    quiet.import_tensorflow()
    from serving.model_server.batching import Batching
    from serving.model_server.flags import Options
    from serving.model_server.loader import Loader
    from serving.model_server.metrics import Metrics

    described = json.loads((folder / "described.json").read_text(encoding="utf-8"))
    options, metrics = Options(), Metrics()
    servable = Loader(options, metrics, Batching(options, metrics))._session(str(folder / "1"))
    signature = servable.signatures["serving_default"]
    fetches = [signature.outputs[described["output"]].name]
    feed = signature.inputs[described["input"]].name
    kind = object if described["strings"] else np.float32

    def call(rows):
        values = [row.encode() for row in rows] if described["strings"] else rows
        run = servable.run_here if servable.bounded else servable.run
        return run({feed: np.array(values, kind)}, fetches)[0]

    return call


def _in_process(folder, model, request):
    call = _servable(folder)
    call(request)
    times = timeit.repeat(lambda: call(request), number=20 if model == "g2p" else 500, repeat=3)
    return (20 if model == "g2p" else 500) / min(times)


class _Server:
    """A side that serves, in a process group of its own."""

    def __init__(self, name, python, folder):
        self.name = name
        self.protocol = SIDES[name][0]
        self.port = _free_ports()
        self._log = cache() / f"serving_{name}.log"
        cache().mkdir(parents=True, exist_ok=True)
        settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        settings["PATH"] = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.serving_sides", name, folder, str(self.port)],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number):
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self._process.pid, number)

    def check(self):
        """Raises Unavailable where the side has ended."""
        if self._process.poll() is not None:
            raise Unavailable(f"ended with {self._process.returncode}, see {self._log}")


def _free_ports():
    """Returns a port that nothing listens at, nor at the two after it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 65000 and all(_is_free(port + n) for n in (1, 2)):
            return port


def _is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _measure(server, model, request, expected, seconds, seen):
    load = _load(server, model, request)
    _wait(server, load)
    if server.name not in _LIMITS:
        _check(load, server.name, expected)
    for in_flight in _IN_FLIGHT:
        _note(seen, server.name, in_flight, _ask({**load, "in_flight": in_flight}, seconds))
    rate = _MODELS[model][2]
    open_loop = {**load, "in_flight": 64, "rate": rate}
    _note(seen, server.name, f"{rate}/s", _ask(open_loop, seconds))


def _load(server, model, request):
    """Returns how a side is asked."""
    asked = _MODELS[model][0]
    body = {"grpc": _predict, "v2": _infer, "json": _json}[server.protocol](asked, request)
    path = cache() / f"serving_{server.name}.body"
    path.write_bytes(body)
    paths = {
        "grpc": "/tensorflow.serving.PredictionService/Predict",
        "v2": "/inference.GRPCInferenceService/ModelInfer",
        "json": "/",
        "bentoml": "/predict",
        "litserve": "/predict",
    }
    http = server.protocol == "json"
    return {
        "protocol": "http" if http else "grpc",
        "port": server.port,
        "path": paths.get(server.name, paths[server.protocol]),
        "headers": {"Content-Type": "application/json"} if http else {},
        "body": str(path),
    }


def _predict(name, rows):
    import tensorflow as tf
    from tensorflow_serving.apis.predict_pb2 import PredictRequest

    request = PredictRequest()
    request.model_spec.name = "model"
    request.inputs[name].CopyFrom(tf.make_tensor_proto(rows))
    return request.SerializeToString()


def _json(_, rows):
    return json.dumps({"rows": rows}).encode()


def _infer(_, rows):
    """Returns a ModelInferRequest of the V2 protocol, as KServe's grpc_service.proto has it."""
    from serving.model_server import wire

    strings = isinstance(rows[0], str)
    if strings:
        shape, kind = [len(rows), 1], b"BYTES"
        raw = b"".join(struct.pack("<I", len(row.encode())) + row.encode() for row in rows)
    else:
        array = np.array(rows, np.float32)
        shape, kind, raw = array.shape, b"FP32", array.tobytes()
    sizes = wire.field(3, b"".join(map(wire.varint, shape)))
    tensor = wire.field(1, b"x") + wire.field(2, kind) + sizes
    return wire.field(1, b"model") + wire.field(5, tensor) + wire.field(7, raw)


def _wait(server, load):
    """Waits until a side answers."""
    begun = time.monotonic()
    while time.monotonic() - begun < _PATIENCE:
        server.check()
        seen = _generate({**load, "in_flight": 1, "seconds": 0.2})
        if "error" not in seen:
            return
        time.sleep(0.5)
    raise Unavailable(f"does not answer: {seen['error']}")


def _check(load, name, expected):
    """Raises Unavailable where a side does not answer what ours does."""
    seen = _generate({**load, "in_flight": 1, "seconds": 0.2, "show": True})
    answer = bytes.fromhex(seen["answer"])
    wanted = expected.ravel()
    if wanted.dtype == object:
        right = wanted[0] in answer
    elif load["protocol"] == "http":
        found = np.array(json.loads(answer)["rows" if name != "bentoml" else 0], np.float32)
        right = np.allclose(found.ravel(), wanted, atol=1e-5)
    else:
        right = any(
            np.allclose(np.frombuffer(answer[at : at + wanted.nbytes], "<f4"), wanted, atol=1e-5)
            for at in range(len(answer) - wanted.nbytes + 1)
        )
    if not right:
        raise Unavailable(f"does not answer what ours does: {answer[:200]!r}")


def _ask(load, seconds):
    seen = _generate({**load, "seconds": seconds})
    if "error" in seen:
        raise Unavailable(seen["error"])
    return seen


def _generate(load):
    return json.loads(_run([sys.executable, "-m", "benchmarks.load"], json.dumps(load)))


def _run(command, text=""):
    done = subprocess.run(command, cwd=ROOT, input=text, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed")
    return done.stdout


def _note(seen, name, level, measured):
    for measure in ("rate", "p99"):
        seen.setdefault((level, measure), {}).setdefault(name, []).append(measured[measure])


def _rows(model, seen):
    """Returns ours beside each peer, for each measure, and prints it."""
    rows = []
    for (level, measure), of_sides in seen.items():
        if measure == "rate" and str(level).endswith("/s"):
            continue  # The rate was given.
        medians = {name: statistics.median(values) for name, values in of_sides.items()}
        ours = medians.get("ours", float("nan"))
        for name, value in medians.items():
            ratio = ours / value if measure == "rate" else value / ours
            shown = f"{value:9.0f} /s" if measure == "rate" else f"{1000 * value:9.2f} ms"
            print(f"  {level!s:>6} {measure:4} {name:15} {shown} {ratio:8.2f}")
            if name != "ours":
                many = level if str(level).endswith("/s") else f"{level} in flight"
                case = f"{name} {model} {many} {measure}"
                rows.append({"case": case, "ours": ours, "peer": value, "ratio": ratio})
    return rows


def _codec():
    """Returns a row of reading and writing a tensor, beside TensorFlow's own functions."""
    import tensorflow as tf
    from tensorflow.core.framework.tensor_pb2 import TensorProto

    from serving.model_server import tensors

    array = np.ones((64, 1000), np.float32)
    proto = TensorProto.FromString(tensors.encode(array))
    sides = {
        "ours": lambda: (tensors.decode(proto), tensors.encode(array)),
        "peer": lambda: (tf.make_ndarray(proto), tf.make_tensor_proto(array).SerializeToString()),
    }
    times = {
        name: min(timeit.repeat(side, number=50, repeat=5)) / 50 for name, side in sides.items()
    }
    shown = ", ".join(f"{name} {1000 * seconds:.3f} ms" for name, seconds in times.items())
    print(f"codec (64, 1000): {shown}")
    return [{"case": "codec (64, 1000)", **times, "ratio": times["peer"] / times["ours"]}]


if __name__ == "__main__":
    main()

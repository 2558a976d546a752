"""Requests without end, while versions come, go, are broken and are replaced."""

import contextlib
import http.client
import itertools
import json
import random
import shutil
import threading
import time
from typing import ClassVar

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.model_server.server import Server

CALLERS = 8
FULL_SECONDS = 600.0


class Changes:
    """Changes the folders of models, one change after the other, by chance but reproducibly.

    `a` and `b` always have a version to answer with; `c` comes and goes.
    """

    CODES: ClassVar = {"a": 1, "b": 2, "c": 3}

    def __init__(self, root, shelf, seed=0):
        self._root, self._shelf = root, shelf
        self._random = random.Random(seed)
        self._next = dict.fromkeys(self.CODES, 2)
        self.made = []
        for name in self.CODES:
            shelf.put(self.CODES[name], 1, self._place(name, 1))

    def make_one(self):
        name = self._random.choice(["a", "b"])
        change = self._random.choice(
            [self.add, self.add_slowly, self.add_broken, self.remove_old, self.spoil, self.toggle]
        )
        change(name)
        self.made.append(change.__name__)

    def add(self, name):
        version = self._number(name)
        self._shelf.put(self.CODES[name], version, self._place(name, version))

    def add_slowly(self, name):
        version = self._number(name)
        self._shelf.put_slowly(self.CODES[name], version, self._place(name, version))

    def add_broken(self, name):
        """Adds a version that cannot be loaded, and later puts a good one in its place."""
        version = self._number(name)
        place = self._place(name, version)
        self._shelf.put(self.CODES[name], version, place)
        self._cut(place / "saved_model.pb")
        time.sleep(0.1)
        shutil.rmtree(place)
        self._shelf.put(self.CODES[name], version, place)

    def remove_old(self, name):
        for folder in self._versions(name)[:-1]:
            shutil.rmtree(folder)

    def spoil(self, name):
        """Breaks the files of versions that are older than the newest, loaded or not."""
        for folder in self._versions(name)[:-1]:
            for file in folder.rglob("saved_model.pb"):
                self._cut(file)

    def toggle(self, _):
        versions = self._versions("c")
        if versions:
            for folder in versions:
                shutil.rmtree(folder)
        else:
            self.add("c")

    def _number(self, name):
        self._next[name] += 1
        return self._next[name]

    def _place(self, name, version):
        (self._root / name).mkdir(exist_ok=True)
        return self._root / name / str(version)

    def _versions(self, name):
        folders = [path for path in (self._root / name).iterdir() if path.name.isdigit()]
        return sorted(folders, key=lambda path: int(path.name))

    @staticmethod
    def _cut(file):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 3])


class Caller(threading.Thread):
    """Asks all models in turn, each time with values of its own, and judges the answers."""

    def __init__(self, index, chosen, shelf, stopped):
        super().__init__(name=f"caller-{index}")
        self._index, self._chosen, self._shelf, self._stopped = index, chosen, shelf, stopped
        self.answered = self.absent = 0
        self.wrong = []

    def run(self):
        ask = self._over_grpc() if self._index % 2 else self._over_rest()
        next(ask)
        for number, name in zip(itertools.count(), itertools.cycle("aabbc")):
            if self._stopped.is_set():
                return
            x = [self._index * 10_000.0 + number % 10_000, float(number % 7)]
            self._judge(name, x, ask.send((name, x)))

    def _judge(self, name, x, outcome):
        if outcome in ("NOT_FOUND", 404) and name == "c":
            self.absent += 1
            return
        self.answered += 1
        if not isinstance(outcome, tuple):
            return self.wrong.append((name, x, outcome))
        version, y = outcome
        code = Changes.CODES[name]
        added = {self._shelf.added(code, version)} if version else self._any_of(code)
        if not any(y == [each / 2 + b for each in x] for b in added):
            self.wrong.append((name, x, outcome))

    def _any_of(self, code):
        return {self._shelf.added(code, kind) for kind in range(self._shelf.KINDS)}

    def _over_grpc(self):
        with grpc.insecure_channel(f"localhost:{self._chosen.port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            outcome = None
            while True:
                name, x = yield outcome
                request = predict_pb2.PredictRequest()
                request.model_spec.name = name
                request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array(x, np.float32)))
                try:
                    response = stub.Predict(request, timeout=60)
                    version = response.model_spec.version.value
                    outcome = version, list(response.outputs["y"].float_val)
                except grpc.RpcError as error:
                    outcome = error.code().name

    def _over_rest(self):
        port, outcome = self._chosen.rest_api_port, None
        with contextlib.closing(http.client.HTTPConnection("localhost", port, timeout=60)) as to:
            while True:
                name, x = yield outcome
                to.request("POST", f"/v1/models/{name}:predict", json.dumps({"inputs": x}))
                response = to.getresponse()
                answer = json.loads(response.read())
                outcome = (0, answer["outputs"]) if response.status == 200 else response.status


def run(root, shelf, options, free_port, seconds, pause):
    chosen_flags = {"enable_batching": True, "rest_api_port": free_port()}
    changes = Changes(root, shelf)
    chosen = options(model_root=str(root), **chosen_flags)
    stopped = threading.Event()
    with Server(chosen) as server:
        callers = [Caller(index, chosen, shelf, stopped) for index in range(CALLERS)]
        for caller in callers:
            caller.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            changes.make_one()
            time.sleep(pause)
        stopped.set()
        for caller in callers:
            caller.join(60)
        assert not any(caller.is_alive() for caller in callers)
        loads = server._metrics.total("/tensorflow/cc/saved_model/load_attempt_count")
    answered = sum(caller.answered for caller in callers)
    print(f"{answered} answers, {len(changes.made)} changes, {loads} loads in {seconds:g} s")
    assert [caller.wrong[:3] for caller in callers] == [[]] * CALLERS
    assert all(caller.answered for caller in callers)
    assert loads > 3


def test_changing_versions_lose_and_mix_up_nothing(tmp_path, shelf, options, free_port):
    run(tmp_path, shelf, options, free_port, seconds=3.0, pause=0.05)


@pytest.mark.slow
def test_changing_versions_lose_and_mix_up_nothing_for_long(
    tmp_path, shelf, options, free_port, full
):
    run(tmp_path, shelf, options, free_port, seconds=full(FULL_SECONDS), pause=1.0)

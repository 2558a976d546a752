"""The sides of `benchmarks.serving`: `python -m benchmarks.serving_sides NAME FOLDER PORT`.

Each serves the SavedModel in FOLDER at PORT until it is killed, batching by its library's own
means, with the settings of `_BATCH` where it can, as its documentation shows it. Ours is the model
server as anyone starts it. Every other side runs in an environment with its library, TensorFlow and
nothing of ours.
"""

import json
import os
import runpy
import sys
import tempfile
import textwrap
from pathlib import Path

_BATCH, _SECONDS = 64, 0.001
_THREADS = len(os.sched_getaffinity(0))


def ours(folder, port, *, batching=True):
    """Our model server."""
    from serving.model_server import main

    parameters = f"max_batch_size {{ value: {_BATCH} }} num_batch_threads {{ value: {_THREADS} }}"
    with tempfile.NamedTemporaryFile("w", suffix=".config") as file:
        file.write(parameters)
        file.flush()
        flags = [f"--port={port}", "--model_name=model", f"--model_base_path={folder.parent}"]
        if batching:
            flags += ["--enable_batching", f"--batching_parameters_file={file.name}"]
        sys.exit(main(flags))


def unbatched(folder, port):
    """Our model server with its flags' defaults."""
    ours(folder, port, batching=False)


def empty_grpc(folder, port):
    """A gRPC servicer of threads that parses, and always gives the same answer."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(4 * _THREADS))
    response = _fixed_response(folder)
    server.add_generic_rpc_handlers((_empty_service(lambda request, context: response),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def empty_grpc_aio(folder, port):
    """The same in an event loop."""
    import asyncio

    import grpc

    response = _fixed_response(folder)

    async def answer(request, context):
        return response

    async def run():
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_empty_service(answer),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


def _empty_service(answer):
    import grpc
    from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

    handler = grpc.unary_unary_rpc_method_handler(
        answer, PredictRequest.FromString, PredictResponse.SerializeToString
    )
    methods = {"Predict": handler}
    return grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", methods)


def _fixed_response(folder):
    from tensorflow_serving.apis.predict_pb2 import PredictResponse

    return PredictResponse.FromString((folder.parent / "response").read_bytes())


def litserve(folder, port):
    """LitServe; its processes must be able to import what they run."""
    api = textwrap.dedent("""
        import litserve
        from pathlib import Path
        from benchmarks.serving_sides import Model

        class Api(litserve.LitAPI):
            folder = ""

            def setup(self, device):
                self.model = Model(Path(self.folder))
                self.model.load()

            def decode_request(self, request):
                return request["rows"][0]

            def batch(self, inputs):
                return inputs

            def predict(self, inputs):
                return self.model(inputs)

            def unbatch(self, output):
                return output

            def encode_response(self, output):
                return {"rows": [output]}
    """)
    place = tempfile.mkdtemp()
    Path(place, "lit_api.py").write_text(api, encoding="utf-8")
    sys.path[:0] = [place, os.getcwd()]
    import lit_api
    from litserve import LitServer

    served = lit_api.Api(max_batch_size=_BATCH, batch_timeout=_SECONDS)
    served.folder = str(folder)
    server = LitServer(served, accelerator="cpu", workers_per_device=1)
    server.run(port=port, num_api_servers=1, generate_client_file=False, log_level="warning")


def bentoml(folder, port):
    """BentoML; its service must be a file of its own."""
    service = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {os.getcwd()!r})
        import bentoml
        from pathlib import Path
        from benchmarks.serving_sides import Model

        @bentoml.service(workers=1, traffic={{"timeout": 60}})
        class Service:
            def __init__(self):
                self.model = Model(Path({str(folder)!r}))
                self.model.load()

            @bentoml.api(batchable=True, max_batch_size={_BATCH}, max_latency_ms=60000)
            def predict(self, rows: list) -> list:
                return self.model(rows)
    """)
    with tempfile.TemporaryDirectory() as place:
        Path(place, "service.py").write_text(service, encoding="utf-8")
        os.chdir(place)
        sys.argv = ["bentoml", "serve", "service:Service", "--port", str(port)]
        os.environ["BENTOML_DO_NOT_TRACK"] = "True"
        runpy.run_module("bentoml", run_name="__main__")


def mlserver(folder, port):
    """MLServer, over gRPC."""
    settings = {
        "debug": False,
        "http_port": port + 1,
        "grpc_port": port,
        "metrics_port": port + 2,
        "parallel_workers": 0,
        "host": "127.0.0.1",
    }
    model = {
        "name": "model",
        "implementation": "runtime.Runtime",
        "max_batch_size": _BATCH,
        "max_batch_time": _SECONDS,
        "parameters": {"uri": str(folder)},
    }
    runtime = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {os.getcwd()!r})
        from pathlib import Path
        import mlserver
        from mlserver.codecs import NumpyCodec, StringCodec
        from benchmarks.serving_sides import Model

        class Runtime(mlserver.MLModel):
            async def load(self):
                self.model = Model(Path(self.settings.parameters.uri))
                self.model.load()
                return True

            async def predict(self, payload):
                codec = StringCodec if self.model.strings else NumpyCodec
                rows = codec.decode_input(payload.inputs[0])
                answers = self.model(rows)
                values = answers if self.model.strings else self.model.packed(answers)
                output = codec.encode_output("y", values)
                return mlserver.types.InferenceResponse(model_name="model", outputs=[output])
    """)
    place = Path(tempfile.mkdtemp())
    for name, content in (("settings", settings), ("model-settings", model)):
        (place / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (place / "runtime.py").write_text(runtime, encoding="utf-8")
    sys.path.insert(0, str(place))
    os.chdir(place)
    sys.argv = ["mlserver", "start", str(place)]
    from mlserver.cli import main

    main()


def ray_serve(folder, port):
    """Ray Serve."""
    import time

    import ray
    from ray import serve

    ray.init(num_cpus=4, include_dashboard=False, logging_level="error")

    @serve.deployment(
        max_ongoing_requests=4 * _BATCH,
        ray_actor_options={"num_cpus": 1},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    class Service:
        def __init__(self):
            self.model = Model(folder)
            self.model.load()

        @serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=_SECONDS)
        async def predict(self, rows):
            return self.model(rows)

        async def __call__(self, request):
            document = await request.json()
            return {"rows": [await self.predict(document["rows"][0])]}

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Service.bind())
    while True:
        time.sleep(60)


def pytriton(folder, port):
    """nvidia-pytriton, over gRPC."""
    import numpy as np
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    model = Model(folder)
    model.load()
    kind = np.bytes_ if model.strings else np.float32

    @batch
    def infer(x):
        return {"y": model.packed(model(x[:, 0] if model.strings else x))}

    shape = (1,) if model.strings else model.shape
    config = TritonConfig(grpc_port=port, http_port=port + 1, metrics_port=port + 2)
    batcher = DynamicBatcher(max_queue_delay_microseconds=round(_SECONDS * 1e6))
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=kind, shape=shape)],
            outputs=[Tensor(name="y", dtype=kind, shape=(-1,) if not model.strings else (1,))],
            config=ModelConfig(max_batch_size=_BATCH, batcher=batcher),
        )
        triton.serve()


class Model:
    """A SavedModel, for sides that run Python: rows in, rows out."""

    def __init__(self, folder):
        self._folder = folder
        described = json.loads((folder.parent / "described.json").read_text(encoding="utf-8"))
        self.strings, self.shape = described["strings"], tuple(described["shape"])
        self._input, self._output = described["input"], described["output"]

    def load(self):
        """Reads it, in the process that is to run it."""
        import tensorflow as tf

        self._tensorflow = tf
        self._loaded = tf.saved_model.load(str(self._folder))
        self._call = self._loaded.signatures["serving_default"]

    def __call__(self, rows):
        """Returns an answer a row, as lists or strings."""
        dtype = self._tensorflow.string if self.strings else self._tensorflow.float32
        outputs = self._call(**{self._input: self._tensorflow.constant(rows, dtype)})
        answers = outputs[self._output].numpy().tolist()
        return [answer.decode() for answer in answers] if self.strings else answers

    def packed(self, answers):
        """Returns answers as an array."""
        import numpy as np

        if self.strings:
            return np.array([answer.encode() for answer in answers])[:, None]
        return np.array(answers, np.float32)


if __name__ == "__main__":
    name, folder, port = sys.argv[1:]
    globals()[name](Path(folder), int(port))

"""Requests and their answers, kept in files that can warm up the versions to come."""

import logging
import os
import queue
import random
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.logging_config_pb2 import LoggingConfig
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.model_server import tensors
from serving.model_server.errors import Code
from serving.model_server.metrics import Metrics

_LOG = logging.getLogger(__name__)
_MOST_RECORDS = 1000  # In one file: as many as a version takes to be warmed up.
_MOST_WAITING = 1000
_STOP = object()


class RequestLogs:
    """The logs of all models; written by a thread of their own.

    A log that cannot be written, or not fast enough, loses records and costs no request.

    Args:
        metrics: Counts the records, by what became of them.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._configs: Mapping[str, LoggingConfig] = {}
        self._waiting: queue.Queue = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def configure(self, config: ModelServerConfig) -> None:
        """Logs from now on what `config` wants logged."""
        self._configs = {
            model.name: model.logging_config
            for model in config.model_config_list.config
            if model.HasField("logging_config")
        }
        if self._configs and not self._thread:
            self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Writes what is waiting, and closes the files."""
        if self._thread:
            self._waiting.put(_STOP)
            self._thread.join()

    def chooses(self, model: str) -> bool:
        """Tells whether a request of `model` is to be logged: one in so many, by chance."""
        config = self._configs.get(model)
        return config is not None and random.random() < config.sampling_config.sampling_rate

    def predict(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str],
        outputs: Mapping[str, np.ndarray],
    ) -> None:
        """Logs a prediction.

        Args:
            spec: Who answered.
            inputs: What was asked, by input name.
            output_filter: The outputs that were asked for.
            outputs: The answer, by output name.
        """
        log = PredictionLog()
        request, response = log.predict_log.request, log.predict_log.response
        request.model_spec.CopyFrom(spec)
        request.output_filter.extend(output_filter)
        for name, array in inputs.items():
            request.inputs[name].MergeFromString(tensors.encode(array))
        response.model_spec.CopyFrom(spec)
        for name, array in outputs.items():
            response.outputs[name].MergeFromString(tensors.encode(array))
        self._put(spec, log)

    def infer(self, kind: str, spec: ModelSpec, request, response) -> None:
        """Logs a classification, a regression, or several at once.

        Args:
            kind: The field of `PredictionLog`, as `classify_log`.
            spec: Who answered.
            request: What was asked.
            response: The answer.
        """
        log = PredictionLog()
        getattr(log, kind).request.CopyFrom(request)
        getattr(log, kind).response.CopyFrom(response)
        self._put(spec, log)

    def _put(self, spec: ModelSpec, log: PredictionLog) -> None:
        config = self._configs.get(spec.name)
        if config is None:
            return  # The configuration has just changed.
        log.log_metadata.model_spec.CopyFrom(spec)
        log.log_metadata.sampling_config.CopyFrom(config.sampling_config)
        prefix = config.log_collector_config.filename_prefix
        try:
            self._waiting.put_nowait(_Record(spec.name, prefix, log.SerializeToString()))
        except queue.Full:
            self._metrics.request_logs.add(spec.name, Code.RESOURCE_EXHAUSTED.name)

    def _write_all(self) -> None:
        files: dict[tuple[str, str], _File] = {}
        failing: set[tuple[str, str]] = set()
        while (record := self._waiting.get()) is not _STOP:
            key = (record.prefix, record.model)
            try:
                file = files.get(key) or files.setdefault(key, _File(*key))
                file.write(record.content, flush=self._waiting.empty())
                if file.count == _MOST_RECORDS:
                    files.pop(key).close()
                self._metrics.request_logs.add(record.model, Code.OK.name)
                failing.discard(key)
            except (OSError, tf.errors.OpError) as error:
                files.pop(key, None)
                self._metrics.request_logs.add(record.model, Code.DATA_LOSS.name)
                if key not in failing:
                    _LOG.error("Could not log requests of %s: %s", record.model, error)
                failing.add(key)
        for file in files.values():
            file.close()


class _Record(NamedTuple):
    model: str
    prefix: str
    content: bytes


class _File:
    """One file of records: PREFIX-MODEL-TIME.tfrecord."""

    def __init__(self, prefix: str, model: str):
        time = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
        path = f"{prefix}-{quote(model, safe='')}-{time}.tfrecord"
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._writer = tf.io.TFRecordWriter(path)
        self.count = 0

    def write(self, record: bytes, flush: bool) -> None:
        self._writer.write(record)
        self.count += 1
        if flush:
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()

"""A job's stages, in their order: prepare → train → evaluate → export → verify."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras

from keras_models.tasks.explanation import Explanation
from keras_models.tasks.task import Task
from pipelines import sources, strategies, verification
from pipelines.batch_size import fastest_batch_tokens
from pipelines.batches import Batch, Batches
from pipelines.checkpoints import weights_of
from pipelines.chunks import chunk_batches
from pipelines.cluster import Cluster
from pipelines.datasets.splits import DataError
from pipelines.display import Display
from pipelines.errors import UsageError
from pipelines.evaluation import Evaluation, Evaluator
from pipelines.explanation import draw_examples, explain
from pipelines.folder import RunFolder
from pipelines.input import (
    batch_sizes,
    bucket_widths,
    refused,
    training_batches,
    unknown_shares,
    write_examples,
)
from pipelines.job import STRATEGIES
from pipelines.report import write_report
from pipelines.selection import restore_best
from pipelines.served import ServedBatches
from pipelines.service import SCHEME, Service, started
from pipelines.store import FeatureStore
from pipelines.training import Trainer
from serving.export import export

# The share of symbols from which on it is worth a word that a vocabulary lacks them.
_NOTED_UNKNOWN = 0.01
_NAME_BITS = 52  # which a float64 holds


class Run:
    """One run of a job in its folder.

    A stage that the folder records as done is not done again, and says so.

    Args:
        folder: Where the run is recorded; `folder.start` was called.
        display: Shows the progress.
        strategy: Where replicas of the model run; no part of the job, and another one may go on.
        profile: Number of training steps to write a profile of.
        model: Configuration of the model in place of the recorded one: for the same weights, with
            another search, say.
        cluster: The processes that train together, of which this is one.
        service: What makes batches: so many processes of this machine, or grpc://HOST:PORT of a
            tf.data service; empty: this process.
    """

    def __init__(
        self,
        folder: RunFolder,
        display: Display,
        strategy: STRATEGIES = "auto",
        profile: int = 0,
        model: Any = None,
        cluster: Cluster | None = None,
        service: str = "",
    ):
        self.folder, self._display = folder, display
        self._strategy, self._profile = strategies.choose(strategy, cluster), profile
        self._cluster, self._service = cluster, service
        self.name, self.job = folder.job()
        if model is not None:
            self.job = replace(self.job, model=model)
        self._evaluators: dict[str, Evaluator] = {}  # by split

    def run(self) -> None:
        """Does all the stages that are not done yet.

        Raises:
            LostWorker: If another worker ended while all were training.
        """
        for stage in (self.prepare, self.train, self.evaluate, self.export, self.verify):
            self._do(stage)
        write_report(self.folder, self.name, self.job)

    def run_first(self) -> None:
        """Does the stage that prepares the data, if it is not done yet."""
        self._do(self.prepare)

    def _do(self, stage: Callable[[], dict]) -> None:
        name = stage.__name__
        if self.folder.done(name) is not None:
            self._display.note(f"{name}: done before")
            return
        self._display.note(f"{name}: started")
        started = time.monotonic()
        results = stage()
        seconds = time.monotonic() - started
        self.folder.finish(name, seconds, **results)
        self._display.note(f"{name}: done in {seconds:.0f} s")

    def prepare(self) -> dict:
        """Learns from the data what the other stages need: vocabularies, widths of buckets."""
        train = self._source.splits["train"]
        self.job.task.prepare(train, self._assets)
        store, infeasible = write_examples(self._source.train, self._task, self._features)
        if not all(store.examples):
            raise DataError(
                "Each training split must hold examples that can be learnt from. "
                f"Received: {store.examples} of them, and {infeasible} others."
            )
        self._check_inputs()
        widths = [[self._task.chunk]]
        if self._task.chunk is None:
            widths = bucket_widths(store.lengths(), self.job.data.buckets)
        batch_tokens = self._chosen_batch_tokens(store.sequences, widths)
        sizes = self._sizes(widths, batch_tokens)
        self._batches(self._task, store, widths, sizes)  # or they are refused now
        return {
            "data": self._source.description,
            "skipped_lines": self._source.skipped_lines,
            "examples": sum(store.examples),
            "infeasible": infeasible,
            "sequences": store.sequences,
            "widths": widths,
            "batch_tokens": batch_tokens,
        }

    def _chosen_batch_tokens(self, names: list[str], widths: list[list[int]]) -> int:
        asked, config = self.job.data.batch_tokens, self.job.train
        if asked != "auto":
            return asked
        if self._task.chunk is not None:
            raise UsageError(
                "`data.batch_tokens` must be a number where training goes by chunks. Received: auto"
            )
        tried = fastest_batch_tokens(
            self._source.splits["train"], self._task, names, widths[-1], config.jit_compile
        )
        told = ", ".join(f"{tokens}: {rate:,.0f}" for tokens, rate in tried.items())
        self._display.note(f"prepare: tokens a second by --data.batch_tokens: {told}")
        return max(tried, key=tried.get) * self._strategy.num_replicas_in_sync

    def _check_inputs(self) -> None:
        for split in ("validation", "test"):
            count = refused(self._source.splits[split], self._task)
            if count:
                raise DataError(
                    f"Every input of the {split} split must be one that the model answers. "
                    f"Received: {count} {self._task.refusal}."
                )
            self._tell_unknown(split)

    def _tell_unknown(self, split: str) -> None:
        for field, share in unknown_shares(self._source.splits[split], self._task).items():
            if share > _NOTED_UNKNOWN:
                self._display.note(
                    f"{share:.1%} of the symbols of `{field}` in the {split} split are unknown to "
                    "the vocabulary. Is it of another language?"
                )

    def train(self) -> dict:
        """Trains, from the last checkpoint if there is one, and keeps the best weights.

        With the strategy `multi_worker` it is called by all, and writes files at the chief.
        """
        with strategies.naming_lost_workers(self._strategy):
            return self._train()

    def _train(self) -> dict:
        strategies.wait_for_chief(self._strategy)  # which has prepared what all need
        data, config = self.job.data, self.job.train
        alone = strategies.local(self._strategy) is self._strategy
        task = self._task if alone else self._built(self._strategy)
        prepared = self.folder.done("prepare")
        store = FeatureStore(self._features, None if self._service else data.cache)
        sizes = self._sizes(prepared["widths"], prepared["batch_tokens"])
        batches = self._batches(task, store, prepared["widths"], sizes)
        self._require_metric(task)
        self._require_rows(sizes, prepared["widths"])
        rows = 0 if task.chunk is None else sizes[0]
        with self._since(batches) as since:
            trainer = Trainer(
                task, config, since, self._strategy, self.folder.path, self._profile, rows
            )
            self._display.note(f"train: on {self._described()}")
            if why := strategies.inexactness(self._strategy):
                self._display.note(f"train: {why}")
            for what in trainer.passed_over:
                self._display.note(f"train: checkpoint {what}")
            if trainer.step:
                self._display.note(f"train: going on from step {trainer.step}")
            trainer.train(lambda: self._validated(task), self._display)
        return {
            "steps": trainer.step,
            "best_step": trainer.best_step,
            "parameters": task.model.count_params(),
            "devices": strategies.describe(self._strategy),
        }

    def _sizes(self, widths: list[list[int]], batch_tokens: int) -> list[int]:
        """Returns the number of examples in a batch of each bucket."""
        static = self.job.train.static_shapes
        multiple = self._strategy.num_replicas_in_sync if static else 1
        return batch_sizes(widths, batch_tokens, self.job.data.batch_size, multiple)

    def _batches(
        self, task: Task, store: FeatureStore, widths: list[list[int]], sizes: list[int]
    ) -> Batches:
        """Returns what a task is trained by: chunks where it goes by them, else examples.

        Raises:
            UsageError: If the strategy cannot go by chunks, or the data cannot.
        """
        data, seed = self.job.data, self.job.train.seed
        if task.chunk is not None:
            if strategies.is_asynchronous(self._strategy):
                raise UsageError(
                    "The strategy 'parameter_server' must have examples by themselves, for its "
                    "steps do not wait for one another. Received: a job whose training carries "
                    "its state from each chunk of a text to the next; 'one_device', 'mirrored' "
                    "and 'multi_worker' can do that."
                )
            return chunk_batches(store, sizes[0], task.chunk, seed)
        weights = [origin.weight for origin in data.origins] if data.mix else None
        config = self.job.train
        together = config.accumulate * config.steps_per_call if config.static_shapes else 1
        return training_batches(store, widths, sizes, seed, weights, task.augmented, together)

    @contextmanager
    def _since(self, batches: Batches) -> Iterator[Callable[[int], Iterable[Batch]]]:
        """Gives what returns batches from a number on: made here, or by a tf.data service."""
        if not self._service:
            yield batches.since
            return
        if self.job.data.cache == "memory":
            self._tell("the workers of a tf.data service read files, whatever `data.cache` says")
        with ExitStack() as opened:
            job = reader = ""
            if self._service.isdecimal():
                of = f"-of-{self._cluster.name.replace(' ', '-')}" if self._cluster else ""
                logs = self.folder.path / "logs" / f"data{of}"
                service = opened.enter_context(started(int(self._service), logs))
            else:
                service = Service(self._service.removeprefix(SCHEME))
                if strategies.has_several_workers(self._strategy):
                    job, reader = self._agreed_name(), self._cluster.name

            def since(number: int) -> ServedBatches:
                served = ServedBatches(batches, number, service, self._tell, job=job, reader=reader)
                return opened.enter_context(closing(served))

            yield since

    def _agreed_name(self) -> str:
        """Returns a name that no earlier training had, the same on every worker."""
        number = strategies.from_chief(self._strategy, float(random.getrandbits(_NAME_BITS)))
        return f"{self.name}-{int(number):x}"

    def _tell(self, what: str) -> None:
        self._display.note(f"train: {what}")

    def _validated(self, trained: Task) -> dict[str, float]:
        """Returns the numbers of a task on the validation split."""
        if trained is not self._task:
            for own, its in zip(self._task.model.variables, trained.model.variables, strict=True):
                own.assign(its.value)
        return self._evaluator("validation")().numbers

    def _require_metric(self, task: Task) -> None:
        metric, known = self.job.train.metric, [*task.metrics, "loss"]
        if metric and metric not in known:
            raise UsageError(f"`train.metric` must be one of {known}. Received: {metric!r}")

    def _require_rows(self, sizes: list[int], widths: list[list[int]]) -> None:
        """Checks that every replica has a row of every batch."""
        replicas, least = self._strategy.num_replicas_in_sync, min(sizes)
        if least < replicas:
            by_size = self.job.data.batch_size is not None
            better = f"size {replicas}" if by_size else f"tokens {replicas * widths[-1][0]}"
            raise UsageError(
                "A batch must have an example at least for each replica. Received: "
                f"{replicas} replicas, and {least} examples in a batch of the longest; "
                f"--data.batch_{better} would do."
            )

    def _described(self) -> str:
        config = self.job.train
        xla = config.jit_compile and strategies.compiles_replicas(self._strategy)
        size, of = self.job.data.batch_size, "examples"
        if size is None:
            size, of = self._batch_tokens, "tokens"
        return (
            f"{strategies.describe(self._strategy)}, "
            f"global batch {size * config.accumulate} {of}, "
            f"{config.precision}{', XLA' if xla else ''}"
        )

    def evaluate(self) -> dict:
        """Answers the test split with the best weights, keeps the answers, and draws some."""
        evaluation = self.evaluation("test")
        path = self.folder.path / "evaluation.json"
        path.write_text(json.dumps(evaluation.record(), ensure_ascii=False), encoding="utf-8")
        seed, examples = self.job.train.seed, self.folder.path / "plots" / "examples"
        return {
            **evaluation.numbers,
            "drawn": draw_examples(self._task, evaluation, seed, examples),
        }

    def explain(self, text: str, answer: str | None = None) -> tuple[str, Explanation]:
        """Returns an answer to a text, the best weights' if none is given, and its explanation."""
        self._restore_best()
        return explain(self._task, text, answer)

    def evaluation(self, split: str) -> Evaluation:
        """Returns the answers of the best weights to a split."""
        self._restore_best()
        self._tell_unknown(split)
        return self._evaluator(split)()

    def _restore_best(self) -> None:
        for what in restore_best(weights_of(self._task), self.folder.path):
            self._display.note(what)

    def _evaluator(self, split: str) -> Evaluator:
        """Returns the same one each time; what one has traced, the others use."""
        if split not in self._evaluators:
            like = next(iter(self._evaluators.values()), None)
            records = self._source.splits[split]
            self._evaluators[split] = Evaluator(self._task, records, self._batch_tokens, like)
        return self._evaluators[split]

    def export(self) -> dict:
        """Exports the best weights as a SavedModel."""
        return {"path": str(self.export_to(self._models).relative_to(self.folder.path))}

    def export_to(self, root: Path, name: str = "", version: int | None = None) -> Path:
        """Returns where the SavedModel was put: `root/name/version`."""
        self._restore_best()
        return export(self._task, root, name or self.model_name, version)

    def verify(self) -> dict:
        """Serves the exported model and compares its answers with the trained one's."""
        self._restore_best()
        evaluator = self._evaluator("test")
        asked = _spread(len(evaluator.examples), self.job.export.verify_examples)
        exported = self.folder.path / self.folder.done("export")["path"]
        verification.verify(
            exported, evaluator.inputs(asked, alone=len(asked) // 4), evaluator.outputs(asked)
        )
        return {"examples": len(asked)}

    @property
    def model_name(self) -> str:
        """What the served model is called."""
        return self.job.export.name or self.name

    @property
    def _batch_tokens(self) -> int:
        return self.folder.done("prepare")["batch_tokens"]

    @property
    def _models(self) -> Path:
        return self.folder.path / "models"

    @property
    def _assets(self) -> Path:
        return self.folder.path / "assets"

    @property
    def _features(self) -> Path:
        return self.folder.path / "features"

    @cached_property
    def _source(self) -> sources.Source:
        folder, fields = self.folder.path / "data", self.job.task.fields
        fresh = self.folder.done("prepare") is None
        return sources.open_source(self.job.data, fields, folder, fresh)

    @cached_property
    def _task(self) -> Task:
        """In this process; where there are several, what is trained is another one."""
        return self._built(strategies.local(self._strategy))

    def _built(self, strategy) -> Task:
        precision = self.job.train.precision
        policy = precision if precision == "float32" else f"mixed_{precision}"
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(self.job.train.seed)
        with strategy.scope():
            return self.job.task.build(self.job.model, self._assets)


def _spread(number: int, count: int) -> list[int]:
    """Returns `count` of 0 … number - 1 at even distances, or all."""
    count = min(count, number)
    return [i * number // count for i in range(count)]

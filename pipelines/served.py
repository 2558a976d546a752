"""Batches from a tf.data service: in their order, to the last bit, whoever of its workers ends.

Such a service gives elements in any order, loses those that a worker had when it ended, and waits
for ever when the last one has. As each batch is a function of its number, none of this matters:
they travel with their numbers and are put in order here, and what does not come is made here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import cancellation

from pipelines.batches import Batch, Batches
from pipelines.errors import UsageError
from pipelines.service import SCHEME, Service

_BLOCK = 8  # batches that a worker takes on at once
_MOST_READY = 64  # batches kept here before their turn
_PATIENCE = 30.0  # seconds to wait for a batch while all workers take calls
_ROUNDING = 1e-4  # what processors of other kinds may make of random changes of features
_LOOK = 1.0  # seconds between two looks at the workers


class ServedBatches(Iterator[Batch]):
    """Endless batches from a number on, made by the workers of a service.

    Args:
        batches: What to make. The workers read files of the same names as this process does.
        first: The number of the first one.
        service: Whose workers make them.
        say: Is told, in words, who has ended and what is done about it.
        patience: Seconds to wait for a batch while all workers take calls.
        job: What all processes that are to share the batches made, each of which takes every one,
            call them; empty: they are for this process alone.
        reader: The name of this process among them.

    Raises:
        UsageError: If no such service, or none with a worker, can be reached.
    """

    def __init__(
        self,
        batches: Batches,
        first: int,
        service: Service,
        say: Callable[[str], None],
        patience: float = _PATIENCE,
        job: str = "",
        reader: str = "",
    ):
        self._batches, self._first, self._next = batches, first, first
        self._service, self._say, self._patience = service, say, patience
        self._alive = service.require_workers()
        say(
            f"batches by the tf.data service at {service.address}, workers: {len(self._alive)}; "
            "in their order, for each is known by its number"
        )
        self._looked, self._to_look = time.monotonic(), False
        self._here: Iterator[Batch] | None = None  # made here from the next one on
        self._given_up = first  # numbers below this one are waited for no more
        self._compared = self._told = False
        # What follows is shared with the thread that reads.
        self._changed = threading.Condition()
        self._ready: dict[int, Batch] = {}
        self._silent = self._closed = False
        self._error: tf.errors.OpError | None = None
        experimental = tf.data.experimental.service
        served = batches.in_blocks(first, _BLOCK).apply(
            experimental.distribute(
                experimental.ShardingPolicy.DYNAMIC,
                SCHEME + service.address,
                job_name=job or None,
                cross_trainer_cache=experimental.CrossTrainerCache(reader) if job else None,
            )
        )
        self._cancellation = cancellation.CancellationManager()
        self._thread = threading.Thread(target=self._read, args=(served,), daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
            UsageError: If the workers cannot make batches, or make others than this process.
        """
        batch = self._served()
        if batch is None:
            batch = self._made_here()
        else:
            if not self._compared:
                self._require_same(batch)
                self._compared = True
            self._here = None
        with self._changed:
            self._ready.pop(self._next, None)
            self._next += 1
            self._changed.notify_all()
        return batch

    def close(self) -> None:
        """Ends the reading."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._cancellation.start_cancel()
        self._thread.join(_LOOK)

    def _read(self, served: tf.data.Dataset) -> None:
        cancelled = cancellation.CancellationManagerContext(self._cancellation)
        try:
            following = iter(served)
            # Only a function can be cancelled while it waits, which it may do for ever.
            take = tf.function(lambda: next(following))
            while True:
                with cancelled:
                    number, batch = take()
                with self._changed:
                    self._changed.wait_for(lambda n=int(number): self._has_room(n))
                    if self._closed:
                        return
                    if number >= self._next:
                        self._ready[int(number)] = batch
                        self._silent = False
                    self._changed.notify_all()
        except tf.errors.OpError as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _has_room(self, number: int) -> bool:
        return self._closed or number <= self._next or len(self._ready) < _MOST_READY

    def _served(self) -> Batch | None:
        """Returns the next batch, or None if it is not to be waited for."""
        until = time.monotonic() + self._patience
        with self._changed:
            if self._to_look and not self._silent:
                self._look()
            while self._next not in self._ready:
                if self._error is not None:
                    self._fail(self._error)
                if self._silent or self._next < self._given_up:
                    return None
                if len(self._ready) >= _MOST_READY:  # it is that of a slow worker, or of none
                    self._look()
                    return None
                if not self._changed.wait(_LOOK):
                    self._look()
                if not self._silent and time.monotonic() > until:
                    self._give_up(f"no batch has come for {self._patience:.0f} s")
            if self._told and not self._silent:
                self._told = False
                self._say("tf.data service: it gives batches again")
            return self._ready[self._next]

    def _look(self) -> None:
        """Looks, but not too often, who has ended, and tells it."""
        self._to_look = time.monotonic() < self._looked + _LOOK
        if self._to_look:  # with one of the next batches
            return
        try:
            alive = self._service.workers()
        except OSError as error:
            address = self._service.address
            return self._give_up(f"the dispatcher at {address} does not answer: {error}")
        finally:
            self._looked = time.monotonic()
        gone, self._alive = self._alive - alive, alive
        who = f"lost {', '.join(map(self._service.described, sorted(gone)))}"
        if not alive:
            return self._give_up(who if gone else "no worker is there")
        if gone:
            block = _BLOCK - (self._next - self._first) % _BLOCK
            self._given_up = max(self._next + block, *self._ready)
            rest = f"{len(alive)} {'other goes' if len(alive) == 1 else 'others go'} on"
            self._say(f"tf.data service: {who}; what it had is made here, and {rest}")

    def _give_up(self, why: str) -> None:
        """Waits no more, until something comes."""
        self._silent = self._told = True
        self._say(f"tf.data service: {why}; until it gives batches again they are made here")

    def _fail(self, error: tf.errors.OpError) -> None:
        """Goes on without the service, if it was of any use before it failed."""
        if not self._compared:
            raise UsageError(
                "The workers of a tf.data service must see the files of the run's folder, by the "
                f"same names, and run the same TensorFlow. Received: {error.message.strip()}"
            ) from None
        self._error = None
        self._ready.clear()
        self._give_up(f"failed: {error.message.strip()}")

    def _made_here(self) -> Batch:
        if self._here is None:
            self._here = iter(self._batches.since(self._next))
        return next(self._here)

    def _require_same(self, batch: Batch) -> None:
        """Checks that a batch is the one that this process makes, and says if it is so nearly."""
        for name, right in self._made_here().items():
            value = batch[name]
            if value.shape == right.shape and np.array_equal(value, right):
                continue
            what = f"`{name}` of batch {self._next} is not that of this process"
            if value.shape != right.shape or not np.allclose(value, right, _ROUNDING, _ROUNDING):
                raise UsageError(
                    "The workers of a tf.data service must see the files of this run's folder. "
                    f"Received others of the same names: {what}."
                )
            self._say(f"tf.data service: its processors round otherwise, so {what} to the last bit")

"""One optimizer step on all replicas: gradients → sum → mean → clip → update."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_models.frontends.padding import LENGTHS
from keras_models.layers.dropout import fold_in
from keras_models.tasks.task import Task
from pipelines import optimization, strategies
from pipelines.chunks import entered
from pipelines.job import Train
from pipelines.schedules import learning_rate

Batch = Mapping[str, tf.Tensor]
Group = tuple[Batch, ...]
Groups = tuple[Group, ...]
_NOISE = 0x6E6F6973  # apart from the seeds of dropout


class Totals(NamedTuple):
    """Sums over steps, each a float64 scalar; steps that were skipped count in `skipped` alone."""

    loss: tf.Tensor
    weight: tf.Tensor
    """What the loss is to be divided by: examples, or what a task counts instead."""
    examples: tf.Tensor
    real: tf.Tensor
    """Elements of sequences."""
    padded: tf.Tensor
    """The same with padding."""
    skipped: tf.Tensor
    """Steps whose loss or gradient was not finite, but for those that a loss scale made so."""


class _Reduced(NamedTuple):
    """What every replica knows after the reduction."""

    gradients: list[tf.Tensor]
    loss: tf.Tensor
    weight: tf.Tensor
    finite: tf.Tensor
    stop: tf.Tensor
    carried: list[tf.Tensor]


class TrainStep:
    """Optimizer steps, and the state they change beside the model's.

    Every worker sees the whole batch, and each replica takes its share of the rows. Losses and
    gradients are summed over replicas and accumulated batches, divided by the true global weight,
    and only then clipped: n replicas do what one does, whatever the sizes. Dropout and noise are
    functions of seed and step, so that there is no generator whose state could be lost; a replica
    has its own dropout.

    Args:
        task: Its variables were made in the strategy's scope.
        config: How.
        strategy: Where.
        rows: Where batches hold chunks of so many sequences (`chunks`), each of which goes on in
            the next batch from the state that this one left; that state is part of `state`. 0:
            each example is one by itself.

    Attributes:
        step: `int64` variable of this process, the number of steps given to do, which are done
            unless they are under way elsewhere (`join`); skipped ones included.
        rate_scale: Variable that the learning rate is multiplied by.
        average: The moving average of the weights, or None.
    """

    def __init__(self, task: Task, config: Train, strategy: tf.distribute.Strategy, rows: int = 0):
        self._task, self._config, self._strategy = task, config, strategy
        self._rows, self._calls = rows, strategies.calls(strategy)
        self._remote = strategies.is_asynchronous(strategy)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._variables = [variable.value for variable in task.model.trainable_variables]
        with strategy.scope():
            self.rate_scale = tf.Variable(1.0, trainable=False)
            zero = tf.nest.flatten(task.zero_state(rows)) if rows else []
            self._carried = [tf.Variable(part, trainable=False) for part in zero]
            self.optimizer = optimization.optimizer(config)
            self.optimizer.build(task.model.trainable_variables)
            self.average = self._scale = None
            if config.ema:
                self.average = optimization.MovingAverage(self._variables, config.ema)
            if config.precision == "float16":
                self._scale = optimization.LossScale()
        self._functions = {}  # by number of steps
        self._losses_and_gradients = tf.function(
            functools.partial(forward_and_backward, task),
            jit_compile=config.jit_compile and strategies.compiles_replicas(strategy),
            reduce_retracing=not config.static_shapes,
        )

    @property
    def state(self) -> dict[str, tf.Module]:
        """What a checkpoint holds, beside the weights."""
        parts = {
            "step": self.step,
            "rate_scale": self.rate_scale,
            "optimizer": self.optimizer,
            "average": self.average,
            "loss_scale": self._scale,
            "carried": self._carried or None,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return float(self._rate(self.step))

    @property
    def compilations(self) -> int:
        """How often steps were traced: with static shapes, once for each bucket's.

        That is where all batches of a call are of one bucket (`training_batches`), and once more
        for every other number of steps in a call.
        """
        counts = [each.experimental_get_tracing_count() for each in self._functions.values()]
        return sum(counts)

    def __call__(self, groups: Groups, stop: bool) -> tuple[Totals, bool]:
        """Does some steps in one call, or gives them to a worker that is free.

        Args:
            groups: For each step the batches that make it, of padded features.
            stop: Whether this worker was asked to stop.

        Returns:
            `Totals` of the steps that are done since, and whether any worker was asked to stop.
        """
        if len(groups) not in self._functions:
            self._functions[len(groups)] = self._function(groups)
        function, first = self._functions[len(groups)], self.step.read_value()
        done = self._calls(function, groups, first, tf.constant(float(stop)))
        self.step.assign_add(len(groups))
        return _summed([totals for totals, _ in done]), any(bool(stopped) for _, stopped in done)

    def join(self) -> Totals:
        """Returns the `Totals` of the steps that were under way, once they are done."""
        return _summed([totals for totals, _ in self._calls.join()])

    def _function(self, groups: Groups):
        """Returns the function for so many steps: of one trace, or of one for each shape."""
        if self._config.static_shapes:
            return tf.function(self._several)
        spec = tf.nest.map_structure(_any_shape, groups)
        signature = [spec, tf.TensorSpec([], tf.int64), tf.TensorSpec([])]
        return tf.function(self._several, input_signature=signature)

    def _several(
        self, groups: Groups, first: tf.Tensor, stop: tf.Tensor
    ) -> tuple[Totals, tf.Tensor]:
        each = [self._one(group, first + i, stop) for i, group in enumerate(groups)]
        totals, stops = zip(*each, strict=True)
        return _summed(totals), stops[-1]

    def _one(self, group: Group, step: tf.Tensor, stop: tf.Tensor) -> tuple[Totals, tf.Tensor]:
        reduced = self._strategy.run(self._reduced_gradients, args=(group, step, stop))
        loss, weight, finite, stop = (
            self._strategy.experimental_local_results(each)[0]
            for each in (reduced.loss, reduced.weight, reduced.finite, reduced.stop)
        )
        # Across replicas: the branches hold updates of the variables of all of them.
        tf.cond(finite, lambda: self._update(reduced, step), lambda: tf.constant(False))
        if self._carried:  # the text goes on, though a loss scale may have been too high
            known = tf.math.is_finite(loss)
            tf.cond(known, lambda: self._carry(reduced), lambda: tf.constant(False))
        totals = self._totals(group, loss, weight, finite)
        if self._scale is not None:
            self._scale.update(finite)
        return totals, stop > 0

    def _totals(self, group, loss, weight, finite) -> Totals:
        examples = sum(_rows(batch) for batch in group)
        real, padded = _elements(group)
        done = [tf.cast(each, tf.float64) for each in (loss, weight, examples, real, padded)]
        done = [tf.where(finite, each, 0.0) for each in done]
        skipped = ~finite if self._scale is None else ~finite & self._scale.is_least
        return Totals(*done, skipped=tf.cast(skipped, tf.float64))

    def _reduced_gradients(self, group: Group, step: tf.Tensor, stop: tf.Tensor) -> _Reduced:
        context = tf.distribute.get_replica_context()
        replicas, replica = self._strategy.num_replicas_in_sync, context.replica_id_in_sync_group
        scale = tf.constant(1.0) if self._scale is None else self._scale.scale.value()
        carried, sums = [part.read_value() for part in self._carried], []
        read = [each.read_value() for each in self._variables] if self._remote else []
        if replicas > 1:
            carried = [_rows_of(part, replica, replicas) for part in carried]
        for i, batch in enumerate(group):
            seed = self._seed(step, i)
            if replicas > 1:
                batch, seed = _share(batch, replica, replicas), fold_in(seed, replica)
            *parts, carried = self._losses_and_gradients(batch, seed, scale, carried, read)
            sums.append(parts)
        summed = [tf.add_n(each) for each in zip(*map(tf.nest.flatten, sums), strict=True)]
        summed = [*summed, tf.identity(stop)]  # on this replica's device
        if replicas > 1:
            count = len(summed)
            summed += [_among_zeros(part, replica, replicas, self._rows) for part in carried]
            summed = context.all_reduce(tf.distribute.ReduceOp.SUM, summed)
            summed, carried = summed[:count], summed[count:]
        loss, weight, *gradients, stop = summed
        gradients = [gradient / (weight * scale) for gradient in gradients]
        gradients, finite = self._processed(gradients, step)
        finite &= tf.math.is_finite(loss)
        return _Reduced(gradients, loss, weight, finite, stop, carried)

    def _processed(
        self, gradients: list[tf.Tensor], step: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the gradients as they are applied, and whether all were finite."""
        config = self._config
        if config.l2:
            pairs = zip(gradients, self._variables, strict=True)
            gradients = [
                g + 2 * config.l2 * v if optimization.is_decayed(v) else g for g, v in pairs
            ]
        if config.gradient_noise:
            seed = fold_in(self._seed(step, 0), _NOISE)
            gradients = optimization.noise(gradients, config.gradient_noise, seed, step)
        gradients, norm = optimization.clipped(gradients, config.clip, config.clip_limit)
        return gradients, tf.math.is_finite(norm)

    def _update(self, reduced: _Reduced, step: tf.Tensor) -> tf.Tensor:
        rate = self._rate(step)

        def update(variable, gradient, rate):
            if self._config.weight_decay and optimization.is_decayed(variable):
                variable.assign_sub(variable * self._config.weight_decay * rate)
            self.optimizer.update_step(gradient, variable, rate)

        for variable, gradient in zip(self._variables, reduced.gradients, strict=True):
            self._strategy.extended.update(variable, update, args=(gradient, rate), group=False)
        self.optimizer.iterations.value.assign_add(1)  # Keras's own would read, add and write
        if self.average is not None:
            self.average.update(self._strategy, self.optimizer.iterations.value)
        return tf.constant(True)

    def _carry(self, reduced: _Reduced) -> tf.Tensor:
        def carry(variable, value):
            variable.assign(tf.cast(value, variable.dtype))

        for variable, value in zip(self._carried, reduced.carried, strict=True):
            self._strategy.extended.update(variable, carry, args=(value,), group=False)
        return tf.constant(True)

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        return learning_rate(self._config, step) * self.rate_scale

    def _seed(self, step: tf.Tensor, batch: int) -> tf.Tensor:
        """Returns the seed of one of a step's batches, `[2]` int32."""
        number = step * self._config.accumulate + batch
        return tf.stack([self._config.seed, tf.cast(number, tf.int32)])


def forward_and_backward(
    task: Task,
    batch: Batch,
    seed: tf.Tensor,
    scale: tf.Tensor,
    carried: Sequence[tf.Tensor] = (),
    read: Sequence[tf.Tensor] = (),
):
    """Returns the sums of a batch's losses and of their weights, gradients, and what is carried.

    Args:
        task: Whose model it is.
        batch: Padded features.
        seed: `[2]` int32, of dropout.
        scale: Scalar that the gradients are multiplied by.
        carried: Where the batch is of chunks, the parts of the state before it; what is returned
            is that after it. No gradient goes from one chunk to another.
        read: What the trainable variables were when they were read, once and for all; none: they
            are read where they are used.
    """
    variables = task.model.trainable_variables
    taken = keras.StatelessScope(zip(variables, read, strict=True)) if read else nullcontext()
    with taken, tf.GradientTape() as tape:
        tape.watch(read)
        variables = [variable.value for variable in variables]
        if carried:
            batch, state = entered(task, batch, carried)
            losses, state = task.chunk_losses(batch, state, dropout_seed=seed)
            carried = tf.nest.flatten(state)
        else:
            losses = task.losses(batch, dropout_seed=seed)
        weights = tf.cast(task.weights(batch), losses.dtype)
        loss = tf.reduce_sum(losses)
        scaled = loss * tf.cast(scale, loss.dtype)
    gradients = tape.gradient(scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = [tf.convert_to_tensor(each) for each in gradients]
    return loss, tf.reduce_sum(weights), gradients, list(carried)


def _summed(totals: Sequence[Totals]) -> Totals:
    if not totals:
        return Totals(*tf.zeros([len(Totals._fields)], tf.float64))
    return Totals(*map(tf.add_n, zip(*totals, strict=True)))


def _any_shape(value: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None] * value.shape.rank, value.dtype)


def _rows(batch: Batch) -> tf.Tensor:
    return tf.shape(next(iter(batch.values())))[0]


def _share(batch: Batch, replica: tf.Tensor, replicas: int) -> dict[str, tf.Tensor]:
    """Returns the rows of a batch that a replica takes; all have as many, or one more."""
    return {name: _rows_of(value, replica, replicas) for name, value in batch.items()}


def _rows_of(value: tf.Tensor, replica: tf.Tensor, replicas: int) -> tf.Tensor:
    rows = value.shape[0]
    if rows is not None and rows % replicas == 0:  # a static size, as TPUs want it
        size = rows // replicas
        begin = tf.concat([[replica * size], tf.zeros([value.shape.rank - 1], tf.int32)], 0)
        return tf.slice(value, begin, [size, *value.shape[1:]])
    rows = tf.shape(value)[0]
    return value[rows * replica // replicas : rows * (replica + 1) // replicas]


def _among_zeros(part: tf.Tensor, replica: tf.Tensor, replicas: int, rows: int) -> tf.Tensor:
    """Returns a replica's rows among zeros for all others: the sum over replicas is the whole.

    It is in float32, which every strategy can sum, and which holds smaller floats and integers
    below 2²⁴ as they are.
    """
    before = rows * replica // replicas
    after = rows - before - tf.shape(part)[0]
    others = [[0, 0]] * (part.shape.rank - 1)
    whole = tf.pad(tf.cast(part, tf.float32), [[before, after], *others])
    return tf.ensure_shape(whole, [rows, *part.shape[1:]])


def _elements(group: Group) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the number of elements in sequences, without padding and with it."""
    real, padded = [tf.zeros([], tf.int32)], [tf.zeros([], tf.int32)]
    for batch in group:
        for name, lengths in batch.items():
            if name.endswith(LENGTHS):
                shape = tf.shape(batch[name.removesuffix(LENGTHS)])
                real.append(tf.reduce_sum(lengths))
                padded.append(shape[0] * shape[1])
    return tf.add_n(real), tf.add_n(padded)

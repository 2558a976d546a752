"""A job: everything that a run depends on, as frozen, checked data."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT

# What a model may be called: a folder that a server takes for a model, a part of a URL.
MODEL_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
# A path that means the same wherever a later command is called.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Data:
    """Where records come from, and how they become batches."""

    name: str = ""
    """A data set of pipelines/datasets; ignored when `train` names files of your own."""
    config: str = ""
    """The data set's own variant, such as cmudict's `plain` or `stress`."""
    dir: AbsolutePath | None = None
    """Where TFDS keeps prepared data; None: TFDS_DATA_DIR, or TFDS's default."""
    train: AbsolutePath | None = None
    """A two-column TSV of your own, in the order of the task's fields."""
    validation: AbsolutePath | None = None
    """Likewise; None: split off `train`."""
    test: AbsolutePath | None = None
    """Likewise; None: split off `train`."""
    skip_bad_lines: bool = False
    """Skip and count a TSV's bad lines, rather than stop at them."""
    batch_tokens: PositiveInt = 2560
    """Padded input symbols in a batch."""
    buckets: PositiveInt = 6
    """Lengths that batches are padded to: each is one more compilation, and less padding."""
    shuffle_buffer: PositiveInt = 16_384
    """Examples to shuffle among, once the records were shuffled by the thousand."""

    @model_validator(mode="after")
    def _has_a_source(self):
        if not self.name and self.train is None:
            raise ValueError("either `name` or `train` must be given")
        if self.train is None and (self.validation or self.test):
            raise ValueError("`validation` and `test` go with a `train` file of your own")
        return self


@dataclass(frozen=True, config=STRICT)
class Train:
    """How to optimise, and when to look."""

    steps: PositiveInt = 10_000
    """Optimizer steps."""
    learning_rate: PositiveFloat = 2e-3
    """Highest learning rate."""
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "cosine"
    """What follows the warm-up."""
    warmup_steps: NonNegativeInt = 200
    """Steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay (AdamW)."""
    clip_norm: PositiveFloat = 1.0
    """Largest global norm of a gradient."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """Of initial weights, shuffling and dropout."""
    strategy: Literal["auto", "one_device"] = "auto"
    """Where replicas of the model run."""
    jit_compile: bool = True
    """Compile the training step with XLA."""
    log_every: PositiveInt = 50
    """Steps between lines of metrics.jsonl."""
    evaluate_every: PositiveInt = 1000
    """Steps between evaluations on the validation split."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; an interrupted run goes on from the last."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept, the best one apart."""
    patience: PositiveInt = 10
    """Evaluations without a better error rate before training stops."""


@dataclass(frozen=True, config=STRICT)
class Export:
    """What the served model is called, and how its answers are verified."""

    name: Annotated[str, Field(pattern=rf"^({MODEL_NAME})?$")] = ""
    """The model's name when served; empty: the job's."""
    verify_examples: PositiveInt = 200
    """Test inputs that are sent to the served model and compared with the trained one."""


@dataclass(frozen=True, config=STRICT)
class Job:
    """From raw records to a served model.

    `task` and `model` are configurations from `keras_models.configs`, told apart by their types.
    """

    data: Data
    task: Any
    model: Any
    train: Train = field(default_factory=Train)
    export: Export = field(default_factory=Export)

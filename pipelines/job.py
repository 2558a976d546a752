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
# Where replicas of a model may run: an option of a run, and no part of a job.
STRATEGIES = Literal["auto", "one_device", "mirrored", "multi_worker", "parameter_server", "tpu"]
# A path that means the same wherever a later command is called.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class Origin:
    """One place where records come from: a data set, or files of your own."""

    name: str = ""
    """A data set of TFDS or of pipelines/datasets; ignored when `train` names files of your own."""
    config: str = ""
    """The data set's own variant, such as cmudict's `plain` or `stress`."""
    dir: AbsolutePath | None = None
    """Where TFDS keeps prepared data; None: TFDS_DATA_DIR, or TFDS's default."""
    features: dict[str, str] = field(default_factory=dict)
    """What fields of the task are called in the data: `text translation/en`, say."""
    splits: dict[str, str] = field(default_factory=dict)
    """What splits are called in the data set, or a part: `validation 'train[90%:]'`, say."""
    train: AbsolutePath | None = None
    """A file or folder of your own; TFRecord files may be several, as in 'train-*.tfrecord'."""
    validation: AbsolutePath | None = None
    """Likewise; None: split off `train`."""
    test: AbsolutePath | None = None
    """Likewise; None: split off `train`."""
    format: Literal["", "tsv", "csv", "jsonl", "npz", "folder", "tfrecord", "text"] = ""
    """What your own files are; empty: what their names end with, or a TSV; text: a file is one
    record, a text."""
    skip_bad_lines: bool = False
    """Skip and count bad lines or files of your own, rather than stop at them."""
    weight: PositiveFloat = 1.0
    """How often training draws from here, where several are mixed."""

    @model_validator(mode="after")
    def _has_a_source(self):
        if not self.name and self.train is None:
            raise ValueError("either `name` or `train` must be given")
        if self.train is None and (self.validation or self.test):
            raise ValueError("`validation` and `test` go with a `train` file of your own")
        unknown = sorted(set(self.splits) - {"train", "validation", "test"})
        if unknown:
            raise ValueError(f"`splits` must be of train, validation, test. Received: {unknown}")
        return self


@dataclass(frozen=True, config=STRICT)
class Data(Origin):
    """Where records come from, and how they become batches."""

    mix: tuple[Origin, ...] = ()
    """Further data, mixed with the above by weight."""
    batch_tokens: PositiveInt | Literal["auto"] = 2560
    """Padded input symbols in a batch; auto: as many as are fastest on this machine."""
    buckets: PositiveInt = 6
    """Lengths that batches are padded to: each is one more compilation, and less padding."""
    batch_size: PositiveInt | None = None
    """Examples in a batch; None: as many as `batch_tokens` hold."""
    cache: Literal["disk", "memory"] = "disk"
    """Where the features of the training examples are read from, once they are made."""

    @model_validator(mode="after")
    def _has_one_size(self):
        if self.batch_tokens == "auto" and self.batch_size is not None:
            raise ValueError(
                "`batch_tokens` must be a number, which counts for nothing, where `batch_size` is "
                "given. Received: auto"
            )
        return self

    @property
    def origins(self) -> tuple[Origin, ...]:
        """All places that records come from."""
        return self, *self.mix


@dataclass(frozen=True, config=STRICT)
class Train:
    """How to optimise, and when to look."""

    steps: PositiveInt = 10_000
    """Optimizer steps."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Adam with decoupled weight decay, Adam, or stochastic gradient descent."""
    learning_rate: PositiveFloat = 2e-3
    """Highest learning rate."""
    schedule: Literal["constant", "cosine", "inverse_sqrt", "plateau"] = "cosine"
    """What follows the warm-up."""
    warmup_steps: NonNegativeInt = 200
    """Steps in which the learning rate rises from 0."""
    plateau_patience: PositiveInt = 2
    """With the schedule `plateau`: evaluations without a better one before the rate is reduced."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """With the schedule `plateau`: what the rate is multiplied by."""
    beta_1: Share = 0.9
    """Decay of Adam's first moment; of SGD's momentum."""
    beta_2: Share = 0.999
    """Decay of Adam's second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW) of kernels and embeddings; biases are left alone."""
    l2: NonNegativeFloat = 0.0
    """Times the sum of squares of kernels and embeddings, added to the mean loss."""
    clip: Literal["global_norm", "norm", "value", "none"] = "global_norm"
    """What `clip_limit` bounds: the norm of all gradients, of each variable's, or each element."""
    clip_limit: PositiveFloat = 1.0
    """Largest norm or absolute value of a gradient."""
    gradient_noise: NonNegativeFloat = 0.0
    """Variance of the noise added to gradients at the first step; it falls as step^-0.55."""
    accumulate: PositiveInt = 1
    """Batches whose gradients make one optimizer step."""
    ema: Share = 0.0
    """Decay of the moving average of the weights, which then is evaluated and kept; 0: none."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What layers compute in; variables are float32, and float16 scales its losses."""
    jit_compile: bool = True
    """Compile the training step with XLA; without it, recurrent layers on a GPU are cuDNN's."""
    static_shapes: bool = False
    """Trace the step once for each bucket's shape, as a TPU needs it; the batches that it gets at
    once, `accumulate` times `steps_per_call`, are of one bucket, and replicas share evenly."""
    steps_per_call: PositiveInt = 1
    """Steps run between two looks from Python."""
    nonfinite_limit: NonNegativeInt = 0
    """Steps that may be skipped, their gradient being infinite or no number, before a run stops."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """Of initial weights, shuffling and dropout."""
    log_every: PositiveInt = 50
    """Steps between lines of metrics.jsonl."""
    evaluate_every: PositiveInt = 1000
    """Steps between evaluations on the validation split."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; an interrupted run goes on from the last."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept, those to select from apart."""
    metric: str = ""
    """What selects weights and stops a run, by its name in an evaluation; empty: the first."""
    patience: PositiveInt = 10
    """Evaluations without a better one before training stops."""
    select: Literal["best", "last"] = "best"
    """Which evaluations' weights are kept."""
    average: PositiveInt = 1
    """How many of them the final weights are the mean of."""

    @model_validator(mode="after")
    def _fits_together(self):
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(
                "`weight_decay` goes with the optimizer 'adamw'; `l2` is for every optimizer"
            )
        return self


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

"""Digits whose pixels were permuted, by an MLP, to which their order is all the same.

Command: transduce run shuffled_pixels_mlp
Data: MNIST, the pixels of all images permuted alike, 55,000 to train, 10,000 to test
Time: 3 minutes of training on 2 cores that others used, too
Result: accuracy 98.19 % on the test split
"""

from dataclasses import replace

from keras_models.configs.cnn import MLPConfig
from pipelines.job import Job
from pipelines.jobs import shuffled_pixels


def job() -> Job:
    """Returns the full setting: `shuffled_pixels` with another model, for images of one size."""
    return _with(shuffled_pixels.job(), MLPConfig(units=256, layers=2))


def quick() -> Job:
    """Returns a smaller setting: half a minute."""
    return _with(shuffled_pixels.quick(), MLPConfig(units=64, layers=2))


def _with(job: Job, model: MLPConfig) -> Job:
    task = replace(job.task, input=replace(job.task.input, resize=True))
    return replace(job, task=task, model=model)

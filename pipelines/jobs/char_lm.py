"""Text character by character in the manner of Shakespeare, LSTM language model.

Command: transduce run char_lm
Data: TFDS tiny_shakespeare, 1,003,854 characters; or a text of yours, --data.train my.txt
Time: 65 minutes on 2 cores with other trainings beside it; 19 minutes of processor time
Result: 1.541 nats, 2.222 bits a character on the test split; --quick: 1.960 nats after a minute
"""

from dataclasses import replace

from keras_models.configs.language_model import LanguageModelConfig
from keras_models.configs.language_modeling import LanguageModeling
from pipelines.job import Data, Job, Train


def job() -> Job:
    """Returns the full setting."""
    return Job(
        data=Data(name="tiny_shakespeare", format="text", batch_size=32),
        task=LanguageModeling(chunk=64),
        model=LanguageModelConfig(units=256, layers=2, dropout=0.25),
        train=Train(steps=12_800, learning_rate=4e-3, evaluate_every=1600),
    )


def quick() -> Job:
    """Returns a smaller setting: a minute of training, and more nats."""
    full = job()
    return replace(
        full,
        model=LanguageModelConfig(units=128, layers=1, dropout=0.0),
        train=replace(full.train, steps=800, warmup_steps=50, evaluate_every=800),
    )

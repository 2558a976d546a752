"""How a time series will go on, as one number, by a bidirectional LSTM.

Command: transduce run series_forecast
Data: Crop of the UCR archive: the green of a field in 42 pictures from space; the 46th is asked for
Time: under 8 minutes of training on 2 cores, shared with others
Result: mean absolute error 0.077 on the test split; linear regression has 0.093
"""

from dataclasses import replace

from keras_models.configs.lstm import LSTMConfig
from keras_models.configs.regression import Regression
from keras_models.configs.series import Series
from pipelines.job import Data, Job, Train


def job() -> Job:
    """Returns the full setting."""
    return Job(
        data=Data(
            name="ucr",
            config="Crop",
            features={"series": "past", "value": "last"},
            splits={"train": "train[:90%]", "validation": "train[90%:]"},
            batch_tokens=5376,
        ),
        task=Regression(input=Series()),
        model=LSTMConfig(units=64, layers=2, dropout=0.1),
        train=Train(steps=1500, warmup_steps=100, evaluate_every=250),
    )


def quick() -> Job:
    """Returns a smaller setting."""
    full = job()
    return replace(
        full,
        model=LSTMConfig(units=24, layers=1, dropout=0.1),
        train=replace(full.train, steps=200, warmup_steps=50, evaluate_every=100),
    )

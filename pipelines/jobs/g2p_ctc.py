"""Spelling to sounds (grapheme to phoneme) in English by CTC.

Command: transduce run g2p_ctc
Data: CMU Pronouncing Dictionary, 126,000 words, stress stripped
Time: 12 minutes of training for the last 1,600 of its steps, on 2 cores that others used, too
Result: PER 6.66 %, WER 30.20 % on the test split, greedy
"""

from dataclasses import replace

from keras_models.configs.ctc import CTCConfig
from keras_models.configs.transcription import Text, Transcription
from pipelines.job import Data, Job, Train


def job() -> Job:
    """Returns the full setting."""
    return Job(
        data=Data(name="cmudict", config="plain"),
        task=Transcription(
            input=Text(field="text", unit="character", lowercase=True),
            output=Text(field="pronunciation", unit="token"),
            token="phoneme",
            sequence="word",
        ),
        model=CTCConfig(encoder_units=256, dropout=0.2),
        train=Train(steps=2600, evaluate_every=650),
    )


def quick() -> Job:
    """Returns a smaller setting, with more errors."""
    full = job()
    return replace(
        full,
        model=CTCConfig(encoder_units=128),
        train=replace(full.train, steps=1500, warmup_steps=100, evaluate_every=500),
    )

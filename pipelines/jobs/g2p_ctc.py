"""Spelling to sounds (grapheme to phoneme) in English by CTC.

Command: transduce run g2p_ctc
Data: CMU Pronouncing Dictionary, 126,000 words, stress stripped
Time: not trained to its end yet
Result: PER 9.49 %, WER 41.00 % on the validation split after 650 of 2,600 steps, greedy
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
        train=Train(steps=10_000),
    )


def quick() -> Job:
    """Returns a smaller setting: minutes instead of hours, and more errors."""
    full = job()
    return replace(
        full,
        model=CTCConfig(encoder_units=128),
        train=replace(full.train, steps=1500, warmup_steps=100, evaluate_every=500),
    )

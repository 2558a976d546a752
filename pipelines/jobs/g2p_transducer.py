"""Spelling to sounds (grapheme to phoneme) in English by an RNN transducer.

Command: transduce run g2p_transducer
Data: CMU Pronouncing Dictionary, 126,000 words, stress stripped
Time: 43 minutes of training on 2 cores, reckoned from its last part
Result: PER 5.26 %, WER 22.91 % on the test split, greedy, with the mean of the weights of steps
    11,000, 13,500 and 14,000; those of step 11,000 alone, the best on the validation split, had
    PER 5.35 %, WER 23.27 %
"""

from dataclasses import replace

from keras_models.configs.transcription import Text, Transcription
from keras_models.configs.transducer import TransducerConfig
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
        model=TransducerConfig(
            encoder_units=256, predictor_units=256, joint_units=256, dropout=0.3
        ),
        train=Train(steps=14_000, average=3),
    )


def quick() -> Job:
    """Returns a smaller setting: minutes instead of hours, and twice the errors."""
    full = job()
    return replace(
        full,
        model=TransducerConfig(encoder_units=128, predictor_units=128, joint_units=128),
        train=replace(full.train, steps=1500, warmup_steps=100, evaluate_every=500, average=1),
    )

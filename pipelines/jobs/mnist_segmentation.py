"""The digit that each pixel of a cluttered canvas belongs to, by a convolutional network.

Command: transduce run mnist_segmentation
Data: 10,000 canvases of 48 by 48 pixels, made of MNIST, to train, 1,000 to test
Time: 17 minutes of training on 2 cores that others used, too
Result: mean IoU 91.45 %, pixel accuracy 99.48 % on the test split
"""

from dataclasses import replace

from keras_models.configs.cnn import CNNConfig
from keras_models.configs.image import Augmentation, Image
from keras_models.configs.segmentation import Segmentation
from pipelines.job import Data, Job, Train


def job() -> Job:
    """Returns the full setting."""
    augmentation = Augmentation(rotation=10, scale=0.1, shear=0.1, shift=0.1)
    return Job(
        data=Data(name="cluttered_digits", batch_size=64),
        task=Segmentation(
            input=Image(height=48, width=48, channels=1, augmentation=augmentation),
            classes=("background", *map(str, range(10))),
        ),
        model=CNNConfig(channels=8, stages=3, blocks=2),
        train=Train(
            steps=4000,
            learning_rate=4e-3,
            weight_decay=0.01,
            ema=0.998,
            jit_compile=False,
            evaluate_every=500,
        ),
    )


def quick() -> Job:
    """Returns a smaller setting: a minute."""
    full = job()
    return replace(
        full,
        model=CNNConfig(channels=8, stages=3, blocks=1),
        train=replace(full.train, steps=400, warmup_steps=100, evaluate_every=200, ema=0.98),
    )

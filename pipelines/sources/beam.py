"""Large data sets, prepared by Beam on one machine or many."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.job import Data
from pipelines.sources import library


def prepare(data: Data, runner: str, options: Sequence[str] = ()) -> None:
    """Prepares the TFDS data sets among the origins of a job, where they are not prepared yet.

    Args:
        data: Names them.
        runner: What runs Beam's pipelines: `DirectRunner` on this machine, `DataflowRunner`, ….
        options: Further options of the runner, as `project=mine`.
    """
    flags = [f"--runner={runner}", *(f"--{option}" for option in options)]
    config = tfds.download.DownloadConfig(beam_options=PipelineOptions(flags))
    for origin in data.origins:
        if origin.train is None:
            library.prepare(library.builder_of(origin), download_config=config)

"""A field of series: numbers that follow each other in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.records import Field

if TYPE_CHECKING:
    from keras_models.frontends.series import SeriesFrontend


@dataclass(frozen=True, config=STRICT)
class Series:
    """A field of series, of any length."""

    field: str = "series"
    """Name in records, features and served signatures."""
    channels: PositiveInt = 1
    """Numbers at each step."""
    max_length: PositiveInt = 10_000
    """Longest series, in steps, that the served model answers."""

    @property
    def record(self) -> Field:
        """What a record holds."""
        return Field(self.field, "float32", self.shape[:1] if self.channels == 1 else self.shape)

    @property
    def shape(self) -> tuple[None, int]:
        """Steps and channels."""
        return None, self.channels

    def prepare(self, records, folder: Path) -> None:
        """Writes mean and deviation of each channel.

        Args:
            records: Batches of raw records.
            folder: Where to write `FIELD.json`.
        """
        from keras_models.frontends.normalization import write_statistics

        batches = (batch[self.field] for batch in records)
        write_statistics(batches, self.channels, self.field, folder)

    def build(self, folder: Path) -> SeriesFrontend:
        """Returns the frontend for the folder that `prepare` wrote to."""
        from keras_models.frontends.series import SeriesFrontend

        return SeriesFrontend(self, folder)

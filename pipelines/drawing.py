"""Pictures of how an answer goes back to its input, and the same in words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib import font_manager

from keras_models.tasks.explanation import Explanation

_CELL, _LEAST, _MOST = 0.34, 2.4, 48.0  # inches
_FONT_SIZE = 11
_WIDE = 3  # characters of a label that do not fit side by side
_FAMILY = "DejaVu Sans"
_PATH_COLOUR = "#f28e2b"


def describe(explanation: Explanation) -> list[str]:
    """Returns a line for each part of the input: what is said there, and how certain that is."""
    said = [[] for _ in explanation.inputs]
    parts = zip(explanation.outputs, explanation.frames, explanation.certainties, strict=True)
    for output, frame, certainty in parts:
        said[frame].append(f"{_visible(output)} {certainty:.2f}")
    lines = zip(map(_visible, explanation.inputs), map("  ".join, said), strict=True)
    return [f"{part}\t{words}".rstrip() for part, words in lines]


def draw(explanation: Explanation, path: Path) -> None:
    """Saves a picture of an explanation: the input to the right, the answer upwards."""
    weights = explanation.weights.T
    lattice = len(weights) > len(explanation.outputs)
    if not len(weights):  # an answer of no parts: there is still the input to show
        weights = np.zeros([1, len(explanation.inputs)])
    rows, frames = weights.shape
    width, height = _inches(len(explanation.inputs)), _inches(rows)
    figure = matplotlib.figure.Figure(figsize=(width + 1.5, height + 0.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=1)
    shown = "probability" if lattice else "attention"
    figure.colorbar(image, label=shown, fraction=0.2 / width, aspect=5 * height, pad=0.01)
    between = 0.5 if lattice else 0.0
    _label(axes.xaxis, range(frames), explanation.inputs, turn=True)
    places = [u + between for u in range(len(explanation.outputs))]
    _label(axes.yaxis, places, explanation.outputs, turn=False)
    axes.set(xlabel="input", ylabel="answer")
    if lattice:
        steps = [u + 0.5 for u in range(rows - 1)]
        axes.hlines(steps, -0.5, frames - 0.5, color="0.85", linewidth=0.6)
        axes.plot(*_staircase(explanation.frames, frames), color=_PATH_COLOUR, linewidth=2)
        axes.plot(explanation.frames, steps, "o", color=_PATH_COLOUR, markersize=5)
    figure.savefig(path, dpi=100)


def _staircase(frames: tuple[int, ...], end: int) -> tuple[list[float], list[float]]:
    """Returns the corners of a path through the lattice, from its first frame to past its last."""
    x, y = [-0.5], [0.0]
    for u, frame in enumerate(frames):
        x += [frame, frame]
        y += [u, u + 1]
    return [*x, end - 0.5], [*y, len(frames)]


def _inches(cells: int) -> float:
    return min(max(_CELL * cells, _LEAST), _MOST)


def _label(axis, places: Iterable[float], symbols: tuple[str, ...], turn: bool) -> None:
    """Writes a symbol at each place, if need be from below to above."""
    shown, family = _printable(tuple(map(_visible, symbols)))
    size = _FONT_SIZE * min(1.0, _MOST / (_CELL * max(1, len(symbols))))
    rotation = 90 if turn and max(map(len, shown), default=0) > _WIDE else 0
    axis.set_ticks(list(places), shown, family=family, fontsize=size, rotation=rotation)
    axis.set_tick_params(length=0)
    for text in axis.get_ticklabels():
        text.set_parse_math(False)


def _visible(symbol: str) -> str:
    """Returns a symbol so that it can be seen: a space, a control character, a mark by itself."""
    control = {n: 0x2400 + n for n in range(0x21)}
    symbol = symbol.translate(control | {0x20: 0x2423})
    return f"\N{DOTTED CIRCLE}{symbol}" if unicodedata.combining(symbol[0]) else symbol


def _printable(symbols: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Returns the symbols, in numbers where no font has them, and the fonts that have the rest."""
    missing = {ord(character) for symbol in symbols for character in symbol}
    missing -= _characters(font_manager.findfont(_FAMILY))
    families = [_FAMILY]
    for font in _installed() if missing else ():
        found = missing & _characters(font.fname)
        if found:
            families.append(font.name)
            missing -= found
    numbers = {character: f"U+{character:04X} " for character in missing}
    return [symbol.translate(numbers).rstrip() for symbol in symbols], families


def _installed() -> list[font_manager.FontEntry]:
    """Returns the upright fonts of this machine; Matplotlib's own others are for formulas."""
    return [
        font
        for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name)
        if (font.style, font.weight) == ("normal", 400)
        and not font.fname.startswith(matplotlib.get_data_path())
    ]


@cache
def _characters(path: str) -> frozenset[int]:
    """Returns the code points that a font can draw."""
    return frozenset(font_manager.get_font(path).get_charmap())

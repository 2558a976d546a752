"""What a command prints of a run when it is done."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.display import label, show
from pipelines.folder import RunFolder

_EXAMPLES_SHOWN = 10
_LONGEST_SHOWN = 200


def summarise(folder: RunFolder, model_name: str, seed: int) -> None:
    """Prints what a run came to, where it lies, and how to use it."""
    console = Console(highlight=False, soft_wrap=True)
    evaluation = json.loads((folder.path / "evaluation.json").read_text(encoding="utf-8"))
    print_numbers(console, "test", evaluation["numbers"])
    if evaluation["answers"]:
        console.print(_examples(evaluation, seed))
    command = _this_command()
    for line in (
        f"model     {folder.path / folder.done('export')['path']}",
        f"pictures  {folder.path / 'plots'}",
        f"report    {folder.path / 'report.md'}",
        f"serve     {command} serve {shlex.quote(str(folder.path / 'models'))}",
        f"query     {command} query {model_name} {evaluation['question']}",
    ):
        console.print(line, markup=False)


def print_numbers(console: Console, split: str, numbers: dict[str, float]) -> None:
    """Prints error rates and the like, one a line."""
    for name, value in numbers.items():
        console.print(f"{split} {label(name)} {show(name, value)}")


def _examples(evaluation: dict, seed: int) -> Table:
    columns = (evaluation[name] for name in ("inputs", "answers", "references"))
    rows = list(zip(*columns, strict=True))
    table = Table("input", "answer", "references", "")
    for text, answer, references in random.Random(seed).sample(
        rows, min(_EXAMPLES_SHOWN, len(rows))
    ):
        right = "right" if answer in references else "wrong"
        cells = (_short(text), _short(answer), _short("; ".join(references)))
        table.add_row(*map(Text, cells), right)
    return table


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def _this_command() -> str:
    """Returns how this command can be called again from here."""
    called = Path(sys.argv[0])
    if called.name != "transduce" or shutil.which("transduce") == str(called):
        return "transduce"
    absolute, here = called.absolute(), Path.cwd()
    return os.path.relpath(absolute) if absolute.is_relative_to(here) else str(absolute)

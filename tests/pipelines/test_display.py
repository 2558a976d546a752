import io
import re

import pytest
from rich.console import Console

from pipelines import display
from pipelines.display import Display

NUMBERS = {
    "loss": 1.23456,
    "learning_rate": 0.001,
    "examples_per_second": 321.4,
    "tokens_per_second": 2345.6,
    "waiting_share": 0.02,
    "memory_gigabytes": 1.24,
    "padding_share": 0.034,
}


class Seen:
    """A display, and what a person sees of it."""

    def __init__(self, **options):
        self._file = io.StringIO()
        console = Console(file=self._file, width=100, highlight=False, soft_wrap=True, **options)
        self.display = Display(console)

    @property
    def text(self):
        return self._file.getvalue()


@pytest.fixture
def plain():
    return Seen(force_terminal=False)


@pytest.fixture
def terminal():
    return Seen(force_terminal=True, _environ={"TERM": "xterm-256color"})


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(plain, clock):
    with plain.display.training(0, 400):
        clock(30)
        plain.display.step(100, NUMBERS)
    assert plain.text == (
        "step 100 of 400: loss 1.235, 321 examples/s, 2346 tokens/s, 3% padding, 2% waiting, "
        "1.2 GB, 0:01:30 left\n"
    )


def test_the_time_left_is_that_of_the_steps_done_since_the_start(plain, clock):
    with plain.display.training(200, 400):
        clock(10)
        plain.display.step(250, NUMBERS)
        clock(30)
        plain.display.step(300, NUMBERS)
    assert re.findall(r"(\S+) left", plain.text) == ["0:00:30", "0:00:40"]


def test_on_a_terminal_there_is_a_live_bar(terminal):
    with terminal.display.training(40, 90):
        terminal.display.step(50, NUMBERS)
    assert "\x1b[" in terminal.text
    assert "50/90" in terminal.text
    assert "loss 1.235" in terminal.text
    assert "step 50 of 90" not in terminal.text


def test_notes_on_a_terminal_stay_above_the_bar(terminal):
    with terminal.display.training(0, 90):
        terminal.display.evaluation(30, {"phoneme_error_rate": 0.0512}, best=True)
    assert "step 30: validation PER 5.12% (best so far)\n" in terminal.text


def test_after_training_there_are_plain_lines_again(terminal):
    with terminal.display.training(0, 90):
        pass
    before = len(terminal.text)
    terminal.display.note("evaluate: started")
    assert terminal.text[before:] == "evaluate: started\n"


def test_the_bar_ends_where_training_fails(terminal):
    with pytest.raises(ArithmeticError), terminal.display.training(0, 90):
        raise ArithmeticError
    assert "\x1b[?25h" in terminal.text  # the cursor is shown again
    before = len(terminal.text)
    terminal.display.step(30, NUMBERS)
    assert terminal.text[before:].startswith("step 30 of 90: ")


def test_an_evaluation_says_whether_it_is_the_best(plain):
    numbers = {"phoneme_error_rate": 0.0512, "word_error_rate": 0.25, "loss": 0.5}
    plain.display.evaluation(30, numbers, best=True)
    plain.display.evaluation(60, numbers, best=False)
    assert plain.text.splitlines() == [
        "step 30: validation PER 5.12%, WER 25.00%, loss 0.5000 (best so far)",
        "step 60: validation PER 5.12%, WER 25.00%, loss 0.5000",
    ]


def test_what_looks_like_markup_is_shown_as_it_is(plain):
    plain.display.note("data: [bold]mine[/bold].tsv [1, 2]")
    assert plain.text == "data: [bold]mine[/bold].tsv [1, 2]\n"


def test_a_long_line_is_not_broken(plain):
    plain.display.note("word " * 60)
    assert plain.text.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("phoneme_error_rate", 0.05678, "PER 5.68%"),
        ("word_error_rate", 1.5, "WER 150.00%"),
        ("sentence_error_rate", 0.0, "SER 0.00%"),
        ("loss", 1.23456, "loss 1.2346"),
    ],
)
def test_numbers_are_shown_as_people_say_them(name, value, shown):
    assert f"{display.label(name)} {display.show(name, value)}" == shown

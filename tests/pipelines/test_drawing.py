import matplotlib.image
import numpy as np
import pytest

from keras_models.tasks.explanation import Explanation
from pipelines.drawing import describe, draw

LINE = np.array([0xF2, 0x8E, 0x2B]) / 255  # the colour of the path


def explanation(inputs, outputs, frames, lattice=True):
    """Returns one whose places are as probable as they are near to the path."""
    said = np.searchsorted(frames, np.arange(len(inputs)), side="right")
    distance = np.abs(said[:, None] - np.arange(len(outputs) + lattice))
    certainties = tuple(np.linspace(0.25, 1.0, len(outputs)))
    return Explanation(tuple(inputs), tuple(outputs), 0.5**distance, tuple(frames), certainties)


@pytest.fixture
def drawn(tmp_path):
    """Returns the pixels of a picture, `[height, width, 3]`."""

    def pixels(of):
        draw(of, tmp_path / "picture.png")
        return matplotlib.image.imread(tmp_path / "picture.png")[..., :3]

    return pixels


def _places(picture, colour):
    return np.argwhere(np.abs(picture - colour).max(axis=-1) < 0.02)


def test_the_path_goes_from_the_lower_left_to_the_upper_right(drawn):
    picture = drawn(explanation("machine", "M AH SH IY N".split(), [0, 1, 2, 4, 5]))
    path = _places(picture, LINE)
    assert len(path) > 200
    rows, columns = path.T
    left, right = columns < np.quantile(columns, 0.1), columns > np.quantile(columns, 0.9)
    assert rows[left].min() > rows[right].max()


def test_the_more_probable_a_place_the_darker_it_is(drawn):
    weights = np.array([[0.0, 0.25], [0.5, 1.0]])
    picture = drawn(Explanation(("a", "b"), ("X", "Y"), weights, (1, 1), (0.5, 1.0)))
    height, width = picture.shape[:2]
    shades = [
        picture[int(height * y), int(width * x)].sum()
        for x, y in [(0.25, 0.6), (0.25, 0.2), (0.6, 0.6), (0.6, 0.2)]
    ]
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == 4
    assert not len(_places(picture, LINE))


def test_an_answer_of_no_parts_is_a_picture_of_its_input_alone(drawn):
    picture = drawn(Explanation(("a", "b"), (), np.zeros((2, 0)), (), ()))
    assert picture.std() > 0.01
    assert not len(_places(picture, LINE))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ("漢字かな", "ㄱ 가 각".split()),
        ("हिन्दी", "🙂 \U000e0001".split()),
        ("a \t\u0301\u200b\x00", "$x$ \\frac{ _ ^ % #".split()),
        ("שלום", "سلام x".split()),
        ("x", ()),
    ],
)
def test_every_script_is_drawn(drawn, inputs, outputs):
    """What no font has would be a warning, and that an error."""
    picture = drawn(explanation(inputs, outputs, [0] * len(outputs)))
    assert picture.std() > 0.01


def test_a_picture_grows_with_what_it_shows_up_to_a_limit(drawn):
    small, large, huge = (
        drawn(explanation("ab" * n, ["AH"] * n, range(n))).shape for n in (2, 20, 120)
    )
    assert small[0] < large[0] < huge[0] < 5000
    assert small[1] < large[1] < huge[1] < 5100


def test_words_say_what_is_said_where_and_how_certainly():
    lines = describe(explanation("a b", ["X", "YZ", "X"], [0, 0, 2]))
    assert lines == ["a\tX 0.25  YZ 0.62", "␣", "b\tX 1.00"]

import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.transcription import Text, Transcription
from keras_models.frontends.text import TextFrontend, build_vocabulary, vocabulary_path

CHARACTERS = Text(field="word")
FOLDED = Text(field="word", lowercase=True)
TOKENS = Text(field="sounds", unit="token")
# Marks in one and in two places, Hangul of two and three letters, and no letters at all.
MARKED = ["école ẹ ê é ế", "ệ ǖ ü", "가각 나", "naïve ≠ ="]


@pytest.fixture
def frontend(tmp_path):
    """Returns the frontend of a vocabulary of texts, some together."""

    def build(config, *batches):
        build_vocabulary(map(tf.constant, batches), config, tmp_path)
        return TextFrontend(config, tmp_path)

    return build


def _round_trip(frontend, texts):
    decoded = frontend.decode(frontend.encode(tf.constant(texts)).to_tensor())
    return [text.decode() for text in decoded.numpy()]


def _form(form, texts):
    return [unicodedata.normalize(form, text) for text in texts]


@pytest.mark.parametrize(
    ("config", "texts"),
    [
        (CHARACTERS, ["banana", "", "a  b ", "🙂é"]),
        (CHARACTERS, ["a.b", r"\1 $ (é) [^é]* é+|{2}?"]),
        (FOLDED, ["straße", "étude"]),
        (TOKENS, ["K AE1 T", "", "é"]),
    ],
)
def test_decoding_gives_the_encoded_text_back(frontend, config, texts):
    assert _round_trip(frontend(config, texts), texts) == texts


def test_a_rare_symbol_is_unknown(frontend):
    config = Text(field="word", min_count=2)
    assert _round_trip(frontend(config, ["abac"], ["bd"]), ["abcd"]) == ["ab"]


def test_unknown_symbols_may_be_numbered_as_one(frontend):
    built = frontend(TOKENS, ["A B"])
    numbers = built.encode_all(tf.constant(["A x B", "", "y y"]))
    assert numbers.dtype == tf.int32
    assert numbers.to_list() == [[1, 3, 2], [], [3, 3]]
    assert built.size == 3


def test_the_most_frequent_symbol_comes_first_and_ties_go_by_symbol(frontend):
    built = frontend(CHARACTERS, ["cab", "bab"], ["dé"])
    assert built.symbols == ("<pad>", "b", "a", "c", "d", "é")
    assert built.size == 6
    assert built.encode(tf.constant(["dab"])).to_list() == [[4, 2, 1]]


def test_the_order_of_texts_does_not_change_the_vocabulary(tmp_path):
    texts = [f"{n % 5} {n % 7} é{n % 3}" for n in range(35)]
    for config, order in ((Text(field="a"), texts), (Text(field="b"), texts[::-1])):
        build_vocabulary([tf.constant(order[:11]), tf.constant(order[11:])], config, tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()


def test_an_unknown_symbol_is_left_out_wherever_it_is(frontend):
    built = frontend(CHARACTERS, ["abc"])
    numbers = built.encode(tf.constant(["xaxb", "zc漢🙂", "xyz", ""]))
    assert numbers.to_list() == [[1, 2], [3], [], []]
    assert _round_trip(frontend(TOKENS, ["AH B"]), ["B XX AH", "b", "AHB"]) == ["B AH", "", ""]


@pytest.mark.parametrize("config", [CHARACTERS, FOLDED, TOKENS])
@pytest.mark.parametrize("trained", ["NFC", "NFD"])
def test_composed_and_decomposed_text_has_the_same_numbers(frontend, config, trained):
    built = frontend(config, _form(trained, MARKED))
    numbers = built.encode(tf.constant(_form("NFC", MARKED)))
    assert built.encode(tf.constant(_form("NFD", MARKED))).to_list() == numbers.to_list()
    assert _round_trip(built, _form("NFD", MARKED)) == _form("NFC", MARKED)


def test_every_case_has_the_numbers_of_lower_case(frontend):
    texts = ["Éa", "ÀÉÎ ÖÇ", "ΑΣ", "ДЖ"]
    built = frontend(FOLDED, texts)
    assert "".join(built.symbols[1:]) == "".join(built.symbols[1:]).lower()
    expected = built.encode(tf.constant([text.lower() for text in texts])).to_list()
    assert expected[0] == [built.symbols.index("é"), built.symbols.index("a")]
    for form in ("NFC", "NFD"):
        assert built.encode(tf.constant(_form(form, texts))).to_list() == expected


def test_without_folding_the_cases_are_two_symbols(frontend):
    assert set(frontend(CHARACTERS, ["Aaé É"]).symbols) == {"<pad>", "A", "a", "é", "É", " "}


def test_tokens_are_what_lies_between_any_white_space(frontend):
    built = frontend(TOKENS, ["AH  B\tK "])
    assert set(built.symbols) == {"<pad>", "AH", "B", "K"}
    assert _round_trip(built, [" AH\t\tK", "   "]) == ["AH K", ""]


def test_no_text_and_no_texts_have_no_numbers(frontend):
    for config in (CHARACTERS, FOLDED, TOKENS):
        built = frontend(config, ["a é"])
        assert built.encode(tf.constant(["", ""])).to_list() == [[], []]
        numbers = built.encode(tf.constant([], tf.string))
        assert (numbers.dtype, numbers.shape.as_list()) == (tf.int32, [0, None])
        assert built.decode(tf.zeros([0, 3], tf.int32)).shape == [0]
        assert built.decode(tf.zeros([2, 0], tf.int32)).numpy().tolist() == [b"", b""]


def test_a_vocabulary_of_no_texts_holds_only_padding(frontend):
    built = frontend(CHARACTERS, tf.constant([], tf.string))
    assert built.size == 1
    assert built.encode(tf.constant(["ab"])).to_list() == [[]]


@pytest.mark.parametrize("config", [CHARACTERS, FOLDED, TOKENS])
def test_invalid_utf_8_is_passed_over(frontend, config):
    broken = [b"ab", b"a \xff\xfe b", b"\xc3", b"a\xcc"]
    built = frontend(config, broken)
    numbers = built.encode(tf.constant(broken)).to_list()
    assert numbers[0] == built.encode(tf.constant(["ab"])).to_list()[0] != []
    for text in _round_trip(built, broken):
        assert set(text) <= set("ab �")


def test_padding_is_no_symbol_even_if_a_text_holds_its_name(frontend):
    built = frontend(TOKENS, ["<pad> A <pad> B"])
    assert built.symbols == ("<pad>", "A", "B")
    assert built.encode(tf.constant(["A <pad> B"])).to_list() == [[1, 2]]


def test_line_breaks_and_backslashes_are_symbols(frontend, tmp_path):
    texts = ["a\nb\r\n\u2028", "\\n\\"]
    built = frontend(CHARACTERS, texts)
    assert built.symbols == ("<pad>", "\n", "\\", "\r", "a", "b", "n", "\u2028")
    assert _round_trip(built, texts) == texts
    lines = vocabulary_path(tmp_path, CHARACTERS).read_text(encoding="utf-8").split("\n")
    assert lines == ["<pad>", r"\n", r"\\", r"\r", "a", "b", "n", "\u2028", ""]


def test_tokens_that_look_like_line_breaks_are_none(frontend):
    texts = [r"\n \\n \r \ a\n \\"]
    built = frontend(TOKENS, texts)
    assert set(built.symbols[1:]) == set(texts[0].split())
    assert _round_trip(built, texts) == texts
    assert built.encode(tf.constant(["\n", "\\\\\\"])).to_list() == [[], []]


@pytest.mark.parametrize("config", [FOLDED, TOKENS])
def test_the_symbols_that_a_vocabulary_lacks_are_counted(frontend, config):
    built = frontend(config, ["ab c", "\\"])
    separated = config.unit == "token"
    texts = ["c ab x", "", "\\ y y"] if separated else ["caÄb", "", "\\yy", "e\u0301"]
    expected = [3, 6] if separated else [5, 9]
    assert built.unknown(tf.constant(texts)).numpy().tolist() == expected


def test_padding_after_the_numbers_decodes_to_nothing(frontend):
    built = frontend(TOKENS, ["A B"])
    decoded = built.decode(tf.constant([[1, 2, 0, 0], [2, 0, 0, 0]]))
    assert decoded.numpy().tolist() == [b"A B", b"B"]


@pytest.mark.parametrize("config", [FOLDED, TOKENS])
def test_eager_graph_and_tf_data_agree(frontend, config):
    texts = [*MARKED, *_form("NFD", MARKED), "", "É unbekannt"]
    built = frontend(config, MARKED)
    eager = built.encode(tf.constant(texts)).to_list()
    signature = [tf.TensorSpec([None], tf.string)]
    in_graph = tf.function(built.encode, input_signature=signature)
    assert in_graph(tf.constant(texts)).to_list() == eager
    data = tf.data.Dataset.from_tensor_slices(texts).batch(3).map(built.encode)
    assert [row for batch in data for row in batch.to_list()] == eager


def test_a_number_is_the_line_of_its_symbol_in_the_file(frontend, tmp_path):
    built = frontend(CHARACTERS, ["abé"])
    lines = vocabulary_path(tmp_path, CHARACTERS).read_text(encoding="utf-8").splitlines()
    numbers = np.squeeze(built.encode(tf.constant(lines[1:])).to_list(), axis=1)
    assert numbers.tolist() == [1, 2, 3]


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"word\.txt"):
        TextFrontend(CHARACTERS, tmp_path)


def test_two_texts_of_one_field_are_refused():
    with pytest.raises(ValueError, match=r"`input\.field` and `output\.field` must differ.*'word'"):
        Transcription(input=CHARACTERS, output=FOLDED)


def _symbols_in_pieces(frontend, pieces):
    """Returns the symbols of texts that come in pieces `[pieces, B]`."""
    rest = tf.fill([len(pieces[0])], "")
    found = []
    for piece in pieces:
        settled, rest = frontend.settle(rest + piece)
        found.append(frontend.encode(settled))
    return tf.concat([*found, frontend.encode(rest)], axis=1).to_list()


BROKEN = [b"caf\xc3\xa9 \xff\xff\xff\xe1\xba", b"\x80e\xcc", b"\xf0\x9f\x98\xff\xc3", b"\xcc\x81"]


@pytest.mark.parametrize("config", [CHARACTERS, FOLDED, Text(field="word", unit="token")])
def test_a_text_cut_anywhere_has_the_symbols_of_the_whole(frontend, config):
    built = frontend(config, [*MARKED, "e a\tb\n c", "🙂"])
    forms = [text.encode() for form in ("NFC", "NFD") for text in _form(form, MARKED)]
    for text in [*forms, b" e  a\tb\n", "é🙂É".encode(), b"", *BROKEN, "E\u0301 Ǖ".encode()]:
        [expected] = built.encode(tf.constant([text])).to_list()
        cuts = range(len(text) + 1)
        in_two = [[text[:cut] for cut in cuts], [text[cut:] for cut in cuts]]
        assert _symbols_in_pieces(built, in_two) == [expected] * len(cuts), text
        if text:
            byte_by_byte = [[text[n : n + 1]] for n in range(len(text))]
            assert _symbols_in_pieces(built, byte_by_byte) == [expected], text


@pytest.mark.parametrize(
    ("config", "text", "settled"),
    [
        (CHARACTERS, "xe", "x"),  # of which é and ế may be made
        (CHARACTERS, "e\u0302", ""),
        (CHARACTERS, "ea", "ea"),
        (CHARACTERS, "é", "é"),
        (CHARACTERS, "E", "E"),
        (FOLDED, "E", ""),
        (TOKENS, "K AE1 T", "K AE1 "),
        (TOKENS, "K AE1 T ", "K AE1 T "),
        (TOKENS, "K", ""),
    ],
)
def test_no_more_waits_than_what_may_still_become_another_symbol(frontend, config, text, settled):
    found, rest = frontend(config, ["éế abx"]).settle(tf.constant([text]))
    assert (found.numpy()[0] + rest.numpy()[0]).decode() == text
    assert found.numpy()[0].decode() == settled


def test_nothing_waits_where_no_character_has_marks(frontend):
    settled, rest = frontend(CHARACTERS, ["abc"]).settle(tf.constant(["ab", ""]))
    assert settled.numpy().tolist() == [b"ab", b""]
    assert rest.numpy().tolist() == [b"", b""]


def test_in_a_stream_a_capital_sigma_is_always_folded_alike(frontend):
    built = frontend(FOLDED, ["οδσς"])
    whole = built.encode(tf.constant(["οδοσ"])).to_list()
    for cut in range(5):
        assert _symbols_in_pieces(built, [["ΟΔΟΣ"[:cut]], ["ΟΔΟΣ"[cut:]]]) == whole


@pytest.mark.parametrize(("config", "whole"), [(CHARACTERS, "ab a"), (TOKENS, "a b a")])
def test_decoded_parts_are_joined_to_what_the_whole_is_decoded_to(frontend, config, whole):
    built = frontend(config, [whole])
    numbers = built.encode(tf.constant([whole])).to_tensor()
    for cut in range(numbers.shape[1] + 1):
        parts = built.decode(numbers[:, :cut]), built.decode(numbers[:, cut:])
        assert built.join(*parts).numpy()[0].decode() == whole

import dataclasses
import json
import tracemalloc
import unicodedata

import pytest

from keras_models.configs.records import Field
from pipelines.datasets.splits import SPLITS, DataError, split_of
from pipelines.sources import own, tables

FIELDS = (Field("text"), Field("pronunciation"))
GOOD = b"the\tDH AH\n"


def write(folder, **contents):
    paths = {}
    for split, content in contents.items():
        paths[split] = folder / f"mine-{split}.tsv"
        paths[split].write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


def prepare_files(paths, folder, skip_bad_lines=False):
    return own.prepare(paths, "tsv", FIELDS, {}, folder / "prepared", skip_bad_lines)


def prepare(folder, *, skip_bad_lines=False, **contents):
    """Prepares one file a split; a split without contents gets a good one."""
    contents = dict.fromkeys(SPLITS, GOOD) | contents
    return prepare_files(write(folder, **contents), folder, skip_bad_lines)


def records(folder, split="train"):
    """Returns the pairs of a prepared split."""
    return [
        tuple(record[field.name].decode() for field in FIELDS)
        for record in own.read(folder / "prepared", split, FIELDS).unbatch().as_numpy_iterator()
    ]


def words(count):
    return "".join(f"word{i}\tW {i}\n" for i in range(count))


def test_a_file_of_each_split_comes_back_as_it_was(tmp_path):
    prepared = prepare(tmp_path, train="a\tA\nb\tB B\n", validation="c\tC\n", test="d\tD\n")
    assert prepared.examples == {"train": 2, "validation": 1, "test": 1}
    assert prepared.skipped == {"train": 0, "validation": 0, "test": 0}
    assert records(tmp_path) == [("a", "A"), ("b", "B B")]
    assert records(tmp_path, "validation") == [("c", "C")]
    assert records(tmp_path, "test") == [("d", "D")]


def test_the_counts_are_written_down(tmp_path):
    prepared = prepare(tmp_path, train=b"a\tA\nbad\n", skip_bad_lines=True)
    record = json.loads((tmp_path / "prepared" / "prepared.json").read_text())
    assert (
        record
        == dataclasses.asdict(prepared)
        == dataclasses.asdict(own.prepared(tmp_path / "prepared"))
    )


def test_without_validation_and_test_the_train_file_is_split_by_its_first_column(tmp_path):
    paths = write(tmp_path, train=words(400) + words(400).replace("\tW", "\tV"))
    prepared = prepare_files(paths, tmp_path)
    assert sum(prepared.examples.values()) == 800
    for split in SPLITS:
        texts = [text for text, _ in records(tmp_path, split)]
        assert {split_of(text) for text in texts} == {split}
        assert len(texts) == prepared.examples[split]


@pytest.mark.parametrize(("given", "missing"), [("test", "validation"), ("validation", "test")])
def test_only_the_missing_split_is_taken_from_the_train_file(tmp_path, given, missing):
    paths = write(tmp_path, train=words(200), **{given: GOOD})
    prepared = prepare_files(paths, tmp_path)
    texts = [f"word{i}" for i in range(200)]
    taken = [text for text in texts if split_of(text) == missing]
    assert [text for text, _ in records(tmp_path, missing)] == taken
    assert prepared.examples == {given: 1, missing: len(taken), "train": 200 - len(taken)}


def test_a_train_file_too_short_to_be_split_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"too short to be split: none .* went to validation"):
        prepare_files(write(tmp_path, train=words(3)), tmp_path)


def test_text_is_brought_into_nfc(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café\tK AE F EY\n")
    prepare(tmp_path, train=decomposed)
    assert records(tmp_path) == [("café", "K AE F EY")]


def test_both_forms_of_a_text_are_in_the_same_split(tmp_path):
    train = words(200) + "".join(f"é{i}\tcomposed\ne\u0301{i}\tdecomposed\n" for i in range(200))
    prepare_files(write(tmp_path, train=train), tmp_path)
    for split in SPLITS:
        forms = [form for text, form in records(tmp_path, split) if text.startswith("é")]
        assert forms.count("composed") == forms.count("decomposed") > 0


def test_a_byte_order_mark_is_taken_off(tmp_path):
    prepare(tmp_path, train=b"\xef\xbb\xbfa\tA\n")
    assert records(tmp_path) == [("a", "A")]


def test_crlf_reads_as_lf(tmp_path):
    prepare(tmp_path, train=b"a\tA\r\nb\tB\r\n")
    assert records(tmp_path) == [("a", "A"), ("b", "B")]


def test_a_last_line_without_an_end_is_read(tmp_path):
    assert prepare(tmp_path, train=b"a\tA\nb\tB").examples["train"] == 2


def test_blank_lines_are_passed_over_and_not_counted(tmp_path):
    prepared = prepare(tmp_path, train=b"\n\na\tA\n  \r\nb\tB\n\n", skip_bad_lines=True)
    assert prepared.examples["train"] == 2
    assert prepared.skipped["train"] == 0


def test_white_space_around_a_field_is_taken_off_and_inside_it_is_kept(tmp_path):
    prepare(tmp_path, train=" a  b \t A  B \n")
    assert records(tmp_path) == [("a  b", "A  B")]


def test_other_line_ends_of_unicode_do_not_end_a_line(tmp_path):
    prepare(tmp_path, train="a\u2028b\x0bc\x85d\tA\n")
    assert records(tmp_path) == [("a\u2028b\x0bc\x85d", "A")]


def test_two_reads_are_equal(tmp_path):
    prepare(tmp_path, train=words(1000))
    expected = [(f"word{i}", f"W {i}") for i in range(1000)]
    assert records(tmp_path) == records(tmp_path) == expected


def test_preparing_again_changes_nothing(tmp_path):
    first = prepare(tmp_path, train=words(100))
    before = {split: records(tmp_path, split) for split in SPLITS}
    assert prepare(tmp_path, train=words(100)) == first
    assert {split: records(tmp_path, split) for split in SPLITS} == before


BAD_LINES = {
    b"word": "1 column, not 2",
    b"a\tA\tB": "3 columns, not 2",
    b"a\tA\t": "3 columns, not 2",
    b"\tA": "`text` is empty",
    b"a\t  ": "`pronunciation` is empty",
    b"\t": "`text` is empty",
    b"na\xefve\tN": "not UTF-8: byte 0xef at position 3",
    b"a\rb\tA": "a NUL or a carriage return",
    b"a\0\tA": "a NUL or a carriage return",
}


@pytest.mark.parametrize(("line", "complaint"), BAD_LINES.items(), ids=BAD_LINES.values())
@pytest.mark.parametrize("split", SPLITS)
def test_a_bad_line_is_an_error_that_names_file_line_and_remedy(tmp_path, line, complaint, split):
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, **{split: b"a\tA\n\n" + line + b"\nb\tB\n"})
    message = str(caught.value)
    assert message.startswith("1 bad line:\n")
    assert f"{tmp_path / f'mine-{split}.tsv'}:3: {complaint}" in message
    assert "--data.skip_bad_lines" in message


@pytest.mark.parametrize("line", BAD_LINES, ids=BAD_LINES.values())
def test_a_bad_line_is_skipped_and_counted_on_demand(tmp_path, line):
    train = b"a\tA\n" + line + b"\nb\tB\n"
    prepared = prepare(tmp_path, train=train, skip_bad_lines=True)
    assert records(tmp_path) == [("a", "A"), ("b", "B")]
    assert prepared.skipped == {"train": 1, "validation": 0, "test": 0}


def test_the_first_five_bad_lines_are_shown_and_all_are_counted(tmp_path):
    with pytest.raises(DataError, match=r"^12 bad lines, of which the first 5:") as caught:
        prepare(tmp_path, train=GOOD + b"bad\n" * 8, validation=GOOD + b"bad\n" * 4)
    train = tmp_path / "mine-train.tsv"
    places = [line.split(": ")[0].strip() for line in str(caught.value).splitlines()[1:-1]]
    assert places == [f"{train}:{number}" for number in range(2, 7)]


def test_bad_lines_of_several_files_are_told_together(tmp_path):
    with pytest.raises(DataError, match=r"^2 bad lines:") as caught:
        prepare(tmp_path, train=GOOD + b"bad\n", test=GOOD + b"\tbad\n")
    assert f"{tmp_path / 'mine-train.tsv'}:2: 1 column" in str(caught.value)
    assert f"{tmp_path / 'mine-test.tsv'}:2: `text` is empty" in str(caught.value)


@pytest.mark.parametrize("skip_bad_lines", [False, True])
def test_a_file_of_bad_lines_only_is_an_error_even_when_they_are_skipped(tmp_path, skip_bad_lines):
    with pytest.raises(DataError, match=r"No line of .*mine-train.tsv can be used. 2 bad lines:"):
        prepare(tmp_path, train=b"one\ntwo\n", skip_bad_lines=skip_bad_lines)


def test_utf_16_is_an_error_even_when_bad_lines_are_skipped(tmp_path):
    with pytest.raises(DataError, match="not UTF-8"):
        prepare(tmp_path, train="a\tA\nb\tB\n".encode("utf-16"), skip_bad_lines=True)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=["no", "blank", "BOM"])
@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_file_is_an_error(tmp_path, content, split):
    with pytest.raises(DataError, match=rf"The {split} file .*mine-{split}.tsv is empty"):
        prepare(tmp_path, **{split: content})


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"The train file .*none.tsv does not exist"):
        prepare_files({"train": tmp_path / "none.tsv"}, tmp_path)


def test_a_folder_is_an_error(tmp_path):
    paths = {"train": write(tmp_path, train=GOOD)["train"], "test": tmp_path}
    with pytest.raises(DataError, match=r"The test file .* is a folder"):
        prepare_files(paths, tmp_path)


def test_a_line_without_end_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"mine-train.tsv:2: longer than 1048576 bytes"):
        prepare(tmp_path, train=GOOD + b"x" * (tables.LONGEST_LINE + 1), skip_bad_lines=True)


def test_the_users_own_file_is_never_overwritten(tmp_path):
    path = tmp_path / "prepared" / "train.tsv"
    path.parent.mkdir()
    path.write_text(words(200))
    with pytest.raises(DataError, match="would be overwritten"):
        prepare_files({"train": path}, tmp_path)
    assert path.read_text() == words(200)


def test_an_error_leaves_what_was_prepared_before(tmp_path):
    prepare(tmp_path, train=words(100))
    folder = tmp_path / "prepared"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == ["prepared.json", *(f"{split}.tfrecord" for split in sorted(SPLITS))]
    with pytest.raises(DataError):
        prepare(tmp_path, train=words(50), test=b"bad\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_preparing_takes_no_more_memory_for_a_longer_file(tmp_path):
    paths = write(tmp_path, train=words(50_000))
    tracemalloc.start()
    prepare_files(paths, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < paths["train"].stat().st_size / 2

import json
import tracemalloc
import unicodedata

import pytest
import tensorflow as tf

from pipelines.datasets import tsv
from pipelines.datasets.splits import SPLITS, DataError, split_of

COLUMNS = ("text", "pronunciation")
GOOD = b"the\tDH AH\n"


def write(folder, **contents):
    paths = {}
    for split, content in contents.items():
        paths[split] = folder / f"mine-{split}.tsv"
        paths[split].write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


def prepare(folder, *, skip_bad_lines=False, **contents):
    """Prepares one file a split; a split without contents gets a good one."""
    contents = dict.fromkeys(SPLITS, GOOD) | contents
    paths = write(folder, **contents)
    return tsv.prepare(paths, COLUMNS, folder / "prepared", skip_bad_lines=skip_bad_lines)


def lines(path):
    return path.read_bytes().decode().splitlines()


def records(path):
    return [
        tuple(record[column].decode() for column in COLUMNS)
        for record in tsv.read(path, COLUMNS).as_numpy_iterator()
    ]


def words(count):
    return "".join(f"word{i}\tW {i}\n" for i in range(count))


def test_a_file_of_each_split_comes_back_as_it_was(tmp_path):
    prepared = prepare(tmp_path, train="a\tA\nb\tB B\n", validation="c\tC\n", test="d\tD\n")
    assert prepared.examples == {"train": 2, "validation": 1, "test": 1}
    assert prepared.skipped == {"train": 0, "validation": 0, "test": 0}
    assert records(prepared.paths["train"]) == [("a", "A"), ("b", "B B")]
    assert records(prepared.paths["validation"]) == [("c", "C")]
    assert records(prepared.paths["test"]) == [("d", "D")]


def test_the_counts_are_written_down(tmp_path):
    prepared = prepare(tmp_path, train=b"a\tA\nbad\n", skip_bad_lines=True)
    record = json.loads((tmp_path / "prepared" / "prepared.json").read_text())
    assert record == {"examples": prepared.examples, "skipped": prepared.skipped}


def test_read_gives_scalar_strings_under_the_names_of_the_columns(tmp_path):
    prepared = prepare(tmp_path)
    spec = tsv.read(prepared.paths["train"], ("source", "target")).element_spec
    assert spec == dict.fromkeys(("source", "target"), tf.TensorSpec([], tf.string))


def test_without_validation_and_test_the_train_file_is_split_by_its_first_column(tmp_path):
    paths = write(tmp_path, train=words(400) + words(400).replace("\tW", "\tV"))
    prepared = tsv.prepare(paths, COLUMNS, tmp_path / "prepared")
    assert sum(prepared.examples.values()) == 800
    for split, path in prepared.paths.items():
        texts = [line.partition("\t")[0] for line in lines(path)]
        assert {split_of(text) for text in texts} == {split}
        assert len(texts) == prepared.examples[split]


@pytest.mark.parametrize(("given", "missing"), [("test", "validation"), ("validation", "test")])
def test_only_the_missing_split_is_taken_from_the_train_file(tmp_path, given, missing):
    paths = write(tmp_path, train=words(200), **{given: GOOD})
    prepared = tsv.prepare(paths, COLUMNS, tmp_path / "prepared")
    texts = [f"word{i}" for i in range(200)]
    taken = [text for text in texts if split_of(text) == missing]
    assert [text for text, _ in records(prepared.paths[missing])] == taken
    assert prepared.examples == {given: 1, missing: len(taken), "train": 200 - len(taken)}


def test_a_train_file_too_short_to_be_split_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"too short to be split: none .* went to validation"):
        tsv.prepare(write(tmp_path, train=words(3)), COLUMNS, tmp_path / "prepared")


def test_text_is_brought_into_nfc(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café\tK AE F EY\n")
    prepared = prepare(tmp_path, train=decomposed)
    assert lines(prepared.paths["train"]) == ["café\tK AE F EY"]


def test_both_forms_of_a_text_are_in_the_same_split(tmp_path):
    train = words(200) + "".join(f"é{i}\tcomposed\ne\u0301{i}\tdecomposed\n" for i in range(200))
    prepared = tsv.prepare(write(tmp_path, train=train), COLUMNS, tmp_path / "prepared")
    for path in prepared.paths.values():
        forms = [line.split("\t")[1] for line in lines(path) if line.startswith("é")]
        assert forms.count("composed") == forms.count("decomposed") > 0


def test_a_byte_order_mark_is_taken_off(tmp_path):
    prepared = prepare(tmp_path, train=b"\xef\xbb\xbfa\tA\n")
    assert records(prepared.paths["train"]) == [("a", "A")]


def test_crlf_reads_as_lf(tmp_path):
    prepared = prepare(tmp_path, train=b"a\tA\r\nb\tB\r\n")
    assert prepared.paths["train"].read_bytes() == b"a\tA\nb\tB\n"


def test_a_last_line_without_an_end_is_read(tmp_path):
    assert prepare(tmp_path, train=b"a\tA\nb\tB").examples["train"] == 2


def test_blank_lines_are_passed_over_and_not_counted(tmp_path):
    prepared = prepare(tmp_path, train=b"\n\na\tA\n  \r\nb\tB\n\n", skip_bad_lines=True)
    assert prepared.examples["train"] == 2
    assert prepared.skipped["train"] == 0


def test_white_space_around_a_field_is_taken_off_and_inside_it_is_kept(tmp_path):
    prepared = prepare(tmp_path, train=" a  b \t A  B \n")
    assert lines(prepared.paths["train"]) == ["a  b\tA  B"]


def test_other_line_ends_of_unicode_do_not_end_a_line(tmp_path):
    prepared = prepare(tmp_path, train="a\u2028b\x0bc\x85d\tA\n")
    assert records(prepared.paths["train"]) == [("a\u2028b\x0bc\x85d", "A")]


def test_two_reads_are_equal(tmp_path):
    prepared = prepare(tmp_path, train=words(1000))
    first = records(prepared.paths["train"])
    assert first == records(prepared.paths["train"])
    assert first == [(f"word{i}", f"W {i}") for i in range(1000)]


def test_a_saved_iterator_goes_on_where_it_stopped(tmp_path):
    path = prepare(tmp_path, train=words(600)).paths["train"]
    iterator = iter(tsv.read(path, COLUMNS))
    for _ in range(300):
        next(iterator)
    saved = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "checkpoint"))
    resumed = iter(tsv.read(path, COLUMNS))
    tf.train.Checkpoint(iterator=resumed).restore(saved).assert_consumed()
    rest = [record["text"].numpy().decode() for record in resumed]
    assert rest == [f"word{i}" for i in range(300, 600)]


def test_preparing_again_changes_nothing(tmp_path):
    first = prepare(tmp_path, train=words(100))
    contents = [path.read_bytes() for path in first.paths.values()]
    assert prepare(tmp_path, train=words(100)) == first
    assert [path.read_bytes() for path in first.paths.values()] == contents


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
    assert records(prepared.paths["train"]) == [("a", "A"), ("b", "B")]
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
        tsv.prepare({"train": tmp_path / "none.tsv"}, COLUMNS, tmp_path / "prepared")
    with pytest.raises(DataError, match=r"none.tsv is not a file"):
        tsv.read(tmp_path / "none.tsv", COLUMNS)


def test_a_folder_is_an_error(tmp_path):
    paths = {"train": write(tmp_path, train=GOOD)["train"], "test": tmp_path}
    with pytest.raises(DataError, match=r"The test file .* is a folder"):
        tsv.prepare(paths, COLUMNS, tmp_path / "prepared")
    with pytest.raises(DataError, match="is not a file"):
        tsv.read(tmp_path, COLUMNS)


def test_a_line_without_end_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"mine-train.tsv:2: longer than 1048576 bytes"):
        prepare(tmp_path, train=GOOD + b"x" * (tsv.LONGEST_LINE + 1), skip_bad_lines=True)


def test_the_users_own_file_is_never_overwritten(tmp_path):
    (tmp_path / "train.tsv").write_text(words(200))
    with pytest.raises(DataError, match="would be overwritten"):
        tsv.prepare({"train": tmp_path / "train.tsv"}, COLUMNS, tmp_path)
    assert (tmp_path / "train.tsv").read_text() == words(200)


def test_an_error_leaves_what_was_prepared_before(tmp_path):
    folder = prepare(tmp_path, train=words(100)).paths["train"].parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == ["prepared.json", "test.tsv", "train.tsv", "validation.tsv"]
    with pytest.raises(DataError):
        prepare(tmp_path, train=words(50), test=b"bad\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_reading_a_file_that_was_not_prepared_stops_at_a_bad_line(tmp_path):
    path = write(tmp_path, train=b"a\tA\nb\nc\tC\tC\n")["train"]
    with pytest.raises(tf.errors.InvalidArgumentError):
        records(path)


def test_preparing_takes_no_more_memory_for_a_longer_file(tmp_path):
    paths = write(tmp_path, train=words(50_000))
    tracemalloc.start()
    tsv.prepare(paths, COLUMNS, tmp_path / "prepared")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < paths["train"].stat().st_size / 2


@pytest.mark.parametrize("columns", [("text",), ("text", "text"), ("", "text"), ("a", "b", "c")])
def test_columns_must_be_two_different_names(tmp_path, columns):
    with pytest.raises(ValueError, match="`columns` must hold two different names"):
        tsv.prepare(write(tmp_path, train=GOOD), columns, tmp_path / "prepared")


@pytest.mark.parametrize("splits", [(), ("test",), ("train", "dev")])
def test_paths_must_be_those_of_splits(tmp_path, splits):
    with pytest.raises(ValueError, match="`paths` must have 'train'"):
        tsv.prepare(write(tmp_path, **dict.fromkeys(splits, GOOD)), COLUMNS, tmp_path / "prepared")

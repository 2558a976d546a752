"""What a user's files of each format give, and what is wrong with those that are no use."""

import io
import json
import wave

import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.records import Field
from pipelines.datasets.splits import SPLITS, DataError
from pipelines.job import Data, Origin
from pipelines.sources import open_source, records

TEXT, SOUND = Field("text"), Field("sound")
SERIES, LABEL = Field("series", "float32", (None,)), Field("label", "int64")


@pytest.fixture
def opened(tmp_path):
    """Returns the source of one file, which is all splits."""

    def of(path, *fields, fresh=True, **given):
        given = {"train": path, "validation": path, "test": path, **given}
        return open_source(Data(**given), fields, tmp_path / "data", fresh)

    return of


def plain(source, split="train"):
    """Returns the records of a split, text as text and numbers as lists."""
    return [
        {name: _plain(value) for name, value in record.items()}
        for record in source.splits[split].unbatch()
    ]


def _plain(value):
    if isinstance(value, tf.RaggedTensor):
        return value.to_list()
    value = value.numpy()
    return value.decode() if isinstance(value, bytes) else value.tolist()


def file(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Tables.


def test_columns_of_a_csv_are_those_of_its_header_in_any_order(tmp_path, opened):
    path = file(tmp_path, "a.csv", '\ufeffsound,id,text\r\n"A, B",1,ab\r\n\n"say ""C""\nD",2,cd\n')
    expected = [{"text": "ab", "sound": "A, B"}, {"text": "cd", "sound": 'say "C"\nD'}]
    assert plain(opened(path, TEXT, SOUND)) == expected
    named = opened(path, TEXT, LABEL, features={"label": "id", "text": "sound"})
    assert plain(named) == [{"text": "A, B", "label": 1}, {"text": 'say "C"\nD', "label": 2}]


def test_a_series_is_the_numbers_of_a_cell_or_of_several(tmp_path, opened):
    in_one = file(tmp_path, "one.csv", "label,series\n3,0.5 -1e3 2\n4,7\n")
    expected = [{"series": [0.5, -1000, 2], "label": 3}, {"series": [7], "label": 4}]
    assert plain(opened(in_one, SERIES, LABEL)) == expected
    in_many = file(tmp_path, "many.csv", "label,t1,t2,t3,note\n3,0.5,-1e3,2,x\n4,7,8,9,y\n")
    expected = [{"series": [0.5, -1000, 2], "label": 3}, {"series": [7, 8, 9], "label": 4}]
    assert plain(opened(in_many, SERIES, LABEL, features={"series": "t1:t3"})) == expected
    numbered = file(tmp_path, "many.tsv", "3\t0.5\t-1e3\t2\n4\t7\t8\t9\n")
    features = {"label": "1", "series": "2:"}
    assert plain(opened(numbered, SERIES, LABEL, features=features)) == expected


def test_tokens_are_the_words_of_a_cell(tmp_path, opened):
    path = file(tmp_path, "a.tsv", "the  cat sat\tD N V\n")
    fields = Field("words", shape=(None,)), Field("tags", shape=(None,))
    (record,) = opened(path, *fields).splits["train"]
    assert record["words"].to_list() == [[b"the", b"cat", b"sat"]]
    assert record["tags"].to_list() == [[b"D", b"N", b"V"]]


BAD_TABLES = {
    "series,label\n1 2,3\n1,x\n": "3: `label` is no int64: 'x'",
    "series,label\n1 nan,3\n": "2: `series` holds a number that is not finite",
    "series,label\n1 1e300,3\n": "2: `series` holds a number too large for float32",
    "series,label\n1,3.5\n": "2: `label` is no int64: '3.5'",
    'series,label\n" ",3\n': "2: `series` is of length 0",
    "series,label\n1,3,4\n": "2: 3 columns, not 2 as in the header",
    'series,label\n1,"3\n': "2: unexpected end of data",
    "series,class\n1,3\n": "1: there is no column 'label', but series, class",
    "": "1: there is no column 'series', but none",
}


@pytest.mark.parametrize(("content", "complaint"), BAD_TABLES.items(), ids=BAD_TABLES.values())
def test_a_bad_row_is_told_with_file_and_line(tmp_path, opened, content, complaint):
    path = file(tmp_path, "bad.csv", content)
    with pytest.raises(DataError) as caught:
        opened(path, SERIES, LABEL)
    assert f"{path}:{complaint}" in str(caught.value)


def test_a_row_that_is_not_utf_8_is_told_with_file_and_line(tmp_path, opened):
    path = file(tmp_path, "bad.csv", b"text,sound\na,A\nb\xff,B\n")
    with pytest.raises(DataError, match=r"bad.csv:3: `text` is not UTF-8"):
        opened(path, TEXT, SOUND)


def test_bad_rows_are_skipped_and_counted_on_demand(tmp_path, opened):
    path = file(tmp_path, "a.csv", "series,label\n1,1\nx,2\n3,3\n")
    source = opened(path, SERIES, LABEL, skip_bad_lines=True)
    assert [record["label"] for record in plain(source)] == [1, 3]
    assert source.skipped_lines == 3


# JSON lines.


def test_values_of_json_lines_are_found_by_their_names_and_within_others(tmp_path, opened):
    lines = [{"text": "a\nb", "x": {"y": [1, 2.5]}, "label": 3}, {"text": "c", "x": {"y": [4]}}]
    lines[1]["label"] = 5
    path = file(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    found = plain(opened(path, TEXT, SERIES, LABEL, features={"series": "x/y"}))
    assert found == [
        {"text": "a\nb", "series": [1, 2.5], "label": 3},
        {"text": "c", "series": [4], "label": 5},
    ]


BAD_JSON = {
    '{"text": "a"': "no JSON: Expecting ',' delimiter",
    '["a"]': "no JSON object",
    '{"sound": "A"}': "there is no `text`",
    '{"text": 1.5, "sound": "A"}': "`text` is no text: 1.5",
    '{"text": " ", "sound": "A"}': "`text` is empty",
    '{"text": "a\\u0000", "sound": "A"}': "`text` holds a NUL",
}


@pytest.mark.parametrize(("line", "complaint"), BAD_JSON.items(), ids=BAD_JSON.values())
def test_a_bad_line_of_json_is_told_with_file_and_line(tmp_path, opened, line, complaint):
    path = file(tmp_path, "bad.jsonl", '{"text": "a", "sound": "A"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        opened(path, TEXT, SOUND)
    assert f"{path}:2: {complaint}" in str(caught.value)


def test_an_array_of_another_shape_is_told_with_both(tmp_path, opened):
    field = Field("frames", "float32", (None, 2))
    path = file(tmp_path, "bad.jsonl", '{"frames": [[1, 2, 3]]}\n')
    with pytest.raises(DataError, match=r"`frames` has 1 by 3 values, not any by 2"):
        opened(path, field)


# NPZ.


def test_arrays_come_row_by_row_and_sequences_by_their_lengths(tmp_path, opened):
    path = tmp_path / "a.npz"
    frames = np.arange(12, dtype=np.float64).reshape(2, 3, 2)
    images = np.arange(2 * 4 * 5).reshape(2, 4, 5, 1)
    names = np.array(["one", "zwei"])
    np.savez(path, x=frames, x_lengths=[3, 1], images=images, label=names)
    fields = (
        Field("frames", "float32", (None, 2)),
        Field("images", "uint8", (None, None, 1)),
        Field("label"),
    )
    source = opened(path, *fields, features={"frames": "x"})
    (batch,) = source.splits["train"]
    assert batch["frames"].to_list() == [frames[0].tolist(), frames[1, :1].tolist()]
    assert batch["images"].to_list() == images.tolist()
    assert (batch["frames"].dtype, batch["images"].dtype) == (tf.float32, tf.uint8)
    assert batch["label"].numpy().tolist() == [b"one", b"zwei"]


BAD_ARRAYS = {
    "other count": ({"series": np.ones([2, 3]), "label": [1]}, r"as many records.*'label': 1"),
    "no array": ({"series": np.ones([2, 3])}, r"must hold the arrays .*'label'.* It has: series"),
    "not finite": (
        {"series": [[1.0, 2.0], [3.0, np.inf]], "label": [1, 2]},
        r"bad.npz, record 1: `series` holds a number that is not finite",
    ),
    "not whole": ({"series": [[1.0]], "label": [1.5]}, r"record 0: `label` is no int64"),
    "objects": ({"series": np.array([[1], [2, 3]], object), "label": [1, 2]}, r"can be read"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays_are_told_with_file_and_record(tmp_path, opened, kind):
    arrays, complaint = BAD_ARRAYS[kind]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=complaint):
        opened(tmp_path / "bad.npz", SERIES, LABEL)


def test_what_is_no_npz_is_told(tmp_path, opened):
    with pytest.raises(DataError, match=r"bad.npz is no NPZ file that can be read"):
        opened(file(tmp_path, "bad.npz", b"PK nothing"), SERIES, LABEL)


# Folders.


def png(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, [height, width, 3], dtype=np.uint8)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, pixels, format="png")
    return buffer.getvalue(), pixels


def wav(samples, rate=8000, channels=1):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setparams((channels, 2, rate, 0, "NONE", ""))
        writer.writeframes(np.asarray(samples, "<i2").tobytes())
    return buffer.getvalue()


def test_an_image_is_its_file_or_its_pixels_and_its_class_the_folder(tmp_path, opened):
    (small, pixels), (large, others) = png(2, 3), png(4, 5, 1)
    file(tmp_path, "images/dog/a.png", large)
    file(tmp_path, "images/cat/deep/b.PNG", small)
    file(tmp_path, "images/cat/.hidden", b"")
    raw = opened(tmp_path / "images", Field("image"), Field("label"))
    (batch,) = raw.splits["train"]
    assert batch["image"].numpy().tolist() == [small, large]
    assert batch["label"].numpy().tolist() == [b"cat", b"dog"]
    decoded = opened(tmp_path / "images", Field("image", "uint8", (None, None, 3)), Field("label"))
    assert [record["image"] for record in plain(decoded)] == [pixels.tolist(), others.tolist()]


def test_a_sound_is_its_file_or_its_samples(tmp_path, opened):
    contents = wav([0, 16384, -32768]), wav([8192])
    for n, content in enumerate(contents):
        file(tmp_path, f"sounds/class{n}/a.wav", content)
    raw = opened(tmp_path / "sounds", Field("audio"), Field("label"))
    assert next(iter(raw.splits["train"]))["audio"].numpy().tolist() == list(contents)
    decoded = opened(tmp_path / "sounds", Field("audio", "float32", (None,)), Field("label"))
    assert [record["audio"] for record in plain(decoded)] == [[0, 0.5, -1], [0.25]]


def test_a_folder_is_split_by_its_files_names_wherever_it_lies(tmp_path):
    content, _ = png(1, 1)
    seen = []
    for root in ("here", "there"):
        for n in range(60):
            file(tmp_path, f"{root}/cat/{n}.png", content)
        data = Data(train=tmp_path / root)
        source = open_source(data, [Field("image"), Field("label")], tmp_path / f"data-{root}")
        seen.append([sum(1 for _ in source.splits[split].unbatch()) for split in SPLITS])
    assert seen[0] == seen[1]
    assert sum(seen[0]) == 60
    assert min(seen[0]) > 0


BAD_FILES = {
    "broken": ("cat/b.png", png(4, 4)[0][:60], r"cat/b.png: .*(Invalid PNG|PNG|png)"),
    "no image": ("cat/b.png", b"nothing", r"cat/b.png: Unknown image file format"),
    "other": ("cat/b.txt", b"text", r"cat/b.txt: neither an image nor a sound"),
    "no class": ("b.png", png(2, 2)[0], r"b.png: in no folder that is called as its class"),
    "other size": ("cat/b.png", png(3, 2)[0], r"cat/b.png: .*\[3,2,3\].*\[2,2,3\]"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_image_is_told_with_its_file_or_skipped(tmp_path, opened, kind):
    name, content, complaint = BAD_FILES[kind]
    file(tmp_path, "images/cat/a.png", png(2, 2)[0])
    file(tmp_path, f"images/{name}", content)
    fields = Field("image", "uint8", (2, 2, 3)), Field("label")
    with pytest.raises(DataError, match=complaint):
        opened(tmp_path / "images", *fields)
    source = opened(tmp_path / "images", *fields, skip_bad_lines=True)
    assert [record["label"] for record in plain(source)] == ["cat"]
    assert source.skipped_lines == 3


BAD_SOUNDS = {
    "rate": (wav([1], rate=16000), r"b.wav: samples at another rate: of \[8000, 16000\]"),
    "channels": (wav([1, 2], channels=2), r"b.wav: 2 channels, not 1"),
    "empty": (wav([]), r"b.wav: "),
    "broken": (wav([1, 2, 3])[:30], r"b.wav: "),
}


@pytest.mark.parametrize("kind", BAD_SOUNDS)
def test_a_bad_sound_is_told_with_its_file(tmp_path, opened, kind):
    content, complaint = BAD_SOUNDS[kind]
    file(tmp_path, "sounds/x/a.wav", wav([1, 2]))
    file(tmp_path, "sounds/x/b.wav", content)
    with pytest.raises(DataError, match=complaint):
        opened(tmp_path / "sounds", Field("audio", "float32", (None,)), Field("label"))


def test_a_folder_has_no_more_than_files_and_classes(tmp_path, opened):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"first field is a file and the second its class"):
        opened(tmp_path / "images", TEXT, SOUND, LABEL)
    with pytest.raises(DataError, match=r"train file .*images is empty"):
        opened(tmp_path / "images", TEXT, SOUND)


# TFRecord files.


def write_records(path, rows, fields):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            writer.write(records.to_example(row, fields))


ROWS = [
    {"series": np.arange(n, dtype=np.float32), "label": np.int64(n), "text": f"row {n}\0".encode()}
    for n in range(1, 8)
]


def test_tfrecord_files_are_read_in_the_order_of_their_names(tmp_path, opened):
    fields = (SERIES, LABEL, TEXT)
    write_records(tmp_path / "a.tfrecord-00001-of-00002", ROWS[3:], fields)
    write_records(tmp_path / "a.tfrecord-00000-of-00002", ROWS[:3], fields)
    source = opened(tmp_path / "a.tfrecord-*", *fields)
    expected = [{n: v.decode() if n == "text" else v.tolist() for n, v in r.items()} for r in ROWS]
    assert plain(source) == expected


def test_features_of_tfrecord_files_may_have_other_names(tmp_path, opened):
    write_records(tmp_path / "a.tfrecord", ROWS, (SERIES, LABEL))
    fields = Field("values", "float32", (None,)), Field("class", "int32")
    source = opened(
        tmp_path / "a.tfrecord", *fields, features={"values": "series", "class": "label"}
    )
    assert [record["class"] for record in plain(source)] == [1, 2, 3, 4, 5, 6, 7]
    assert plain(source)[2]["values"] == [0, 1, 2]


def test_a_tfrecord_file_that_is_no_use_is_told_with_what_it_holds(tmp_path, opened):
    path = tmp_path / "bad.tfrecord"
    write_records(path, ROWS, (SERIES, LABEL))
    with pytest.raises(DataError, match=r"bad.tfrecord must hold .*'text'.* \['label', 'series'\]"):
        opened(path, TEXT, LABEL)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"bad.tfrecord must hold .*[Tt]runcated|corrupted"):
        opened(path, SERIES, LABEL)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"bad.tfrecord holds no records"):
        opened(path, SERIES, LABEL)
    with pytest.raises(DataError, match=r"There is no file .*none-\*.tfrecord"):
        opened(tmp_path / "none-*.tfrecord", SERIES, LABEL)
    with pytest.raises(DataError, match=r"given for each split.*\['validation', 'test'\]"):
        opened(path, SERIES, LABEL, validation=None, test=None)


# Mixtures.


def test_several_origins_follow_one_another_and_are_parts_of_the_training(tmp_path):
    lines = file(tmp_path, "a.jsonl", '{"text": "a", "sound": "A"}\n')
    table = file(tmp_path, "b.csv", "spelling,sound\nb,B\nc,C\n")
    mix = Origin(train=table, validation=table, test=table, features={"text": "spelling"}, weight=3)
    data = Data(train=lines, validation=lines, test=lines, mix=(mix,))
    source = open_source(data, [TEXT, SOUND], tmp_path / "data")
    assert [record["text"] for record in plain(source)] == ["a", "b", "c"]
    parts = [
        [text.decode() for record in part.unbatch() for text in [record["text"].numpy()]]
        for part in source.train
    ]
    assert parts == [["a"], ["b", "c"]]
    assert source.description == f"{lines}, {table}"


def test_an_origin_of_other_features_is_told(tmp_path):
    good = file(tmp_path, "a.csv", "text,sound\na,A\n")
    bad = file(tmp_path, "b.csv", "text,label\na,1\n")
    mix = Origin(train=bad, validation=bad, test=bad)
    data = Data(train=good, validation=good, test=good, mix=(mix,))
    with pytest.raises(DataError, match=r"b.csv:1: there is no column 'sound', but text, label"):
        open_source(data, [TEXT, SOUND], tmp_path / "data")


def test_what_was_read_once_need_not_be_there_again(tmp_path, opened):
    path = file(tmp_path, "a.csv", "text,sound\na,A\n")
    opened(path, TEXT, SOUND)
    path.unlink()
    assert plain(opened(path, TEXT, SOUND, fresh=False)) == [{"text": "a", "sound": "A"}]


# Texts.


def test_a_text_is_one_record_with_its_line_breaks(tmp_path, opened):
    path = file(tmp_path, "a.txt", "\ufeffone\ttwo\r\n\r\nthree\n four")
    expected = [{"text": "one\ttwo\n\nthree\n four"}]
    assert plain(opened(path, TEXT, format="text")) == expected


def test_the_ends_of_a_text_are_split_off_after_a_line(tmp_path, opened):
    lines = [f"line {n}\n" for n in range(100, 200)]
    path = file(tmp_path, "a.txt", "".join(lines))
    source = opened(path, TEXT, format="text", validation=None, test=None)
    parts = [plain(source, split)[0]["text"] for split in ("train", "validation", "test")]
    assert "".join(parts) == "".join(lines)
    assert [part.count("\n") for part in parts] == [90, 5, 5]
    source = opened(path, TEXT, format="text", test=None)
    assert plain(source)[0]["text"] == "".join(lines[:95])


def test_a_text_of_one_line_is_not_split(tmp_path, opened):
    path = file(tmp_path, "a.txt", "all in one line")
    with pytest.raises(DataError, match="too short to be split"):
        opened(path, TEXT, format="text", validation=None, test=None)


def test_a_text_that_is_not_utf_8_is_refused_by_its_line(tmp_path, opened):
    path = file(tmp_path, "a.txt", b"one\ntwo\nthr\xff\n")
    with pytest.raises(DataError, match=r"a.txt:3: not UTF-8: byte 0xff"):
        opened(path, TEXT, format="text")


def test_a_text_has_no_two_fields(tmp_path, opened):
    path = file(tmp_path, "a.txt", "one\n")
    with pytest.raises(DataError, match=r"text \(string\), sound \(string\)"):
        opened(path, TEXT, SOUND, format="text")

import json

import matplotlib.image
import pytest

from pipelines import jobfile
from pipelines.folder import RunFolder
from pipelines.report import write_report

WORDS = [f"word{i}" for i in range(40)]
EVALUATION = {
    "examples": 41,
    "inputs": [*WORDS, "a|b"],
    "answers": [*("A B" if i % 3 else "A C" for i in range(40)), "A | B"],
    "references": [*(["B A", "A B"] for _ in range(40)), ["A"]],
    "confusions": [["B", "C", 14], ["", "|", 1], ["", "B", 1]],
    "numbers": {"phoneme_error_rate": 0.1751, "word_error_rate": 0.3659, "loss": 1.25},
}
METRICS = [
    {"step": 5, "loss": 3.5, "learning_rate": 0.001, "padding_share": 0.1},
    {"step": 10, "loss": 2.5, "learning_rate": 0.002, "padding_share": 0.2},
    {"step": 10, "validation_phoneme_error_rate": 0.4, "validation_loss": 2.0},
    {"step": 15, "loss": 1.5, "learning_rate": 0.001, "padding_share": 0.3},
]


def make(path, skipped_lines=0, infeasible=0):
    folder, file = RunFolder(path), jobfile.load("g2p_transducer")
    folder.start(file, file.job())
    folder.finish(
        "prepare",
        2.0,
        data="mine.tsv",
        examples=12_345,
        skipped_lines=skipped_lines,
        infeasible=infeasible,
    )
    folder.finish("train", 1234.0, steps=15, best_step=10, parameters=987_654, devices="a CPU")
    folder.finish("evaluate", 3.0, **EVALUATION["numbers"])
    folder.finish("export", 4.0, path="models/mine/1")
    folder.finish("verify", 5.0, examples=37)
    (path / "evaluation.json").write_text(json.dumps(EVALUATION))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose stages are recorded, with its report."""
    folder = make(tmp_path_factory.mktemp("run"))
    write_report(folder, "mine", folder.job()[1])
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return (folder.path / "report.md").read_text(encoding="utf-8")


def rows(report, title):
    """Returns the cells of the first table after a line."""
    _, _, rest = report.partition(f"{title}\n")
    lines = rest[rest.index("|") :].split("\n\n")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def test_the_report_begins_with_what_the_run_came_to(report):
    assert report.startswith("# mine\n")
    results = dict(rows(report, "# mine"))
    expected = {
        "Data": "mine.tsv",
        "Training examples": "12,345",
        "Parameters": "987,654",
        "Steps, and the best one": "15, 10",
        "Padding in a batch": "20.0%",
        "Test inputs": "41",
        "Test PER": "17.51%",
        "Test WER": "36.59%",
        "Test loss": "1.2500",
        "Served answers that equal the trained model's": "37",
    }
    assert results.items() >= expected.items()


def test_what_was_left_out_of_the_data_is_told(tmp_path):
    folder = make(tmp_path, skipped_lines=3, infeasible=1_002)
    write_report(folder, "mine", folder.job()[1])
    results = dict(rows((tmp_path / "report.md").read_text(), "# mine"))
    assert results["Lines skipped as bad"] == "3"
    assert results["Examples left out as infeasible"] == "1,002"


def test_ten_errors_are_drawn_and_none_of_them_is_right(report):
    title = "## Errors, drawn at random from 15"
    drawn = rows(report, title)
    assert len(drawn) == len({row[0] for row in drawn}) == 10
    for text, answer, references in drawn:
        assert (answer, references) in {("A C", "B A; A B"), ("A \\| B", "A")}, text


def test_the_same_errors_are_drawn_again(folder, report):
    write_report(folder, "mine", folder.job()[1])
    assert (folder.path / "report.md").read_text(encoding="utf-8") == report


def test_the_worst_confusions_come_first(report):
    assert rows(report, "## Worst confusions")[0] == ["B", "C", "14"]
    assert ["(nothing)", "\\|", "1"] in rows(report, "## Worst confusions")


def test_the_time_of_every_stage_is_told(report):
    assert rows(report, "## Time") == [
        ["prepare", "2 s"],
        ["train", "1,234 s"],
        ["evaluate", "3 s"],
        ["export", "4 s"],
        ["verify", "5 s"],
    ]


def test_the_surroundings_are_told(report):
    facts = dict(rows(report, "## Environment"))
    assert facts["tensorflow"].startswith("2.")
    assert {"python", "git revision", "seed", "command"} <= set(facts)


def test_the_pictures_in_the_report_are_pictures_of_something(folder, report):
    names = {"loss.png", "error_rates.png"}
    assert {path.name for path in (folder.path / "plots").iterdir()} == names
    for name in names:
        assert f"(plots/{name})" in report
        pixels = matplotlib.image.imread(folder.path / "plots" / name)
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 600
        assert pixels[..., :3].std() > 0.01


def test_examples_that_were_drawn_are_shown_with_their_pictures(tmp_path):
    folder = make(tmp_path)
    write_report(folder, "mine", folder.job()[1])
    assert "## Alignments" not in (tmp_path / "report.md").read_text()
    drawn = [{"input": "a|b", "answer": "A B", "file": "1.png"}]
    folder.finish("evaluate", 3.0, **EVALUATION["numbers"], drawn=drawn)
    write_report(folder, "mine", folder.job()[1])
    shown = rows((tmp_path / "report.md").read_text(), "## Alignments")
    assert shown == [["a\\|b", "A B", "![alignment](plots/examples/1.png)"]]


def test_without_errors_the_report_says_so(tmp_path):
    folder = make(tmp_path)
    right = {**EVALUATION, "answers": [each[0] for each in EVALUATION["references"]]}
    (tmp_path / "evaluation.json").write_text(json.dumps(right))
    write_report(folder, "mine", folder.job()[1])
    assert "## Errors, drawn at random from 0" in (tmp_path / "report.md").read_text()


def test_a_run_shorter_than_the_distance_of_its_lines_has_pictures_too(tmp_path):
    folder = make(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(METRICS[2]) + "\n")
    write_report(folder, "mine", folder.job()[1])
    assert matplotlib.image.imread(tmp_path / "plots" / "loss.png").std() > 0.01


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_rate_that_was_measured_once_has_a_picture(tmp_path, rate):
    folder = make(tmp_path)
    lines = [METRICS[0], {"step": 10, "validation_error_rate": rate, "validation_bleu": -rate}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(folder, "mine", folder.job()[1])
    for name in ("error_rates.png", "bleu.png"):
        assert matplotlib.image.imread(tmp_path / "plots" / name).std() > 0.01
        assert f"(plots/{name})" in (tmp_path / "report.md").read_text()

"""What a run found, for people: report.md and its pictures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import matplotlib.figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from pipelines import jobfile
from pipelines.display import is_share, label, show
from pipelines.folder import RunFolder
from pipelines.job import Job
from pipelines.log import read_metrics

_ERRORS_SHOWN = 10
_CONFUSIONS_SHOWN = 15
_LONGEST_CELL = 300


def write_report(folder: RunFolder, name: str, job: Job) -> None:
    """Writes report.md, and its pictures to plots/, from what the stages recorded."""
    evaluation = json.loads((folder.path / "evaluation.json").read_text(encoding="utf-8"))
    pictures = _plot(folder)
    sections = [
        f"# {name}",
        jobfile.load(str(folder.path / "job.py")).about()["title"],
        _results(folder, evaluation),
        "\n\n".join(f"![{words} by step](plots/{file})" for file, words in pictures.items()),
        *_sampled_errors(evaluation, job.train.seed),
        *_worst_confusions(evaluation),
        *_drawn_examples(folder),
        _stages(folder),
        _environment(folder),
    ]
    (folder.path / "report.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _results(folder: RunFolder, evaluation: dict) -> str:
    train, prepared = folder.done("train"), folder.done("prepare")
    rows = [("Data", prepared["data"]), ("Training examples", f"{prepared['examples']:,}")]
    if prepared["skipped_lines"]:
        rows.append(("Lines skipped as bad", f"{prepared['skipped_lines']:,}"))
    if prepared["infeasible"]:
        rows.append(("Examples left out as infeasible", f"{prepared['infeasible']:,}"))
    rows += [
        ("Parameters", f"{train['parameters']:,}"),
        ("Steps, and the best one", f"{train['steps']:,}, {train['best_step']:,}"),
        ("Trained on", train["devices"]),
        ("Padding in a batch", f"{_mean(read_metrics(folder.path), 'padding_share'):.1%}"),
        ("Test inputs", f"{evaluation['examples']:,}"),
        *(
            (f"Test {label(metric)}", show(metric, value))
            for metric, value in evaluation["numbers"].items()
        ),
        ("Served answers that equal the trained model's", f"{folder.done('verify')['examples']}"),
    ]
    return _table(("", ""), rows)


def _mean(lines: list[dict], name: str) -> float:
    values = [line[name] for line in lines if name in line]
    return sum(values) / max(1, len(values))


def _sampled_errors(evaluation: dict, seed: int) -> list[str]:
    """Returns the section of wrong answers; none where answers are no texts."""
    if not evaluation["answers"]:
        return []
    rows = zip(evaluation["inputs"], evaluation["answers"], evaluation["references"], strict=True)
    wrong = [row for row in rows if row[1] not in row[2]]
    sample = random.Random(seed).sample(wrong, min(_ERRORS_SHOWN, len(wrong)))
    table = _table(
        ("Input", "Answer", "References"),
        [(text, answer, "; ".join(references)) for text, answer, references in sample],
    )
    return [f"## Errors, drawn at random from {len(wrong):,}\n\n{table}"]


def _worst_confusions(evaluation: dict) -> list[str]:
    rows = [
        (expected or "(nothing)", found or "(nothing)", count)
        for expected, found, count in evaluation["confusions"][:_CONFUSIONS_SHOWN]
    ]
    table = _table(("Reference", "Answer", "Times"), rows)
    return [f"## Worst confusions\n\n{table}"] if rows else []


def _drawn_examples(folder: RunFolder) -> list[str]:
    """Returns the section of the pictures that were drawn; none without pictures."""
    drawn = folder.done("evaluate").get("drawn", [])
    rows = [
        (each["input"], each["answer"], f"![alignment](plots/examples/{each['file']})")
        for each in drawn
    ]
    about = (
        "## Alignments\n\nHow answers go back to their inputs: what attention each part of the "
        "answer paid to each part of the input; or, where there is a line, how probable it is, at "
        "each part of the input, to have said so much of the answer, the line being the likeliest "
        "way."
    )
    return [f"{about}\n\n{_table(('Input', 'Answer', ''), rows)}"] if rows else []


def _stages(folder: RunFolder) -> str:
    names = ("prepare", "train", "evaluate", "export", "verify")
    rows = [(name, f"{folder.done(name)['seconds']:,.0f} s") for name in names]
    return "## Time\n\n" + _table(("Stage", "Took"), rows)


def _environment(folder: RunFolder) -> str:
    facts = json.loads((folder.path / "environment.json").read_text(encoding="utf-8"))
    packages = facts.pop("packages")
    rows = [(name.replace("_", " "), value) for name, value in (facts | packages).items()]
    return "## Environment\n\n" + _table(("", ""), rows)


def _table(header: tuple, rows: list[tuple]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value) -> str:
    text = " ".join(value) if isinstance(value, list) else str(value)
    text = text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"
    return text.replace("|", "\\|").replace("\n", " ")


def _plot(folder: RunFolder) -> dict[str, str]:
    """Draws what was measured by step; returns what each file in plots/ shows."""
    lines = read_metrics(folder.path)
    measured = {name for line in lines for name in line if name.startswith("validation_")}
    rates = sorted(name for name in measured if name.endswith("_rate"))
    others = sorted(measured - {*rates, "validation_loss"})
    plots = folder.path / "plots"
    plots.mkdir(exist_ok=True)
    losses = ["loss", "validation_loss"]
    _curves(lines, losses, "loss (nats)", plots / "loss.png", scale="log")
    pictures = {"loss.png": "Loss"}
    if rates:
        _curves(lines, rates, "errors", plots / "error_rates.png", scale="log")
        pictures["error_rates.png"] = "Error rates"
    for name in others:
        what = name.removeprefix("validation_")
        _curves(lines, [name], label(what), plots / f"{what}.png", scale="linear")
        pictures[f"{what}.png"] = label(what).capitalize()
    return pictures


def _curves(lines: list[dict], names: list[str], unit: str, path: Path, scale: str) -> None:
    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))
    values = {line[name] for line in lines for name in names if name in line}
    if min(values, default=0) <= 0:
        scale = "linear"
    axes.set(xlabel="step", ylabel=unit, yscale=scale)
    if len(values) == 1:  # there is no range to choose of itself
        axes.set_ylim(*sorted((0.5 * min(values), 2 * min(values) or 1)))
    if scale == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
    shares = all(is_share(name) for name in names)
    formatter = PercentFormatter(xmax=1) if shares else StrMethodFormatter("{x:g}")
    axes.yaxis.set_major_formatter(formatter)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)

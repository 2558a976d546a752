import numpy as np
import pytest
import tensorflow as tf

from pipelines.evaluation import Evaluator

BUDGET = 10_000  # padded characters together
PAIRS = [
    ("abcd", "ABCD"),
    ("ba", "BA"),
    ("ba", "AB"),  # a second way to say it
    ("c", "C"),
    ("edc", "EDD"),  # never said so by the task below
    ("ba", "BB"),
]


@pytest.fixture
def able(speller):
    """The task, with weights that say every letter by its own sound."""
    task = speller(units=6)
    embedding, kernel, _ = task.model.variables
    embedding.assign(np.eye(6))
    kernel.assign(9 * np.eye(6))
    return task


def test_each_input_is_answered_once_and_beside_all_its_references(able, records):
    found = Evaluator(able, records(PAIRS), BUDGET)()
    assert found.inputs == ["c", "ba", "edc", "abcd"]
    assert found.answers == ["C", "BA", "EDC", "ABCD"]
    assert [sorted(each) for each in found.references] == [
        ["C"],
        ["AB", "BA", "BB"],
        ["EDD"],
        ["ABCD"],
    ]


def test_an_answer_is_right_if_it_is_any_of_the_references(able, records):
    numbers = Evaluator(able, records(PAIRS), BUDGET)().numbers
    assert list(numbers) == ["sound_error_rate", "word_error_rate", "loss"]
    assert numbers["sound_error_rate"] == pytest.approx(1 / 10)
    assert numbers["word_error_rate"] == pytest.approx(1 / 4)


def test_the_loss_is_the_mean_over_all_examples(able, records):
    """A wrong letter costs 9 more than a right one, which costs log(1 + 5 / e⁹)."""
    right = np.log1p(5 * np.exp(-9.0))
    letters, wrong = 4 + 2 + 2 + 1 + 3 + 2, 2 + 1 + 1
    expected = (letters * right + wrong * 9) / len(PAIRS)
    numbers = Evaluator(able, records(PAIRS), BUDGET)().numbers
    assert numbers["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_split_after_another_is_evaluated_without_tracing_again(speller, records):
    class Traced(speller):
        count = 0

        def losses(self, batch, dropout_seed=None):
            Traced.count += 1
            return super().losses(batch, dropout_seed)

        def answer(self, inputs):
            Traced.count += 1
            return super().answer(inputs)

    task = Traced()
    first = Evaluator(task, records(PAIRS), 4)
    first()
    traced = Traced.count
    other = records(PAIRS[:3])
    found = Evaluator(task, other, 4, like=first)()
    assert Traced.count == traced
    right = Evaluator(task, other, 4)()
    assert found.answers == right.answers
    assert found.numbers == pytest.approx(right.numbers)


def test_what_cannot_be_learnt_from_is_answered_but_has_no_loss(able, records):
    infeasible = [*PAIRS, ("d", "DD")]
    with_it, without = (Evaluator(able, records(pairs), BUDGET)() for pairs in (infeasible, PAIRS))
    assert sorted(with_it.answers) == sorted([*without.answers, "D"])
    assert with_it.numbers["loss"] == pytest.approx(without.numbers["loss"])


def test_the_weights_are_those_of_now(able, records):
    evaluator = Evaluator(able, records(PAIRS), BUDGET)
    assert evaluator().answers == ["C", "BA", "EDC", "ABCD"]
    able.model.variables[1].assign(np.zeros([6, 6]))
    after = evaluator()
    assert after.answers == ["A", "AA", "AAA", "AAAA"]
    assert after.numbers["loss"] == pytest.approx(14 / len(PAIRS) * np.log(6))


def test_the_order_and_the_number_of_records_at_once_change_nothing(able, records, words):
    pairs = [(word, word[::-1].upper()) for word in words(61)]
    whole = Evaluator(able, records(pairs), BUDGET)()
    by_seven = Evaluator(able, records(pairs[::-1], together=5), 7)()
    assert by_seven.answers == whole.answers
    assert by_seven.numbers == pytest.approx(whole.numbers, rel=1e-6)


def test_nothing_learnable_has_a_loss_of_zero(able, records):
    assert Evaluator(able, records([("a", "AA")]), BUDGET)().numbers["loss"] == 0.0


@pytest.mark.parametrize("budget", [1, 7, 10_000])
def test_answers_come_in_the_order_of_the_inputs(able, records, words, budget):
    evaluator = Evaluator(able, records([(word, "A") for word in words(300)]), budget)
    inputs = [example["text"] for example in evaluator.examples]
    assert [output["sound"] for output in evaluator.outputs()] == [w.upper() for w in inputs]
    some = [7, 290, 8, 8]
    assert [output["sound"] for output in evaluator.outputs(some)] == [
        inputs[n].upper() for n in some
    ]
    assert evaluator.outputs([]) == []


def test_inputs_are_asked_alone_or_together_as_far_as_the_budget_goes(able, records):
    pairs = [(text, "A") for text in ("a", "b", "ab", "abc", "abcd")]
    evaluator = Evaluator(able, records(pairs), 6)
    asked = [given["text"].tolist() for given in evaluator.inputs(alone=1)]
    assert asked == [[b"a"], [b"b", b"ab"], [b"abc"], [b"abcd"]]


def test_text_beyond_ascii_comes_back_as_it_was(able, records):
    class Echo(type(able)):
        def answer(self, inputs):
            return {"sound": tf.identity(inputs["text"])}

        def features(self, records):
            return {name: tf.strings.unicode_decode(records[name], "UTF-8") for name in records}

        def losses(self, batch, dropout_seed=None):
            return tf.zeros(tf.shape(batch["text"])[:1])

    found = Evaluator(Echo(), records([("straße", "straße"), ("日本", "日本")]), BUDGET)()
    assert found.answers == ["日本", "straße"]
    assert found.numbers["word_error_rate"] == 0.0

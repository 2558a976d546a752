"""Edit distance between sequences of tokens, and the error rates that come of it.

A hypothesis is one string, its tokens separated by white space; an example has one or more
references, any of which is right: a word may have several pronunciations, a sentence several
translations. What is counted is the distance to the *closest* reference: the one with the smallest
edit distance; among these the longest; among these the first.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class ErrorRates:
    """The errors of a set of examples.

    Args:
        examples: The number of examples.
        wrong: How many of them match none of their references.
        tokens: The length of all the closest references together.
        substitutions: Reference tokens that are another token in the hypothesis.
        insertions: Hypothesis tokens that are not in the reference.
        deletions: Reference tokens that are not in the hypothesis.
    """

    examples: int
    wrong: int
    tokens: int
    substitutions: int
    insertions: int
    deletions: int

    @property
    def token_error_rate(self) -> float:
        """Edits per reference token: PER over phonemes, WER over words. Insertions may pass 1.

        Where all references are empty it is 0 without insertions and infinite with any.
        """
        edits = self.substitutions + self.insertions + self.deletions
        if self.tokens == 0:
            return math.inf if edits else 0.0
        return edits / self.tokens

    @property
    def sequence_error_rate(self) -> float:
        """The share of examples that match none of their references: WER over spelled words."""
        return self.wrong / self.examples


def edit_distance(hypothesis: Sequence[str], reference: Sequence[str]) -> int:
    """Returns the least number of substitutions, insertions and deletions between two sequences."""
    return Levenshtein.distance(reference, hypothesis)


def error_rates(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> ErrorRates:
    """Returns the errors of hypotheses against the closest of their references.

    Args:
        hypotheses: One string for each example, of tokens separated by white space. It may be
            empty: all reference tokens are then deletions.
        references: For each example one or more strings of the same kind.
    """
    edits = Counter()
    wrong = tokens = 0
    for hypothesis, reference in _aligned(hypotheses, references):
        operations = Levenshtein.editops(reference, hypothesis)
        edits.update(operation.tag for operation in operations)
        wrong += bool(operations)
        tokens += len(reference)
    return ErrorRates(
        examples=len(hypotheses),
        wrong=wrong,
        tokens=tokens,
        substitutions=edits["replace"],
        insertions=edits["insert"],
        deletions=edits["delete"],
    )


def confusions(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> Counter[tuple[str, str]]:
    """Returns how often each reference token became each hypothesis token, where they differ.

    The keys are `(reference token, hypothesis token)`: the first is `""` for an insertion, the
    second for a deletion. Of several shortest alignments one is taken, always the same.

    Args:
        hypotheses: As for `error_rates`.
        references: As for `error_rates`.
    """
    counts = Counter()
    for hypothesis, reference in _aligned(hypotheses, references):
        for tag, at_reference, at_hypothesis in Levenshtein.editops(reference, hypothesis):
            expected = "" if tag == "insert" else reference[at_reference]
            found = "" if tag == "delete" else hypothesis[at_hypothesis]
            counts[expected, found] += 1
    return counts


def _aligned(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> Iterator[tuple[list[str], list[str]]]:
    """Yields the tokens of each hypothesis and those of its closest reference."""
    _check(hypotheses, references)
    for hypothesis, candidates in zip(hypotheses, references, strict=True):
        tokens = hypothesis.split()
        yield tokens, _closest(tokens, [candidate.split() for candidate in candidates])


def _closest(hypothesis: list[str], references: list[list[str]]) -> list[str]:
    return min(references, key=lambda each: (edit_distance(hypothesis, each), -len(each)))


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) == 0 or len(hypotheses) != len(references):
        raise ValueError(
            "Arguments `hypotheses` and `references` must have the same length, one or more. "
            f"Received: lengths {len(hypotheses)} and {len(references)}"
        )
    for hypothesis in hypotheses:
        if not isinstance(hypothesis, str):
            raise TypeError(
                f"Argument `hypotheses` must hold strings. Received: {hypothesis!r} in it"
            )
    for candidates in references:
        if isinstance(candidates, (str, bytes)) or not all(
            isinstance(candidate, str) for candidate in candidates
        ):
            raise TypeError(
                "Argument `references` must hold, for each example, a sequence of strings. "
                f"Received: {candidates!r} in it"
            )
        if len(candidates) == 0:
            raise ValueError(
                "Argument `references` must hold one or more strings for each example. "
                f"Received: {candidates!r} in it"
            )

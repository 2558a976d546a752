"""Models, their frontends, losses and decoders: tensors in, tensors out.

Axes, by letter, in every shape that a docstring states:

    B  examples            T  input steps         U  output steps
    V  symbols with blank  F  input features      D  hidden width
    K  beam

Batch comes first. Every sequence tensor travels with its lengths `[B]`, and what lies past a
length changes nothing. Symbol 0 is the blank of a transducer and the padding of every sequence.
"""

__version__ = "0.1.0"

BLANK = 0
PADDING = 0

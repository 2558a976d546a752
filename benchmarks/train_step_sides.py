"""The sides of `benchmarks.train_step`: `python -m benchmarks.train_step_sides NAME`.

Each function imports its own library and returns what `serve` takes. The kinds of cases:

    check   losses of the first batch, and gradients of all weights, without dropout
    step    an optimizer step on the first batch
    loop    an optimizer step on each batch, read anew
"""

import os
import sys
from types import SimpleNamespace

import numpy as np

from benchmarks.side import serve
from benchmarks.train_step import INPUTS, OUTPUTS

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
NAMES = ["inputs", "input_lengths", "labels", "label_lengths"]
# As in the job `g2p_transducer`, which PyTorch's side cannot import.
EMBEDDING, ENCODER, LAYERS, PREDICTOR, JOINT, DROPOUT = 128, 256, 2, 256, 256, 0.3
RATE, CLIP = 2e-3, 1.0


def weights():
    """Returns the first weights, as ours has them and in its order."""
    random = np.random.default_rng(1)

    def of(*shape):
        return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    def lstm(width, units):
        return [of(width, 4 * units), of(units, 4 * units), np.zeros(4 * units, np.float32)]

    encoder = []
    for layer in range(LAYERS):
        for _ in range(2):
            encoder += lstm(2 * ENCODER if layer else EMBEDDING, ENCODER)
    joint = [of(2 * ENCODER, JOINT), of(JOINT), of(PREDICTOR, JOINT), of(JOINT, OUTPUTS)]
    return [
        of(INPUTS, EMBEDDING),
        *encoder,
        of(OUTPUTS, PREDICTOR),
        *lstm(PREDICTOR, PREDICTOR),
        *joint,
        of(OUTPUTS),
    ]


def _batches_of(arrays):
    return [
        {name: arrays[f"{name}_{n}"] for name in NAMES} for n in range(len(arrays) // len(NAMES))
    ]


def ours():
    """Ours: the step of the trainer."""
    import tensorflow as tf

    from keras_models.configs.transducer import TransducerConfig
    from keras_models.frontends.padding import LENGTHS
    from pipelines import strategies
    from pipelines.job import Train
    from pipelines.step import TrainStep, forward_and_backward

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    sizes = TransducerConfig(
        embedding_units=EMBEDDING,
        encoder_units=ENCODER,
        encoder_layers=LAYERS,
        predictor_units=PREDICTOR,
        joint_units=JOINT,
        dropout=DROPOUT,
    )
    config = Train(learning_rate=RATE, schedule="constant", warmup_steps=0, clip_limit=CLIP)
    strategy = strategies.choose("one_device")
    with strategy.scope():
        model = sizes.build(INPUTS, OUTPUTS)
    model.set_weights(weights())
    names = ["text", f"text{LENGTHS}", "pronunciation", f"pronunciation{LENGTHS}"]
    task = SimpleNamespace(
        model=model,
        losses=lambda batch, dropout_seed: model.losses(
            *(batch[name] for name in names), dropout_seed
        ),
        weights=lambda batch: tf.ones_like(batch[names[1]]),
    )

    def prepare(kind, arrays):
        batches = [
            {ours: batch[name] for ours, name in zip(names, NAMES, strict=True)}
            for batch in _batches_of(arrays)
        ]
        first = {name: tf.constant(array) for name, array in batches[0].items()}
        if kind == "check":

            def check():
                losses = task.losses(first, None)
                _, _, gradients, _ = forward_and_backward(task, first, None, tf.constant(1.0))
                return losses, gradients

            return check
        step = TrainStep(task, config, strategy)
        if kind == "step":
            return lambda: (step(((first,),), False)[0].loss.numpy(), [])

        def read():
            yield from batches

        signature = {name: tf.TensorSpec([None] * x.ndim, x.dtype) for name, x in first.items()}
        loop = tf.data.Dataset.from_generator(read, output_signature=signature).prefetch(2)

        def run():
            losses = [step(((batch,),), False)[0].loss for batch in loop]
            return losses[-1].numpy(), []

        return run

    return prepare


def torchaudio():
    """The same model in PyTorch, with torchaudio's loss."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
    from torchaudio.functional import rnnt_loss

    torch.set_num_threads(THREADS)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_inputs = torch.nn.Embedding(INPUTS, EMBEDDING)
            self.encoder = torch.nn.LSTM(
                EMBEDDING,
                ENCODER,
                LAYERS,
                batch_first=True,
                bidirectional=True,
                dropout=DROPOUT,
            )
            self.embed_labels = torch.nn.Embedding(OUTPUTS, PREDICTOR)
            self.predictor = torch.nn.LSTM(PREDICTOR, PREDICTOR, batch_first=True)
            self.of_encoding = torch.nn.Linear(2 * ENCODER, JOINT)
            self.of_prediction = torch.nn.Linear(PREDICTOR, JOINT, bias=False)
            self.scores = torch.nn.Linear(JOINT, OUTPUTS)
            self.drop = torch.nn.Dropout(DROPOUT)

        def forward(self, inputs, input_lengths, labels, label_lengths):
            embedded = self.drop(self.embed_inputs(inputs))
            packed = pack_padded_sequence(
                embedded, input_lengths, batch_first=True, enforce_sorted=False
            )
            encoding, _ = pad_packed_sequence(self.encoder(packed)[0], batch_first=True)
            prefixes = torch.nn.functional.pad(labels, (1, 0))
            prediction, _ = self.predictor(self.drop(self.embed_labels(prefixes)))
            encoding = self.of_encoding(self.drop(encoding))
            prediction = self.of_prediction(self.drop(prediction))
            scores = self.scores(torch.tanh(encoding[:, :, None] + prediction[:, None]))
            return rnnt_loss(scores, labels, input_lengths, label_lengths, 0, reduction="none")

    model = Model()
    own = [
        parameter
        for name, parameter in model.named_parameters()
        if not name.split(".")[-1].startswith("bias_hh")  # PyTorch has two biases for one
    ]
    tables = (id(model.embed_inputs.weight), id(model.embed_labels.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias_hh" in name:
                parameter.zero_()
        for parameter, array in zip(own, weights(), strict=True):
            transposed = array.T if array.ndim > 1 and id(parameter) not in tables else array
            parameter.copy_(torch.from_numpy(transposed.copy()))

    def prepare(kind, arrays):
        batches = _batches_of(arrays)
        first = [torch.from_numpy(batches[0][name]) for name in NAMES]
        if kind == "check":

            def check():
                model.eval()
                losses = model(*first)
                gradients = torch.autograd.grad(losses.sum(), own)
                model.train()
                turned = [
                    g.T if g.ndim > 1 and id(p) not in tables else g
                    for g, p in zip(gradients, own, strict=True)
                ]
                return losses.detach(), turned

            return check
        optimizer = torch.optim.Adam(model.parameters(), RATE)

        def step(batch):
            optimizer.zero_grad()
            loss = model(*batch).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            return loss.item()

        if kind == "step":
            return lambda: (step(first), [])
        loader = torch.utils.data.DataLoader(
            [[torch.from_numpy(batch[name]) for name in NAMES] for batch in batches],
            batch_size=None,
        )
        return lambda: ([step(batch) for batch in loader][-1], [])

    return prepare


if __name__ == "__main__":
    serve(globals()[sys.argv[1]])

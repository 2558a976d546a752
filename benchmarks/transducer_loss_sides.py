"""The sides of `benchmarks.transducer_loss`: `python -m benchmarks.transducer_loss_sides NAME`.

Each function imports its own library and returns what `serve` takes. The kinds of cases:

    logits    gradient by logits [B, T, U + 1, V]
    additive  gradients by f [B, T, V] and g [B, U + 1, V], whose sum the logits are
    copy      reads and writes x, and product multiplies it by itself: what the machine can do
    fused     gradients by encoding [B, T, D], prediction [B, U + 1, D], kernel [D, V], bias [V]
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

from benchmarks.side import serve

NAMES = {
    "logits": ["logits"],
    "additive": ["f", "g"],
    "fused": ["encoding", "prediction", "kernel", "bias"],
}
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


def ours(jit_compile=True):
    """Ours, compiled by XLA."""
    import tensorflow as tf

    from keras_models.losses import transducer

    losses_of = {
        "logits": transducer.transducer_loss,
        "additive": transducer.additive_transducer_loss,
        "fused": transducer.fused_transducer_loss,
    }
    prepare = _tensorflow(tf, losses_of, jit_compile)
    limits = {"copy": lambda x: x + 1.0, "product": lambda x: tf.matmul(x, x)}

    def prepare_or_limit(kind, arrays):
        if kind not in limits:
            return prepare(kind, arrays)
        x = tf.constant(arrays["x"])
        compute = tf.function(limits[kind], autograph=False, jit_compile=kind == "copy")
        return lambda: (compute(x)[0, 0].numpy(), [])

    return prepare_or_limit


def ours_graph():
    """Ours, as a plain graph."""
    return ours(jit_compile=False)


def tensorflow_asr():
    """The file of TensorFlowASR's loss, unchanged; the rest of the package is not loaded."""
    import tensorflow as tf

    package = types.ModuleType("tensorflow_asr")
    package.tf, package.keras = tf, MagicMock()
    sys.modules["tensorflow_asr"] = package
    utils = MagicMock()
    utils.shape_util.get_dim = lambda x, axis: x.shape[axis]
    for name in ("losses", "losses.base_loss"):
        sys.modules[f"tensorflow_asr.{name}"] = MagicMock(BaseLoss=object)
    sys.modules["tensorflow_asr.utils"] = utils
    module = _load_file("tensorflow_asr", "losses/rnnt_loss.py")

    def loss(logits, labels, frames, lengths):
        return module.rnnt_loss(logits, frames, labels, lengths, use_cpu=True)

    return _tensorflow(tf, {"logits": loss, "fused": _joined(tf.tanh, loss)}, jit_compile=False)


def torchaudio():
    """torchaudio's kernel for processors."""
    from torchaudio.functional import rnnt_loss

    def loss(logits, labels, frames, lengths):
        return rnnt_loss(logits, labels, frames, lengths, blank=0, reduction="none")

    return _torch({"logits": loss})


def warprnnt_numba():
    """The kernel for processors of warprnnt_numba, which is also NeMo's."""
    from warprnnt_numba import RNNTLossNumba

    return _torch({"logits": RNNTLossNumba(blank=0, reduction="none")})


def fast_rnnt():
    """fast_rnnt, without pruning: the code that k2 has, too."""
    built = Path(sys.prefix) / "fast_rnnt"
    if not (built / "_fast_rnnt.so").exists():
        _build_fast_rnnt(built)
    sys.path[:0] = [str(built), str(built / "source" / "fast_rnnt" / "python")]
    import torch  # isort: skip  (its libraries are those of what comes next)
    import fast_rnnt as library

    def boundary(labels, frames, lengths):
        zeros = torch.zeros_like(lengths)
        return torch.stack([zeros, zeros, lengths, frames], dim=1).long()

    def loss(logits, labels, frames, lengths):
        return library.rnnt_loss(
            logits, labels.long(), 0, boundary(labels, frames, lengths), reduction="none"
        )

    def additive(f, g, labels, frames, lengths):
        return library.rnnt_loss_simple(
            g, f, labels.long(), 0, boundary(labels, frames, lengths), reduction="none"
        )

    return _torch({"logits": loss, "additive": additive})


def _build_fast_rnnt(folder):
    """Builds the sources on PyPI without their build, which downloads more of them."""
    from torch.utils import cpp_extension

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    download = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "fast_rnnt"]
    subprocess.run([sys.executable, *download, "--dest", folder, "fast_rnnt==1.3"], check=True)
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    source = folder / "source"
    (folder / archive.name.removesuffix(".tar.gz")).rename(source)
    files = []
    for name in (
        "python/csrc/fast_rnnt",
        "python/csrc/mutual_information",
        "csrc/mutual_information_cpu",
    ):
        cuda = source / "fast_rnnt" / f"{name}.cu"
        files.append(str(cuda.with_name(f"{cuda.stem}_host.cc")))
        shutil.copy(cuda, files[-1])
    cpp_extension.load(
        "_fast_rnnt",
        files,
        extra_include_paths=[str(source)],
        build_directory=str(folder),
        extra_cflags=["-O3"],
    )


def axlearn():
    """The functions of AXLearn's file, unchanged; the rest of the package is not loaded."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import checkify

    for name in ("", ".common"):
        sys.modules[f"axlearn{name}"] = types.ModuleType(f"axlearn{name}")
    for name in ("base_layer", "config", "layers", "module", "utils"):
        sys.modules[f"axlearn.common.{name}"] = MagicMock()
    module = _load_file("axlearn", "common/transducer.py")
    normalise = module.classic_logits_to_log_probs()
    pad = checkify.checkify(module.apply_paddings, errors=checkify.user_checks)

    def of_example(blanks, labels, frames, lengths):
        _, width = blanks.shape
        _, padded = pad(
            log_prob_blank=blanks,
            log_prob_y=labels,
            am_paddings=(jnp.arange(blanks.shape[0]) >= frames).astype(jnp.int32),
            lm_paddings=(jnp.arange(width) > lengths).astype(jnp.int32),
        )
        return -module.log_prob_alignments(**padded)

    def scores(logits, labels):
        """Returns the scores of both arcs, for logits `[…, U + 1, V]` and labels `[U + 1]`."""
        found = normalise(logits)
        chosen = jax.nn.one_hot(labels, logits.shape[-1])
        return found["log_prob_blank"], (found["log_prob_tokens"] * chosen).sum(axis=-1)

    def loss(logits, labels, frames, lengths):
        labels = jnp.pad(labels, [(0, 0), (0, 1)])
        return jax.vmap(of_example)(*jax.vmap(scores)(logits, labels), frames, lengths)

    def fused(encoding, prediction, kernel, bias, labels, frames, lengths):
        def example(encoding, prediction, labels, frames, lengths):
            def frame(encoding):
                return scores(jnp.tanh(encoding + prediction) @ kernel + bias, labels)

            return of_example(*jax.lax.map(frame, encoding), frames, lengths)

        labels = jnp.pad(labels, [(0, 0), (0, 1)])
        return jax.vmap(example)(encoding, prediction, labels, frames, lengths)

    return _jax(jax, {"logits": loss, "fused": fused})


def _jax(jax, losses_of):
    def prepare(kind, arrays):
        count = len(_known(kind, losses_of))

        def compute(scores, *arguments):
            losses, pull = jax.vjp(lambda *x: losses_of[kind](*x, *arguments), *scores)
            return losses, pull(jax.numpy.ones_like(losses))

        arguments = [jax.device_put(x) for x in _arguments(kind, arrays)]
        compiled = jax.jit(compute).lower(arguments[:count], *arguments[count:]).compile()
        return lambda: jax.block_until_ready(compiled(arguments[:count], *arguments[count:]))

    return prepare


def _tensorflow(tf, losses_of, jit_compile):
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)

    def prepare(kind, arrays):
        count = len(_known(kind, losses_of))

        @tf.function(autograph=False, jit_compile=jit_compile)
        def compute(scores, arguments):
            with tf.GradientTape() as tape:
                tape.watch(scores)
                losses = losses_of[kind](*scores, *arguments)
            return losses, tape.gradient(losses, scores)

        arguments = [tf.constant(x) for x in _arguments(kind, arrays)]
        if jit_compile:
            # What compiling needs the first time is thus not counted as memory of the loss.
            lower = compute.experimental_get_compiler_ir(arguments[:count], arguments[count:])
            lower(stage="optimized_hlo")

        def computed():
            losses, gradients = compute(arguments[:count], arguments[count:])
            losses.numpy()
            return losses, gradients

        return computed

    return prepare


def _torch(losses_of):
    import torch

    torch.set_num_threads(THREADS)
    losses_of = {**losses_of, "fused": _joined(torch.tanh, losses_of["logits"])}

    def prepare(kind, arrays):
        count = len(_known(kind, losses_of))
        arguments = [torch.from_numpy(x) for x in _arguments(kind, arrays)]
        scores, arguments = arguments[:count], arguments[count:]

        def compute():
            leaves = [x.requires_grad_() for x in scores]
            losses = losses_of[kind](*leaves, *arguments)
            return losses.detach(), torch.autograd.grad(losses.sum(), leaves)

        return compute

    return prepare


def _joined(tanh, loss):
    """Returns a loss that computes the logits of the whole lattice first."""

    def fused(encoding, prediction, kernel, bias, *arguments):
        hidden = tanh(encoding[:, :, None] + prediction[:, None])
        return loss(hidden @ kernel + bias, *arguments)

    return fused


def _known(kind, losses_of):
    if kind not in losses_of:
        raise NotImplementedError(f"it has no loss for {kind}")
    return NAMES[kind]


def _arguments(kind, arrays):
    return [arrays[name] for name in (*NAMES[kind], "labels", "frames", "lengths")]


def _load_file(package, path):
    """Returns a file of an installed package as a module, without importing the package."""
    [file] = [Path(x) / package / path for x in sys.path if (Path(x) / package / path).exists()]
    specification = importlib.util.spec_from_file_location(f"{package}_file", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    serve(globals()[sys.argv[1]])

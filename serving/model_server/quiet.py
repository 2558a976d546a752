"""Imports TensorFlow without its remarks on this machine's processor and drivers."""

import os
import sys
import tempfile


def import_tensorflow() -> None:
    """Imports TensorFlow, quietly unless TF_CPP_MIN_LOG_LEVEL is set.

    Some remarks come before TensorFlow reads that variable, so what is written to stderr while
    it is imported is held back, and shown only where the import fails.
    """
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # a trainer and a server may share
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ or "tensorflow" in sys.modules:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
    tf.get_logger().setLevel("ERROR")

"""Operations of TensorFlow Text, for the graphs that have them."""

import importlib.util
import logging

_LOG = logging.getLogger(__name__)
_MISSING = "Op type not registered"


def could_help(message: str) -> bool:
    """Registers TensorFlow Text's operations if an error says that some operation is missing.

    Importing the package takes a second and stays for the life of the process, so that it is
    done for the first graph that asks for more than TensorFlow has.

    Args:
        message: Why a graph could not be loaded.

    Returns:
        Whether it is worth trying again.
    """
    if _MISSING not in message or not importlib.util.find_spec("tensorflow_text"):
        return False
    try:
        import tensorflow_text  # noqa: F401
    except Exception as error:  # Built for another TensorFlow.
        _LOG.error("Could not import tensorflow_text: %s", error)
        return False
    return True

"""From flags to the models that are to be served."""

import functools
import os
from collections.abc import Callable

from serving.model_server import source
from serving.model_server.errors import not_found
from serving.model_server.flags import Options

LAYOUT = "NAME/VERSION/saved_model.pb, VERSION a whole number, as in half_plus_two/1/saved_model.pb"


def model_lister(options: Options) -> Callable[[], list[source.Model]]:
    """Returns a function that lists the models to serve, as they are now.

    Raises:
        ServingError: There is nothing to serve; the message says what was expected where.
    """
    if options.model_root:
        _check_root(options.model_root)
        return functools.partial(source.models_in, options.model_root)
    _check_base_path(options.model_base_path)
    model = source.Model(options.model_name, options.model_base_path)
    return lambda: [model]


def _check_root(root: str) -> None:
    if source.models_in(root):
        return
    if source.versions_in(root):
        raise not_found(
            f"No model under --model_root={root}: it holds versions, so it is the folder of one "
            f"model. Give --model_base_path={root}, or --model_root={os.path.dirname(root)}."
        )
    raise not_found(f"No model under --model_root={root}. Expected there: {LAYOUT}.")


def _check_base_path(base_path: str) -> None:
    if not source.versions_in(base_path):
        raise not_found(
            f"No versions of the model under --model_base_path={base_path}. "
            "Expected there: VERSION/saved_model.pb, VERSION a whole number."
        )

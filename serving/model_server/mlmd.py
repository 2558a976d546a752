"""ML Metadata's name of a version, where the version brings one."""

import logging
import os

_LOG = logging.getLogger(__name__)
_FILE = os.path.join("assets.extra", "mlmd_uuid")


def uuid_in(path: str) -> str:
    """Returns what the version in the folder `path` is called there; nothing where it is not."""
    file = os.path.join(path, _FILE)
    if not os.path.exists(file):
        return ""
    try:
        with open(file, encoding="utf-8") as opened:
            return opened.read()
    except (OSError, UnicodeDecodeError) as error:
        _LOG.warning("Could not read %s: %s", file, error)
        return ""

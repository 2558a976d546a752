"""What the server tells of itself over REST, outside of TF Serving's paths.

    /livez           it runs
    /readyz          it takes requests; 503 once it is to stop
    /readyz/NAME     the model NAME can be asked; 503 where it cannot
    /models          every model: its versions, their states, signatures and labels
    /config          the configuration, as JSON

The first three say nothing that is not to be known by everybody, and ask for no token.
"""

import json
from collections.abc import Callable
from urllib.parse import unquote

from google.protobuf import json_format

from serving.model_server.labels import Labels
from serving.model_server.lifecycle import State
from serving.model_server.manager import Manager
from serving.model_server.reload import Configuration
from serving.model_server.rest_api import Answer

_READY = "/readyz"


class Admin:
    """Tells of a server.

    Args:
        manager: Holds its versions.
        labels: Name them.
        configuration: Says what is to be served.
    """

    def __init__(self, manager: Manager, labels: Labels, configuration: Configuration):
        self._manager = manager
        self._labels = labels
        self._configuration = configuration
        self.is_stopping = False
        self._pages: dict[str, Callable[[], str]] = {
            "/models": self._models,
            "/config": self._config,
        }

    def stopping(self) -> None:
        """Notes that the server is about to stop, so that no more requests are sent to it."""
        self.is_stopping = True

    def probe(self, method: str, path: str) -> Answer | None:
        """Returns whether the server lives, or is ready; None where that was not asked."""
        if method not in ("GET", "HEAD"):
            return None
        if path == "/livez":
            return _said(200, "alive")
        if path == _READY:
            return _said(503, "stopping") if self.is_stopping else _said(200, "ready")
        if path.startswith(f"{_READY}/"):
            return self._model_ready(unquote(path.removeprefix(f"{_READY}/")))
        return None

    def answer(self, method: str, path: str) -> Answer | None:
        """Returns the page at `path`; None where there is none."""
        page = self._pages.get(path) if method == "GET" else None
        return Answer(200, page()) if page else None

    def _model_ready(self, name: str) -> Answer:
        if self.is_stopping:
            return _said(503, "stopping")
        ready = any(each.state is State.AVAILABLE for each in self._manager.status(name))
        return _said(200, "ready") if ready else _said(503, "not ready")

    def _models(self) -> str:
        return json.dumps({"models": [self._model(name) for name in self._manager.names()]})

    def _model(self, name: str) -> dict:
        return {
            "name": name,
            "labels": dict(self._labels.of(name)),
            "versions": [
                {
                    "version": each.version,
                    "state": each.state.name,
                    "error": str(each.error) if each.error else "",
                    "signatures": self._signatures(name, each.version),
                }
                for each in self._manager.status(name)
            ],
        }

    def _signatures(self, name: str, version: int) -> list[str]:
        if not self._manager.is_available(name, version):
            return []
        with self._manager.use(name, version) as (_, servable):
            return sorted(servable.signatures)

    def _config(self) -> str:
        current = self._configuration.current()
        return json_format.MessageToJson(current, preserving_proto_field_name=True)


def _said(status: int, word: str) -> Answer:
    return Answer(status, json.dumps({"status": word}))

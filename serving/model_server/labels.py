"""Names of versions: `stable` for 1, `canary` for 2."""

from collections.abc import Callable, Mapping

from serving.model_server.errors import Code, ServingError, invalid

OfModels = Mapping[str, Mapping[str, int]]  # Version by label by model.


class Labels:
    """The labels of every model, exchanged as a whole; they need no lock.

    Args:
        is_available: Tells whether a version of a model can be used.
        even_unavailable: Let a new label have a version that cannot be used yet.
    """

    def __init__(self, is_available: Callable[[str, int], bool], even_unavailable: bool = False):
        self._is_available = is_available
        self._even_unavailable = even_unavailable
        self._labels: OfModels | None = None

    def version(self, model: str, label: str) -> int:
        """Returns the version of `model` that `label` names.

        Raises:
            ServingError: It names none.
        """
        labels = self._labels
        if labels is None:
            text = f"Model labels does not init yet.{label}"
            raise ServingError(Code.UNAVAILABLE, text)
        if label not in labels.get(model, {}):
            raise invalid(f"Unrecognized servable version label: {label}")
        return labels[model][label]

    def of(self, model: str) -> Mapping[str, int]:
        """Returns the version of every label of `model`."""
        return (self._labels or {}).get(model, {})

    def assign(self, wanted: OfModels) -> None:
        """Gives every model the labels in `wanted`, and no others.

        A model one of whose labels cannot be set keeps those that it has.

        Raises:
            ServingError: With the first such label, after all that can be set are.
        """
        old, new, failures = self._labels or {}, {}, []
        for model, labels in wanted.items():
            try:
                for label, version in labels.items():
                    self._check(model, label, version, old.get(model, {}))
                new[model] = dict(labels)
            except ServingError as error:
                new[model] = old.get(model, {})
                failures.append(error)
        self._labels = new
        if failures:
            raise failures[0]

    def _check(self, model: str, label: str, version: int, old: Mapping[str, int]) -> None:
        moved = old.get(label, version) != version
        if self._is_available(model, version) or (self._even_unavailable and not moved):
            return
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"Request to assign label to version {version} of model {model}, "
            "which is not currently available for inference",
        )

"""From a checkpoint to a SavedModel, and from a SavedModel to answers."""

"""Sizes and choices of models and tasks: plain data, read and checked without TensorFlow.

Each architecture has its `Config` here, beside the file that builds it, because a job is checked
before TensorFlow (seconds to import) is wanted: nothing in this folder imports it at the top.
"""

from pydantic import ConfigDict

# For every configuration dataclass of ours: unknown fields are errors, and so are values of
# another type.
STRICT = ConfigDict(extra="forbid", strict=True)

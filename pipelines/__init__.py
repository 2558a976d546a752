"""The orchestrator: a job from raw records to a served, verified model."""

import os

# An error in a configuration is told in words, without a link to pydantic's pages.
os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")

"""The orchestrator: a job from raw records to a served, verified model."""

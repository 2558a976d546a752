"""Searches over a step function, wholly in graph."""

"""Measures of a run, and what can be said of them over prompts: pure functions on arrays."""

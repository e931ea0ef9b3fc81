"""What tests and benchmarks share: tiny models and edits."""

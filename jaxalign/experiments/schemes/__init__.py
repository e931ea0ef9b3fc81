"""Precision schemes side by side: what each costs, what it changes, and what noise would change."""

from jaxalign.experiments.schemes.study import schemes_study

__all__ = ["schemes_study"]

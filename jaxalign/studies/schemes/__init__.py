"""Precision schemes side by side, each beside what noise of its size would change."""

"""Damaged files, drawn by seed: every reader must read or refuse them, in one line, in time."""

"""The one error a user is meant to read: what is wrong, where, and what to do about it."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: a file, an argument, a checkpoint, a device.

    The command line prints it as one line and leaves with exit code 2.

    Args:
        problem: what is wrong and where, with what was expected and what was found.
        remedy: what the reader can do about it, as an imperative.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = " ".join(problem.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.problem.rstrip('.')}. {self.remedy.rstrip('.')}.")

"""What goes wrong for a client."""

from __future__ import annotations


class BiobracketError(Exception):
    """Base of the errors of clients: no answer, an answer that is none, or a setting that is wrong."""


class ApiError(BiobracketError):
    """The server refused: ``status``, and its ``field``, ``problem`` and ``remedy``. Never holds what was sent."""

    def __init__(self, status: int, field: str, problem: str, remedy: str) -> None:
        super().__init__(status, field, problem, remedy)
        self.status = status
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.status}, {self.field}: {self.problem}; {self.remedy}"

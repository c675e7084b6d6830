"""Recognition explains itself: what a file is, why that is thought, and what is odd about it."""

from __future__ import annotations

from diffadapt.explain.build import explain
from diffadapt.explain.explanation import Candidate, Explanation, Problem, Row
from diffadapt.explain.files import Failure, Wanted, explain_file, explain_files

__all__ = [
    "Candidate", "Explanation", "Failure", "Problem", "Row", "Wanted", "explain", "explain_file", "explain_files",
]  # fmt: skip

"""Scores: word error rates with their statistics, tables for the terminal, and the report."""

from specialize.score.counts import normalizer
from specialize.score.report import write_report
from specialize.score.results import score, write_results
from specialize.score.terminal import align, differences, tables
from specialize.score.transcript import Transcript

__all__ = [
    "Transcript",
    "align",
    "differences",
    "normalizer",
    "score",
    "tables",
    "write_report",
    "write_results",
]

"""One frozen speech recogniser, and a small Submodel for each person, trained by the hundred in one job."""

__version__ = "0.1.0"

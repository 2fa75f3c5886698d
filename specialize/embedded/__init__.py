"""Synthetic speech of 30 made-up people with distortions, and a small base that knows undistorted voices.

Nothing here was said by a person; the README beside this file says how it was made. It is for trying things out.
"""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""Base folder of a Conformer with CTC over letters; made by `experiments/embedded_base.py`."""
MANIFEST = Path(__file__).parent / "manifest.jsonl"
"""Corpus of the 30 people, ten of each severity."""

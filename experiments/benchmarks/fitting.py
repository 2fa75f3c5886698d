"""What a benchmark trains where its flags do not say: a spec and an experiment that fit the base."""

import re
from dataclasses import replace
from pathlib import Path

from specialize.base import Base, Whisper, load_base
from specialize.commands import load_experiment
from specialize.submodel import ResidualAdapter, sites
from specialize.submodel.kinds import AnyKind

EVERY_LAYER = ResidualAdapter(where=(), bottleneck=48)
"""Adapters after every layer that the base has; `fitted` says which those are."""
_LAYERS = ("encoder/layers_*", "decoder/layers_*", "decoder/lstm_*")
_EXPERIMENTS = Path(__file__).parents[1]


def fitted(spec: AnyKind, base: Base) -> AnyKind:
    """The spec, and where it names no places, with all layers of encoder and decoder that the base has."""
    if spec.where:
        return spec
    there = {re.sub(r"_\d+$", "_*", path) for path in sites(base.architecture, base.params)}
    return replace(spec, where=tuple(pattern for pattern in _LAYERS if pattern in there))


def fitting(base: Path, experiment: Path | None, manifest: Path | None) -> tuple[Path, Path]:
    """Experiment file and manifest, and where none is named, those for a base of this architecture."""
    if experiment is None:
        whisper = isinstance(load_base(base).architecture, Whisper)
        experiment = _EXPERIMENTS / ("speechocean_whisper.py" if whisper else "quickstart.py")
    return experiment, manifest or load_experiment(experiment).corpus.manifest

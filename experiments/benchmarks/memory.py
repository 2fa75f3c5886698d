"""Memory of a cohort: bank and optimizer on the devices, at several numbers of slots.

python experiments/benchmarks/memory.py --slots 8 32 128 --json memory.json

Without --submodel.where, residual adapters go after every layer of the encoder, and of the decoder where the base has
one.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import tyro
from fitting import EVERY_LAYER, fitted

from specialize.base import load_base
from specialize.submodel import AnyKind, find_sites
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort
from specialize.train.trainee import Plain


@dataclass(frozen=True)
class Benchmark:
    """Bytes of all that a cohort keeps from step to step."""

    base: Path = Path("bases/whisper-tiny.en")
    """Base folder."""
    slots: tuple[int, ...] = (8, 32, 128)
    """Numbers of slots S."""
    submodel: tyro.conf.AvoidSubcommands[AnyKind] = EVERY_LAYER
    """What is trained."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Measures what is alive on the devices with and without a state."""
    base = load_base(options.base)
    options = replace(options, submodel=fitted(options.submodel, base))
    sites = find_sites(options.submodel, base.architecture, base.params)
    rows = []
    for slots in options.slots:
        cohort = Cohort(base.architecture, Plain(options.submodel, sites), speaker_mesh(), slots, random=False)
        before = _alive()
        state = jax.block_until_ready(cohort.empty_state())
        size = _alive() - before
        rows.append({"slots": slots, "bytes": size, "bytes_per_slot": size / slots})
        print(f"S={slots:<4} {size / 1e6:8.1f} MB, {size / slots:,.0f} bytes a slot", flush=True)
        del state
    if options.json is not None:
        options.json.write_text(json.dumps({"spec": str(options.submodel), "rows": rows}, indent=1) + "\n")


def _alive() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))

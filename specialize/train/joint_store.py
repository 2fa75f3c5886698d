"""What a run leaves of a space: the space, a plain Submodel of each speaker, and what came of it."""

import json
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np

from specialize.errors import StoreError
from specialize.processes import Peers
from specialize.space import Space, save_space
from specialize.space.generators import generator_name
from specialize.submodel import size
from specialize.submodel.checkpoint import absolute, clear_unfinished
from specialize.train.estimate import Layout
from specialize.train.experiment import to_json
from specialize.train.joint import SpacePlan, SpaceRun
from specialize.train.joint_standing import Standing
from specialize.train.joint_step import Best
from specialize.train.loop import finite_or_none
from specialize.train.metrics import JsonLines
from specialize.train.progress import Progress
from specialize.train.recorder import JOBS
from specialize.train.run import write_json
from specialize.train.writer import WriterKilled, store_writer, write_submodel, written


def store_space(
    run: SpaceRun,
    planned: SpacePlan,
    at: Standing,
    best: Best,
    skipped: np.ndarray,
    layout: Layout,
    seconds: float,
    shown: Progress,
) -> None:
    """Writes `space/`, `submodels/`, `jobs.jsonl` and, when all of it is there, `summary.json`.

    Of several processes, each stores the Submodels of its share of speakers; process 0 writes everything else.

    Args:
        run: that has ended.
        planned: what was trained.
        at: how it stands.
        best: the space, on the host.
        skipped: steps that were not taken, of each speaker in the order of the queue.
        layout: slots and chunk.
        seconds: that the run took, in all its sittings.
        shown: hears of trouble.

    Raises:
        StoreError: the space or some Submodels could not be written; all others are.
    """
    facts, peers = _facts(run, planned, at, skipped), planned.plan.peers
    space = _space(planned, at, best, facts, layout.slots)
    with store_writer(peers) as pool:
        if peers.first:
            clear_unfinished(absolute(run.folder))
            run.store.clear_unfinished()
            written(pool.submit(save_space, run.space_folder, space, overwrite=run.space_folder.exists()))
            jobs = JsonLines(run.folder / JOBS, 0)
            for speaker, of in facts.items():
                jobs.write({"speaker": speaker, "point": 0, "quarantined": of["ended"], "spec": str(planned.spec)} | of)
            jobs.close()
        peers.exchange(None, patient=True)  # what killed writes left is gone
        failures = _store(run, space, pool, peers, shown) if run.experiment.store else {}
    if failures:
        speaker, reason = next(iter(failures.items()))
        raise StoreError(
            f"{len(failures)} of {len(space.embeddings)} Submodels could not be stored; the others are in "
            f"'{run.folder}'. The first is that of '{speaker}': {reason}. When that is mended, the same command makes "
            "what is missing."
        )
    if not peers.first:
        return
    summary = {
        "submodels": len(space.embeddings),
        "jobs": len(planned.jobs),
        "parameters_each": size(space.shared["mean"]),
        "base_parameters": size(planned.plan.base.params),
        "shared_parameters": size(space.shared),
        **space.training,
        "chunk": layout.chunk,
        "devices": [f"{d.platform}:{d.device_kind}" for d in planned.plan.mesh.devices.flat],
        "seconds": round(seconds, 1),
        "submodels_per_hour": round(len(space.embeddings) / seconds * 3600, 1),
        "padded_share": round(at.totals.padded_share, 4),
        "slots_busy": round(at.totals.busy_share, 4),
        "quarantined": {planned.jobs[place].speaker.id: reason for place, reason in at.left_out.items()},
    }
    write_json(run.folder / "summary.json", summary)
    better = sum(of["beats_base_on_dev"] for of in facts.values())
    told = {"dev_loss": space.training["dev_loss"], "step": at.best_step, "beats the base": f"{better}/{len(facts)}"}
    shown.done("space", json.dumps(told))


def _facts(run: SpaceRun, planned: SpacePlan, at: Standing, skipped: np.ndarray) -> dict[str, dict[str, Any]]:
    """For the metadata of each stored Submodel, and for the log of jobs: JSON data, as `Finished.facts` has it."""
    hyper = to_json(run.experiment.hyper)
    facts = {}
    for place, job in enumerate(planned.jobs):
        base, dev, ended = at.base[place], at.best[place], at.left_out.get(place)
        facts[job.speaker.id] = {
            "steps": at.step,
            "best_step": at.best_step,
            "base_dev_loss": finite_or_none(base),
            "start_dev_loss": finite_or_none(at.start[place]),
            "dev_loss": finite_or_none(dev),
            "beats_base_on_dev": ended is None and dev < base,
            "skipped_steps": int(skipped[place]),
            "ended": ended,
            "hyper": hyper,
        }
    return facts


def _space(planned: SpacePlan, at: Standing, best: Best, facts: dict[str, dict[str, Any]], slots: int) -> Space:
    embeddings = {
        job.speaker.id: best.embeddings[place % slots, place // slots]
        for place, job in enumerate(planned.jobs)
        if place not in at.left_out
    }
    training = {
        "generator": generator_name(planned.experiment.space),
        "steps": at.step,
        "best_step": at.best_step,
        "base_dev_loss": at.mean(at.base),
        "start_dev_loss": at.mean(at.start),
        "dev_loss": at.mean(at.best),
        "slots": slots,
    }
    kept = {speaker: facts[speaker] for speaker in embeddings}
    of, base = planned.experiment, planned.plan.base.fingerprint
    return Space(of.space, of.submodel, base, best.shared, embeddings, training, kept)


def _store(run: SpaceRun, space: Space, pool: Executor, peers: Peers, shown: Progress) -> dict[str, str]:
    """Stores everybody's Submodel; returns {speaker: why it could not be}, of all processes."""
    failures: dict[str, str] = {}
    for speaker in _share(space, peers):
        try:
            written(pool.submit(write_submodel, str(run.store.folder), space.submodel(speaker)))
        except WriterKilled:
            raise
        except StoreError as error:
            failures[speaker] = str(error)
    everyone = peers.exchange(failures, patient=True)
    failures = {speaker: reason for of in everyone for speaker, reason in of.items()}
    for reason in failures.values():
        shown.note(f"not stored: {reason}")
    return failures


def _share(space: Space, peers: Peers) -> Iterator[str]:
    for number, speaker in enumerate(space.speakers()):
        if number % peers.count == peers.index:
            yield speaker

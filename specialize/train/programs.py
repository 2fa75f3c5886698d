"""One run from end to end: its corpus, its programs one after another, its store and its summary."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from specialize.errors import StoreError
from specialize.processes import ALONE, Peers
from specialize.submodel import size
from specialize.submodel.sites import flatten
from specialize.train.estimate import Layout, told_of_memory
from specialize.train.experiment import Experiment, to_json
from specialize.train.planning import Plan, plan
from specialize.train.progress import Progress
from specialize.train.recorder import Recorder
from specialize.train.run import STATE, Run, write_json
from specialize.train.state import Saved, StateFolder
from specialize.train.together import begin_together, check_alike, check_count, has_ended, progress_of, taken


def train(
    experiment: Experiment, *, overwrite: bool = False, progress: Progress | None = None, peers: Peers = ALONE
) -> Run:
    """Trains a Submodel for every speaker of the experiment's corpus and stores each on its own.

    A run of this name that has not ended goes on from its last saved state, to the same bits as if it had not stopped.
    One that has ended is told to have, and returned.

    Args:
        experiment: what to train.
        overwrite: replace a run of the same name.
        progress: where to show how it goes; None shows it on stderr.
        peers: the processes that train it together, from `specialize.processes.joined`. The run folder is one that all
            of them reach.

    Returns:
        The finished run.

    Raises:
        SpecializeError: the base, the corpus, the spec or the settings cannot be used; before any training.
        Preempted: SIGTERM came; the state is saved.
        StoreError: Submodels could not be written; all others are.
    """
    check_count(peers)
    planned = plan(experiment, peers)
    corpus = planned.corpus.built.folder.name
    run = begin_together(
        Run,
        planned.experiment,
        peers,
        overwrite=overwrite,
        alike={"corpus": [corpus, len(planned.corpus.speakers)]},
        base=planned.base.fingerprint,
        corpus=corpus,
        start=None if planned.start is None else _digest(planned.start),
        space=None if (space := planned.space) is None else _digest(space.shared | {"embeddings": space.middle()}),
    )
    shown = progress or progress_of(peers)
    if has_ended(run, shown, peers):
        return run
    with taken(run, shown, peers) as stopped:
        _train(planned, run, shown, stopped)
    return run


def _train(planned: Plan, run: Run, shown: Progress, stopped: Callable[[], bool]) -> None:
    peers, problems = planned.peers, planned.corpus.problems
    if peers.first:
        write_json(run.folder / "problems.json", [vars(problem) for problem in problems])
    for problem in problems:
        shown.note(f"left out: {problem}")
    if run.changed_versions:
        shown.note(f"goes on with other packages, so maybe other bits: {', '.join(run.changed_versions)}")
    if len(planned.programs) > 1:
        shown.note(f"the grid makes {len(planned.programs)} programs, which run one after another")
    states = StateFolder(run.folder / STATE, peers)
    saved = states.latest()
    check_alike(peers, {"last state": saved and saved.number})
    began = saved.progress["run"] if saved else None
    recorder = peers.in_turn(lambda: Recorder(run, planned.base, shown, states, stopped, began, peers))
    check_alike(peers, {"jobs in its log": recorder.ended})
    with contextlib.closing(states), contextlib.closing(recorder):
        if saved is not None:
            shown.note(f"goes on with '{run.folder}' from its last state: {recorder.ended} jobs have ended")
        _train_programs(planned, recorder, states, saved, shown)
        recorder.settle()
        chosen = recorder.choose() if not recorder.failures else {}
    peers.exchange(None, patient=True)  # nothing is told to have ended before all of it is written
    if recorder.failures:
        speaker, reason = next(iter(recorder.failures.items()))
        raise StoreError(
            f"{len(recorder.failures)} of {recorder.ended} Submodels could not be stored; the others are in "
            f"'{run.folder}'. The first is that of '{speaker}': {reason}. When that is mended, the same command makes "
            "what is missing."
        )
    one = Layout(planned.mesh.devices.size, 0)
    sizes = [planned.cohort(program, one).parameters_each() for program in planned.programs]
    summary = {
        "submodels": sum(chosen.values()),
        "jobs": recorder.ended,
        "parameters_each": max(submodel for submodel, _ in sizes),
        "trained_each": max(trained for _, trained in sizes),
        "base_parameters": size(planned.base.params),
        **recorder.layout,
        "devices": [f"{d.platform}:{d.device_kind}" for d in planned.mesh.devices.flat],
        "seconds": round(recorder.seconds, 1),
        "submodels_per_hour": round(recorder.ended / recorder.seconds * 3600, 1),
        "padded_share": round(recorder.totals.padded_share, 4),
        "slots_busy": round(recorder.totals.busy_share, 4),
        "quarantined": recorder.quarantined,
        "grid": _grid(planned, recorder, chosen),
    }
    if peers.first:
        write_json(run.folder / "summary.json", summary)
        run.clear()


def _train_programs(
    planned: Plan, recorder: Recorder, states: StateFolder, saved: Saved | None, shown: Progress
) -> None:
    """Trains what is left: all programs, or from the one that a state was saved of."""
    title = planned.experiment.name
    first = saved.progress["run"]["program"] if saved is not None else 0
    before = sum(len(program.jobs) for program in planned.programs[:first])
    for number, program in list(enumerate(planned.programs))[first:]:
        goes_on = saved is not None and number == first
        if saved is not None and goes_on:
            layout = Layout(saved.progress["run"]["slots"], saved.progress["run"]["chunk"])
        else:
            layout = planned.layout(program)
        recorder.program, recorder.spec = number, program.spec
        recorder.layout = {"slots": layout.slots, "chunk": layout.chunk}
        recorder.check_stop()  # it may have been measured for a while
        name = title if len(planned.programs) == 1 else f"{title}, {program.spec}"
        shown.start(len(program.jobs), layout.slots, name, recorder.ended - before if goes_on else 0)
        trainer = planned.trainer(program, layout)
        with told_of_memory(layout.slots):
            if saved is not None and goes_on:
                trainer.run(recorder, (states.load(saved, trainer.cohort.empty_state()), saved.progress["trainer"]))
            else:
                trainer.run(recorder)
        recorder.totals = recorder.totals + trainer.totals


def _digest(tree: Mapping[str, Any]) -> str:
    """32 hex digits over every array of a tree."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:32]


def _grid(planned: Plan, recorder: Recorder, chosen: dict[int, int]) -> list[dict[str, Any]]:
    """What came of each point of a grid; empty without one."""
    if not planned.experiment.grid:
        return []
    means = recorder.means()
    rows = []
    specs, hypers = ([to_json(value) for value in values] for values in zip(*planned.points, strict=True))
    for point, (spec, hyper) in enumerate(zip(specs, hypers, strict=True)):
        loss, speakers = means.get(point, (None, 0))
        varies = {f"submodel.{name}": value for name, value in spec.items() if any(s.get(name) != value for s in specs)}
        varies |= {name: value for name, value in hyper.items() if any(h[name] != value for h in hypers)}
        row = {"point": point, "values": varies, "spec": spec, "hyper": hyper}
        rows.append(row | {"mean_dev_loss": loss, "speakers": speakers, "chosen_for": chosen.get(point, 0)})
    return rows

"""Grids: points from axes, the queue they make, who goes on at a rung, and what a run keeps of them."""

import dataclasses
import functools
import itertools
import json
import math
import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from specialize.base import save_base
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.corpus import Cut, Speaker, Utterance, cohort_batches
from specialize.errors import ConfigError, SpecializeError
from specialize.submodel import LoRA, ResidualAdapter
from specialize.train import HyperParameters, Job, Run, Schedule, Stopping, plan, train
from specialize.train.experiment import to_json
from specialize.train.jobs import Jobs, joint_axis, parse_grid
from specialize.train.recorder import Recorder, read_jobs
from specialize.train.schedule import HALVED, Running
from tests.bases import tiny_whisper
from tests.people import write_people
from tests.train.cohorts import one_shape, people

SPEC = ResidualAdapter(bottleneck=4)


# What axes mean


@pytest.mark.parametrize(
    ("axis", "field", "values"),
    [
        ("lr=3e-4,1", "learning_rate", [3e-4, 1.0]),
        ("learning-rate=0", "learning_rate", [0.0]),
        ("wd=0.1,0", "weight_decay", [0.1, 0.0]),
        ("spec-augment=1", "spec_augment", [1.0]),
        ("warmup=0,8", "warmup", [0, 8]),
        ("seed=3", "seed", [3]),
        ("utterances=4,16", "utterances", [4, 16]),
    ],
)
def test_an_axis_is_a_field_with_values_of_its_type(axis, field, values):
    points = [hyper for _, hyper in parse_grid([axis], HyperParameters(clip=2.0), SPEC)]
    found = [getattr(hyper, field) for hyper in points]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]
    assert points == [HyperParameters(**{"clip": 2.0, field: value}) for value in values]


def test_a_field_given_as_a_whole_number_takes_fractions_where_its_type_does():
    points = parse_grid(["wd=0.5"], HyperParameters(weight_decay=0), LoRA(alpha=16))
    assert [hyper.weight_decay for _, hyper in points] == [0.5]
    points = parse_grid(["submodel.alpha=0.5"], HyperParameters(), LoRA(alpha=16))
    assert [spec.alpha for spec, _ in points] == [0.5]


def test_axes_multiply_and_the_points_of_a_spec_stand_together():
    axes = ["lr=1,2", "submodel.bottleneck=3,2", "seed=0,1"]
    points = [(spec.bottleneck, h.learning_rate, h.seed) for spec, h in parse_grid(axes, HyperParameters(), SPEC)]
    assert points == list(itertools.product((3, 2), (1.0, 2.0), (0, 1)))
    assert parse_grid([], HyperParameters(seed=5), SPEC) == [(SPEC, HyperParameters(seed=5))]


def test_fields_that_are_joined_go_together():
    joined = parse_grid(["lr:wd=1:0,2:0.5", "submodel.bottleneck:seed=3:7,2:8"], HyperParameters(), SPEC)
    assert [(spec.bottleneck, h.seed, h.learning_rate, h.weight_decay) for spec, h in joined] == [
        (size, seed, *both) for size, seed in ((3, 7), (2, 8)) for both in ((1.0, 0.0), (2.0, 0.5))
    ]


def test_any_points_are_one_axis_to_the_same_bits():
    rng = random.Random(5)
    for count in (1, 2, 9):
        points = [
            HyperParameters(
                learning_rate=10 ** rng.uniform(-6, 0),
                seed=rng.randint(0, 9),
                utterances=rng.choice((None, 3)),
                clip=2.0,
            )
            for _ in range(count)
        ]
        points += points[:1]
        assert [hyper for _, hyper in parse_grid([joint_axis(points)], points[0], SPEC)] == points


def test_a_kind_and_its_places_may_be_in_a_grid():
    axes = ["submodel.kind=residual-adapter,lora", "submodel.where=a/*+b,c", "lr=1,2"]
    points = parse_grid(axes, HyperParameters(), SPEC)
    places = (("a/*", "b"), ("c",))
    kinds = (SPEC, LoRA())
    expected = [dataclasses.replace(kind, where=where) for kind in kinds for where in places]
    assert [(spec, hyper.learning_rate) for spec, hyper in points] == list(itertools.product(expected, (1.0, 2.0)))
    assert parse_grid(["submodel.kind=lora", "submodel.rank=3"], HyperParameters(), SPEC)[0][0] == LoRA(rank=3)


@pytest.mark.parametrize(
    ("axes", "named"),
    [
        (["colour=1"], ["colour=1", "'colour'", "learning_rate", "utterances", "submodel.bottleneck"]),
        (["submodel.rank=1"], ["submodel.rank=1", "'submodel.rank'", "submodel.bottleneck"]),
        (["submodel.lr=1"], ["submodel.lr=1", "submodel.bottleneck"]),
        (["submodel.kind=adapter"], ["submodel.kind=adapter", "residual-adapter, lora"]),
        (["submodel.kind=lora,bias-only", "submodel.rank=2,4"], ["bias-only has no 'rank'"]),
        (["lr=1e-3,fast"], ["lr=1e-3,fast", "'fast' is not a number"]),
        (["warmup=1.5"], ["warmup=1.5", "'1.5' is not a whole number"]),
        (["lr=1,"], ["lr=1,", "''"]),
        (["seed=1", "dropout=0,1.5"], ["dropout=1.5", "between 0.0 and 0.99"]),
        (["lr=nan"], ["learning_rate=nan"]),
        (["utterances=0"], ["utterances=0", "at least 1"]),
        (["submodel.bottleneck=2,0"], ["submodel.bottleneck=2,0", "bottleneck=0", "at least 1"]),
        (["lr"], ["--grid lr:", "name=value"]),
        (["lr="], ["--grid lr=:", "name=value"]),
        (["lr=1", "learning-rate=2"], ["'learning_rate' twice"]),
        (["lr:wd=1:0", "wd=1"], ["'weight_decay' twice"]),
        (["lr:wd=1:0,2"], ["lr:wd=1:0,2", "joins 2 fields", "'2' has 1 values"]),
        (["lr:wd=1:0,2:few"], ["'few' is not a number"]),
    ],
)
def test_a_wrong_axis_is_named_with_what_would_be_right(axes, named):
    with pytest.raises(SpecializeError) as raised:
        parse_grid(axes, HyperParameters(), SPEC)
    for words in ["--grid", *named]:
        assert words in str(raised.value)


# The queue


def speakers(count: int, utterances: int = 0) -> list[Speaker]:
    """Speakers without audio."""
    said = tuple(Utterance(str(i), i, i, "", 1 + i) for i in range(utterances))
    return [Speaker(f"s{i}", said) for i in range(count)]


def points(count: int) -> list[HyperParameters]:
    return [HyperParameters(seed=seed) for seed in range(count)]


def test_jobs_are_a_sequence_in_which_neighbours_are_of_one_speaker():
    jobs = Jobs(speakers(3), points(2), 7, first=4)
    assert [(job.speaker.id, job.point, job.hyper.seed, job.points, job.max_steps) for job in jobs] == [
        (f"s{speaker}", 4 + point, point, 2, 7) for speaker in range(3) for point in range(2)
    ]
    listed = list(jobs)
    for index in range(6):
        assert jobs[index] == listed[index]
        assert jobs[index - 6] == listed[index - 6]
    for part in (slice(1, 4), slice(None), slice(-2, None), slice(None, None, -2), slice(4, 99), slice(9, 12)):
        assert list(jobs[part]) == listed[part]
    for index in (6, -7):
        with pytest.raises(IndexError):
            jobs[index]
    assert list(reversed(jobs)) == listed[::-1]
    assert list(Jobs([], points(2), 7)) == []


def test_a_million_jobs_cost_nothing():
    people, grid = speakers(1000), points(1000)
    tracemalloc.start()
    try:
        jobs = Jobs(people, grid, 12)
        schedule = Schedule(jobs, 4, Stopping(max_steps=12, every=6, halving=3))
        play(schedule, lambda job, step: -float(job.point), rounds=200)
        assert len(jobs) == 10**6
        assert schedule.position > 100
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


# The budget of utterances


def budgeted(speaker: Speaker, utterances: int | None = None, seconds: float | None = None) -> Job:
    return Job(speaker, HyperParameters(utterances=utterances, seconds=seconds), 9)


def test_a_budget_takes_the_first_utterances():
    (speaker,) = speakers(1, utterances=20)
    for budget in range(1, 21):
        assert budgeted(speaker, budget).train == speaker.train[:budget]
    assert budgeted(speaker).train == budgeted(speaker, 99).train == speaker.train


def test_a_budget_of_seconds_is_not_passed_but_by_the_first_utterance():
    (speaker,) = speakers(1, utterances=20)  # of 1, 2, 3, … samples
    speaker = dataclasses.replace(speaker, sample_rate=2)
    of = {seconds: budgeted(speaker, seconds=seconds).train for seconds in (0.1, 0.5, 1.4, 1.5, 4.9, 5.0, 500.0)}
    assert [len(train) for train in of.values()] == [1, 1, 1, 2, 3, 4, 20]
    assert all(train == speaker.train[: len(train)] for train in of.values())
    assert len(budgeted(speaker, 2, 5.0).train) == 2


@pytest.mark.parametrize("budget", [1, 3, 4, 5, None])
def test_batches_within_a_budget_hold_its_utterances_and_no_other(budget):
    corpus = people()
    job = budgeted(corpus.speakers[0], budget)
    seen = set()
    batches = list(cohort_batches(corpus, [job.at(0)], 6, Cut(4, 2), one_shape(corpus)))
    assert len(batches) == 6
    for dispatch in batches:
        lengths = [int(n) for part in dispatch.parts for n in np.asarray(part.samples).ravel() if n > 0]
        assert len(lengths) == min(4, len(job.train))
        seen |= set(lengths)
    assert seen == {utterance.samples for utterance in job.train}


# Who goes on

Curve = Callable[[Job, int], float]
"""A made-up dev loss: (job, its step) -> loss."""


def play(
    schedule: Schedule, curve: Curve, goes_on: Callable[[Schedule], Schedule] | None = None, rounds: int = 10**6
) -> list[tuple[int, Running]]:
    """Runs a schedule as the trainer does; returns (slot, job) in the order of their ends.

    Args:
        schedule: to run.
        curve: the dev losses.
        goes_on: called wherever a trainer may save; the schedule that it returns takes up from there.
        rounds: at most.
    """
    ended = []

    def look(only: Sequence[int]) -> None:
        losses = [math.nan] * len(schedule.slots)
        for slot in only:
            running = schedule.slots[slot]
            assert running is not None
            losses[slot] = curve(running.job, running.step)
        schedule.look(losses, only)

    for _ in range(rounds):
        filled = schedule.fill()
        if not schedule.busy:
            break
        look(filled)
        for _ in range(schedule.round_steps()):
            schedule.advance(1)
            if goes_on is not None:
                schedule = goes_on(schedule)
                break
        else:
            look(schedule.due())
            ended += schedule.finish()
            if goes_on is not None:
                schedule = goes_on(schedule)
    return ended


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A queue, how its jobs stop, and their dev losses, all at random."""

    jobs: Jobs
    stop: Stopping
    curve: Curve

    @classmethod
    def of(cls, seed: int, **stop: Any) -> "Drawn":
        """Losses come in steps of 0.1, so that some are equal; a few are not finite; some jobs are good throughout."""
        rng = random.Random(seed)
        most = rng.randint(1, 30)
        drawn = {
            "max_steps": most,
            "min_steps": rng.randint(0, most),
            "every": rng.randint(1, 5),
            "patience": rng.randint(1, 4),
            "halving": rng.choice((2, 3)),
        }
        noise = rng.choice((0.1, 1.0))

        @functools.cache
        def loss(speaker: str, point: int, step: int) -> float:
            level = random.Random(f"{seed} {speaker} {point}").gauss(0.0, 1.0) + 10 * int(speaker[1:])
            here = random.Random(f"{seed} {speaker} {point} {step}")
            if here.random() < 0.03:
                return here.choice((math.nan, math.inf))
            return round(level + noise * here.gauss(0.0, 1.0) - 0.02 * step, 1)

        jobs = Jobs(speakers(rng.randint(1, 4)), points(rng.randint(1, 9)), most)
        return cls(jobs, Stopping(**(drawn | stop)), lambda job, step: loss(job.speaker.id, job.point, step))

    def schedule(self, slots: int, refill: Any = "continuous") -> Schedule:
        return Schedule(self.jobs, slots, self.stop, refill)

    def best(self, job: Job, until: int) -> float:
        """Best dev loss of a job at its looks until a step."""
        losses = [self.curve(job, step) for step in range(0, until + 1, self.stop.every)]
        return min((loss for loss in losses if math.isfinite(loss)), default=math.inf)

    def of_speaker(self, speaker: Speaker) -> list[Job]:
        return [job for job in self.jobs if job.speaker.id == speaker.id]


def halved(running: Running) -> bool:
    return (running.ended or "").startswith(HALVED)


def had_enough(looks: Sequence[tuple[int, float]], stop: Stopping) -> bool:
    """Whether a job with these looks ends after the last of them, if nothing is compared."""
    losses = [loss if math.isfinite(loss) else math.inf for _, loss in looks]
    since = len(losses) - 1 - losses.index(min(losses))
    step = looks[-1][0]
    return step >= stop.max_steps or (step >= stop.min_steps and since >= stop.patience)


SETTINGS = list(itertools.product((1, 3, 4, 40), ("continuous", "waves")))
SEEDS = range(30)


@pytest.mark.parametrize(("slots", "refill"), SETTINGS)
def test_each_job_looks_at_its_own_steps_and_ends_for_its_own_reasons_or_at_a_rung(slots, refill):
    for seed in SEEDS:
        drawn = Drawn.of(seed)
        schedule, stop = drawn.schedule(slots, refill), drawn.stop
        ended = [running for _, running in play(schedule, drawn.curve)]
        assert sorted(running.place for running in ended) == list(range(len(drawn.jobs)))
        for running in ended:
            steps = [step for step, _ in running.looks]
            assert steps == [min(k * stop.every, stop.max_steps) for k in range(len(steps))]
            assert running.step == steps[-1]
            enough = [had_enough(running.looks[: k + 1], stop) for k in range(1, len(steps))]
            assert not any(enough[:-1])
            assert enough[-1] or (halved(running) and running.step in schedule.rungs(running.job))


def test_company_changes_neither_looks_nor_results():
    """Also where jobs are out of phase, because the most steps are no multiple of those between two looks."""
    out_of_phase = 0
    for seed in SEEDS:
        drawn = Drawn.of(seed, halving=0)
        out_of_phase += drawn.stop.max_steps % drawn.stop.every > 0
        alone = {r.place: facts(0, r) for _, r in play(drawn.schedule(1), drawn.curve)}
        for slots, refill in SETTINGS[2:]:
            together = play(drawn.schedule(slots, refill), drawn.curve)
            assert {r.place: facts(0, r) for _, r in together} == alone
    assert out_of_phase > 10


def facts(slot: int, running: Running) -> str:
    """All that came of a job, NaN like NaN."""
    return repr((slot, running.place, running.step, running.best_step, running.best_loss, running.looks, running.ended))


@pytest.mark.parametrize(("slots", "refill"), SETTINGS[2:6])
def test_a_schedule_that_is_restored_wherever_it_may_be_saved_goes_on_exactly(slots, refill):
    restored = before_look = 0
    for seed in range(8):
        drawn = Drawn.of(seed)

        def again(schedule: Schedule, drawn: Drawn = drawn) -> Schedule:
            nonlocal restored, before_look
            data = json.dumps(schedule.to_json(), allow_nan=False)
            fresh = drawn.schedule(slots, refill)
            fresh.restore(json.loads(data))
            restored += 1
            before_look += fresh.busy and fresh.round_steps() == 0
            return fresh

        expected = [facts(*end) for end in play(drawn.schedule(slots, refill), drawn.curve)]
        assert [facts(*end) for end in play(drawn.schedule(slots, refill), drawn.curve, again)] == expected
    assert restored > before_look > 50


def test_nine_points_become_three_and_one():
    jobs, stop = Jobs(speakers(2), points(9), 27), Stopping(max_steps=27, every=3, halving=3)
    schedule = Schedule(jobs, 18, stop)
    assert schedule.rungs(jobs[0]) == [3, 9]
    ended = play(schedule, lambda job, step: -step * (job.point + 1))
    for name in ("s0", "s1"):
        steps = {r.job.point: r.step for _, r in ended if r.job.speaker.id == name}
        assert steps == dict.fromkeys(range(6), 3) | dict.fromkeys((6, 7), 9) | {8: 27}
    assert {r.ended for _, r in ended if r.job.point == 8} == {None}
    assert "3 of 3" in {r.job.point: r.ended or "" for _, r in ended}[6]


def test_jobs_that_stand_at_a_rung_together_are_divided_there():
    """One in so many goes on, rounded up: the best so far, the earlier in the queue where they are equal."""
    compared = 0
    for seed in SEEDS:
        drawn = Drawn.of(seed, patience=99)
        schedule = drawn.schedule(len(drawn.jobs))
        expected = {}
        for speaker in drawn.jobs.speakers:
            alive = drawn.of_speaker(speaker)
            expected |= {(speaker.id, job.point): drawn.stop.max_steps for job in alive}
            for rung in schedule.rungs(alive[0]):
                alive.sort(key=lambda job, at=rung: (drawn.best(job, at), job.point))
                stay = math.ceil(len(alive) / drawn.stop.halving)
                expected |= {(speaker.id, job.point): rung for job in alive[stay:]}
                compared += len(alive)
                alive = alive[:stay]
        ended = play(schedule, drawn.curve)
        assert {(r.job.speaker.id, r.job.point): r.step for _, r in ended} == expected
    assert compared > 100


def test_jobs_that_come_one_by_one_are_compared_with_all_that_came_before():
    ended_later = 0
    for seed in SEEDS:
        drawn = Drawn.of(seed, patience=99)
        schedule = drawn.schedule(1)
        expected = []
        for speaker in drawn.jobs.speakers:
            heats: dict[int, list[float]] = {}
            for job in drawn.of_speaker(speaker):
                end = drawn.stop.max_steps
                for rung in schedule.rungs(job):
                    mine, heat = drawn.best(job, rung), heats.setdefault(rung, [])
                    better = sum(loss <= mine for loss in heat)
                    heat.append(mine)
                    if better >= math.ceil(len(heat) / drawn.stop.halving):
                        end = rung
                        break
                expected.append(end)
        steps = [running.step for _, running in play(schedule, drawn.curve)]
        assert steps == expected
        ended_later += sum(step < drawn.stop.max_steps for step in steps)
    assert ended_later > 100


@pytest.mark.parametrize(("slots", "refill"), SETTINGS)
def test_who_is_best_at_every_rung_is_never_ended_by_halving(slots, refill):
    winners = losers = 0
    for seed in SEEDS:
        drawn = Drawn.of(seed)
        schedule = drawn.schedule(slots, refill)
        ended = {(r.job.speaker.id, r.job.point): halved(r) for _, r in play(schedule, drawn.curve)}
        losers += sum(ended.values())
        for speaker in drawn.jobs.speakers:
            jobs = drawn.of_speaker(speaker)
            rungs = schedule.rungs(jobs[0])
            best = {min((drawn.best(job, rung), job.point) for job in jobs)[1] for rung in rungs}
            if len(best) == 1:
                winners += 1
                assert not ended[speaker.id, best.pop()]
    assert winners > 20
    assert losers > 50


def test_a_job_in_quarantine_is_not_compared():
    schedule = Schedule(Jobs(speakers(1), points(2), 8), 2, Stopping(max_steps=8, every=4, halving=2))
    schedule.fill()
    schedule.look([0.0, 0.0], [0, 1])
    schedule.advance(4)
    schedule.look([-9.0, -1.0], schedule.due())
    schedule.quarantine(0, "broken")
    assert [(slot, running.ended) for slot, running in schedule.finish()] == [(0, "broken")]
    assert schedule.slots[1] is not None


def test_what_was_compared_is_forgotten_when_a_speaker_is_done():
    schedule = Schedule(Jobs(speakers(12), points(3), 8), 2, Stopping(max_steps=8, every=4, halving=2))
    kept = []

    def count(schedule: Schedule) -> Schedule:
        kept.append(len(schedule.to_json()["rungs"]))
        return schedule

    play(schedule, lambda job, step: float(job.point), count)
    assert 1 <= max(kept) <= 3  # the speakers of two slots, and the next


# Runs

EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, Experiment, HyperParameters, ResidualAdapter, Stopping

here = Path(__file__).parent
experiment = Experiment(
    name="people",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    hyper=HyperParameters(learning_rate=1e-2),
    stop=Stopping(max_steps=6, every=3),
    cohort=CohortConfig(slots=8, shapes=1),
    runs=here / "runs",
)
"""
RATES = (0.0, 0.1, 1.0)
"""Learning rates of which the second is the best for one of the people, and the third for the others."""
GRID = "lr=" + ",".join(map(str, RATES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    write_people(folder, speakers=3, utterances=8)
    save_base(tiny_whisper(), folder / "base")
    (folder / "grid.py").write_text(EXPERIMENT)
    return folder


def trained(folder: Path, name: str, **changes: Any) -> Run:
    return train(dataclasses.replace(load_experiment(folder / "grid.py"), name=name, **changes))


@pytest.fixture(scope="module")
def single(folder) -> list[dict[str, Any]]:
    """What comes of each point where it is a run of its own: {speaker: stored Submodel}."""
    runs = [trained(folder, f"rate {rate}", hyper=HyperParameters(learning_rate=rate)) for rate in RATES]
    return [{name: run.store.load(name) for name in run.store.speakers()} for run in runs]


def dev_losses(single: list[dict[str, Any]], name: str) -> list[float]:
    return [of_point[name].training["dev_loss"] for of_point in single]


def assert_same_bits(one: Any, two: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one.submodel, two.submodel)
    assert one.training["looks"] == two.training["looks"]
    assert one.training["hyper"] == two.training["hyper"]


def test_a_grid_keeps_for_each_speaker_the_point_that_is_best_on_their_dev_set(folder, single):
    run = trained(folder, "each", grid=(GRID,))
    best = {name: int(np.argmin(dev_losses(single, name))) for name in single[0]}
    assert set(best.values()) == {1, 2}
    assert set(run.store.speakers()) == set(best)
    for name, point in best.items():
        assert_same_bits(run.store.load(name), single[point][name])
    summary = run.read("summary.json")
    assert (summary["jobs"], summary["submodels"], summary["quarantined"]) == (9, 3, {})
    assert [row["hyper"]["learning_rate"] for row in summary["grid"]] == list(RATES)
    for point, row in enumerate(summary["grid"]):
        assert (row["point"], row["spec"], row["speakers"]) == (point, to_json(ResidualAdapter(bottleneck=2)), 3)
        assert row["mean_dev_loss"] == pytest.approx(np.mean([dev_losses(single, name)[point] for name in best]))
        assert row["chosen_for"] == list(best.values()).count(point)


def pooled_point(single: list[dict[str, Any]]) -> int:
    return int(np.argmin(np.mean([dev_losses(single, name) for name in sorted(single[0])], axis=0)))


def assert_one_point_for_all(run: Run, single: list[dict[str, Any]]) -> None:
    point = pooled_point(single)
    assert set(run.store.speakers()) == set(single[0])
    for name in single[0]:
        assert_same_bits(run.store.load(name), single[point][name])
    assert not (run.folder / "candidates").exists()
    assert [row["chosen_for"] for row in run.read("summary.json")["grid"]] == [3 * (p == point) for p in range(3)]


def test_select_pooled_keeps_one_point_for_all(folder, single):
    assert any(np.argmin(dev_losses(single, name)) != pooled_point(single) for name in single[0])
    main(["train", str(folder / "grid.py"), "--name", "pooled", "--grid", GRID, "--select", "pooled"])
    run = Run(folder / "runs/pooled")
    assert run.experiment.grid == (GRID,)
    assert_one_point_for_all(run, single)


def test_a_kill_between_the_choice_and_the_summary_loses_no_submodel(folder, single, monkeypatch):
    """The state to go on from is older than the choice, and has some of the Submodels before it."""

    def once(recorder: Recorder) -> bool:
        early = 0 < recorder.ended < 9 and not saved
        saved.extend([True] * early)
        return early

    def killed(recorder: Recorder) -> Any:
        choose(recorder)
        raise KeyboardInterrupt

    saved: list[bool] = []
    choose = Recorder.choose
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "saves", once)
        patched.setattr(Recorder, "choose", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(folder, "killed", grid=(GRID,), select="pooled")
    assert saved
    assert_one_point_for_all(trained(folder, "killed", grid=(GRID,), select="pooled"), single)


def test_halving_in_a_run_ends_losers_and_keeps_the_best_of_all_jobs(folder, capsys):
    words = ("--stop.max-steps", "6", "--stop.every", "3", "--stop.halving", "2", "--hyper.clip", "inf")
    words = ("train", str(folder / "grid.py"), "--name", "halved", *words, "--grid", "lr:clip=0:1,1:inf")
    main([*words])
    run = Run(folder / "runs/halved")
    jobs = read_jobs(run)
    assert len(jobs) == 6
    for name in run.store.speakers():
        of_one = {job["point"]: job for job in jobs if job["speaker"] == name}
        assert (of_one[0]["steps"], of_one[1]["steps"]) == (3, 6)
        assert of_one[0]["ended"].startswith(HALVED)
        assert not of_one[0]["quarantined"]
        assert run.store.load(name).training["dev_loss"] == min(job["dev_loss"] for job in of_one.values())
    # What clips nothing is kept as JSON has it, reads back, and is the same configuration when it is typed again.
    assert run.experiment.hyper.clip == np.inf
    assert [row["hyper"]["clip"] for row in run.read("summary.json")["grid"]] == [1.0, "inf"]
    assert {run.store.load(name).training["hyper"]["clip"] for name in run.store.speakers()} <= {1.0, "inf"}
    assert {job["hyper"]["clip"] for job in jobs} == {1.0, "inf"}
    for text in ("config.json", "summary.json"):
        json.loads((run.folder / text).read_text(), parse_constant=pytest.fail)
    capsys.readouterr()
    main([*words])
    assert "has ended already, with this configuration" in (said := capsys.readouterr()).err
    assert "learning_rate=1.0 clip=inf" in said.out


def test_a_size_in_a_grid_makes_a_program_of_each_and_the_stored_spec_is_that_of_the_best(folder, capsys):
    axes = ("submodel.bottleneck=2,3", "lr=0,1")
    run = trained(folder, "sizes", grid=axes)
    assert "2 programs" in capsys.readouterr().err
    specs = [ResidualAdapter(bottleneck=size) for size in (2, 3)]
    assert [(program.spec, len(program.jobs)) for program in plan(run.experiment).programs] == [(s, 6) for s in specs]
    jobs = read_jobs(run)
    order = [job["point"] // 2 for job in jobs]
    assert order == sorted(order) == [0] * 6 + [1] * 6
    chosen = []
    for name in ("p0", "p1", "p2"):
        best = min((job for job in jobs if job["speaker"] == name), key=lambda job: (job["dev_loss"], job["point"]))
        stored = run.store.load(name, base=run.base)
        assert str(stored.spec) == best["spec"] == str(specs[best["point"] // 2])
        assert stored.training["dev_loss"] == best["dev_loss"]
        kernels = [weights["down_kernel"] for weights in stored.submodel.values()]
        assert {kernel.shape[-1] for kernel in kernels} == {specs[best["point"] // 2].bottleneck}
        chosen.append(best["point"])
    rows = run.read("summary.json")["grid"]
    assert [(row["spec"], row["hyper"]["learning_rate"]) for row in rows] == [
        (to_json(spec), rate) for spec in specs for rate in (0.0, 1.0)
    ]
    assert [row["chosen_for"] for row in rows] == [chosen.count(point) for point in range(4)]


def test_kinds_in_a_grid_are_programs_and_each_speaker_keeps_the_best(folder):
    run = trained(folder, "kinds", grid=("submodel.kind=residual-adapter,bias-only",))
    jobs = read_jobs(run)
    for name in ("p0", "p1", "p2"):
        best = min((job for job in jobs if job["speaker"] == name), key=lambda job: (job["dev_loss"], job["point"]))
        assert str(run.store.load(name, base=run.base).spec) == best["spec"]
    assert [row["values"]["submodel.kind"] for row in run.read("summary.json")["grid"]] == [
        "residual-adapter",
        "bias-only",
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stop": Stopping(halving=2)}, "--grid"),
        ({"stop": Stopping(halving=2), "grid": ("lr=0,1",), "select": "pooled"}, "pooled"),
        ({"stop": Stopping(halving=2), "grid": ("submodel.bottleneck=2,3",)}, "halving"),
    ],
)
def test_halving_that_would_compare_nothing_or_choose_wrongly_is_refused(folder, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        plan(dataclasses.replace(load_experiment(folder / "grid.py"), **changes))

"""Which job is in which slot, without any arrays."""

from collections.abc import Sequence
from typing import Any

import pytest

from specialize.corpus import Speaker
from specialize.errors import ConfigError
from specialize.train import HyperParameters, Job, Schedule, Stopping


def jobs(count: int, max_steps: int = 12) -> list[Job]:
    return [Job(Speaker(str(i)), HyperParameters(), max_steps) for i in range(count)]


def play(schedule: Schedule, loss_of) -> tuple[list[tuple[str, int, int]], list[int]]:
    """Runs a schedule on made-up dev losses: (speaker, steps, best step) as they end, and busy slots a round."""
    ended, busy = [], []
    while True:
        filled = schedule.fill()
        if not schedule.busy:
            return ended, busy

        def losses():
            return [0.0 if r is None else float(loss_of(r.job.speaker.id, r.step)) for r in schedule.slots]

        schedule.look(losses(), filled)
        busy.append(sum(slot is not None for slot in schedule.slots))
        schedule.advance(schedule.round_steps())
        schedule.look(losses(), schedule.due())
        ended += [(running.job.speaker.id, running.step, running.best_step) for _, running in schedule.finish()]


STOP = Stopping(max_steps=12, every=3, patience=2)


def early(speaker: str, step: int) -> float:
    """Even speakers stop getting better after 3 steps."""
    return -step if int(speaker) % 2 else abs(step - 3)


@pytest.mark.parametrize("refill", ["continuous", "waves"])
def test_every_job_ends_with_its_own_best_step_whatever_the_refill(refill):
    ended, _ = play(Schedule(jobs(7), 3, STOP, refill), early)
    assert sorted(ended) == [(str(i), 12, 12) if i % 2 else (str(i), 9, 3) for i in range(7)]


def test_continuous_refill_keeps_slots_busier_than_waves():
    _, continuous = play(Schedule(jobs(12), 3, STOP, "continuous"), early)
    _, waves = play(Schedule(jobs(12), 3, STOP, "waves"), early)
    assert len(continuous) < len(waves)
    assert sum(continuous) / len(continuous) > sum(waves) / len(waves)


def test_the_queue_is_not_read_ahead():
    read = []

    class Queue(Sequence):
        def __len__(self):
            return 10**9

        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return Job(Speaker(str(index)), HyperParameters(), 12)

    schedule = Schedule(Queue(), 4, STOP)
    schedule.fill()
    assert read[-4:] == [0, 1, 2, 3]  # checks of types look at some other one
    assert len(read) < 9


def test_no_job_passes_its_last_step():
    ended, _ = play(Schedule(jobs(2, 7), 2, Stopping(max_steps=7, every=3, patience=9)), lambda s, t: -t)
    assert ended == [("0", 7, 7), ("1", 7, 7)]


def test_min_steps_outlast_patience():
    ended, _ = play(Schedule(jobs(1), 1, Stopping(max_steps=30, min_steps=12, every=3, patience=1)), lambda s, t: t)
    assert ended == [("0", 12, 0)]


def test_losses_that_are_not_finite_are_never_best():
    ended, _ = play(Schedule(jobs(1), 1, STOP), lambda s, t: float("nan"))
    assert [(name, best) for name, _, best in ended] == [("0", 0)]


@pytest.mark.parametrize("fields", [{"max_steps": 0}, {"every": 0}, {"patience": 0}, {"max_steps": 5, "min_steps": 6}])
def test_settings_that_make_no_sense(fields):
    with pytest.raises(ConfigError, match=list(fields)[-1]):
        Stopping(**fields)


@pytest.mark.parametrize(
    "fields", [{"learning_rate": -1.0}, {"dropout": 1.0}, {"clip": 0.0}, {"final": 1.5}, {"spec_augment": float("nan")}]
)
def test_hyper_parameters_that_make_no_sense(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        HyperParameters(**fields)


def test_a_job_seed_is_of_speaker_and_seed_alone():
    seeds = {Job(Speaker(name), HyperParameters(seed=seed), 5).seed for name in ("a", "b", "\udc80") for seed in (0, 1)}
    assert len(seeds) == 6
    assert Job(Speaker("a"), HyperParameters(learning_rate=1.0), 9).seed == Job(Speaker("a"), HyperParameters(), 5).seed

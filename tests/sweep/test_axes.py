"""Axes: any field of an experiment, what is tried of it, and how trials are put together in runs."""

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path

import pytest

from specialize import LoRA, ResidualAdapter, Stopping
from specialize.errors import SpecializeError
from specialize.sweep.axes import _hints, changed, drawn, every, parse_axes
from specialize.sweep.config import Sweep
from specialize.sweep.trials import grouped, make_trials
from specialize.train.jobs import parse_grid
from specialize.train.values import write_value
from tests.sweep.sweeps import EXPERIMENT, numbers

RUNS = Path("sweeps/s/runs")


def runs_of(*axes: str, **how):
    parsed = parse_axes(axes, EXPERIMENT)
    return grouped(make_trials(every(parsed, EXPERIMENT), EXPERIMENT), RUNS, "s", **how)


@pytest.mark.parametrize(
    ("axis", "name", "values"),
    [
        ("lr=3e-4,1", "hyper.learning_rate", [3e-4, 1.0]),
        ("hyper.wd=0,0.1", "hyper.weight_decay", [0.0, 0.1]),
        ("spec-augment=1", "hyper.spec_augment", [1.0]),
        ("utterances=3,None", "hyper.utterances", [3, None]),
        ("cohort.slots=8,auto", "cohort.slots", [8, "auto"]),
        ("cohort.refill=waves,continuous", "cohort.refill", ["waves", "continuous"]),
        ("stop.max-steps=6,12", "stop.max_steps", [6, 12]),
        ("submodel.where=a/*+b,c", "submodel.where", [("a/*", "b"), ("c",)]),
        ("submodel.kind=lora,bias-only", "submodel.kind", ["lora", "bias-only"]),
        ("corpus.speakers=ana+bo,cy", "corpus.speakers", [("ana", "bo"), ("cy",)]),
        ("corpus.strict=True,False", "corpus.strict", [True, False]),
        ("base=one,../two", "base", [Path("one"), Path("../two")]),
        ("start=None,x/y", "start", [None, Path("x/y")]),
        ("context=needed,full", "context", ["needed", "full"]),
        ("save-seconds=1.5", "save_seconds", [1.5]),
    ],
)
def test_an_axis_is_any_field_with_values_of_its_type(axis, name, values):
    (parsed,) = parse_axes([axis], EXPERIMENT)
    assert (parsed.name, list(parsed.values)) == (name, values)
    assert list(map(type, parsed.values)) == list(map(type, values))


def test_every_field_can_vary_and_nothing_else_changes():
    """A value that a field has already is read back to the same experiment."""
    names = set(_hints(EXPERIMENT, ["residual-adapter"]))
    assert {"base", "hyper.seed", "cohort.dispatch", "submodel.bottleneck", "space", "corpus.limit"} <= names
    assert not {"name", "runs", "grid", "select"} & names
    for name in sorted(names - {"submodel.kind"}):
        part, _, field = name.rpartition(".")
        value = getattr(getattr(EXPERIMENT, part) if part else EXPERIMENT, field)
        if value == ():
            continue
        (axis,) = parse_axes([f"{name}={write_value(value)}"], EXPERIMENT)
        assert changed(EXPERIMENT, {name: axis.values[0]}) == EXPERIMENT


@pytest.mark.parametrize(
    ("axes", "named"),
    [
        (["colour=1,2"], ["'colour=1,2'", "no field 'colour'", "hyper.learning_rate", "cohort.batch"]),
        (["runs=a,b"], ["no field 'runs'"]),
        (["submodel.rank=1,2"], ["no field 'submodel.rank'", "submodel.bottleneck"]),
        (["submodel.kind=adapter"], ["submodel.kind=adapter", "residual-adapter, lora"]),
        (["lr"], ["'lr'", "field=value"]),
        (["lr="], ["'lr='", "field=value"]),
        (["lr=1e-3,fast"], ["lr=1e-3,fast", "'fast' is not a number"]),
        (["cohort.batch=2,x"], ["cohort.batch=2,x", "'x' is not a whole number"]),
        (["cohort.slots=some"], ["'some' is not a whole number or auto"]),
        (["corpus.strict=yes"], ["'yes' is not True or False"]),
        (["context=short"], ["'short' is not needed or full"]),
        (["lr=1", "hyper.learning-rate=2"], ["'hyper.learning_rate' is named twice"]),
        (["lr=1e-2..1e-4"], ["smaller number to a larger"]),
        (["lr=1.."], ["'nothing' is not a number"]),
        (["lr=log:0..1"], ["the logarithm of 0"]),
        (["context=log:needed..full"], ["no range"]),
    ],
)
def test_a_wrong_axis_is_named_with_what_would_be_right(axes, named):
    with pytest.raises(SpecializeError) as raised:
        parse_axes(axes, EXPERIMENT)
    for words in named:
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"axes": ()}, ["at least one axis"]),
        ({"axes": ("cohort.batch=2,3",)}, ["cohort.batch=3", "cohort.rows=2", "must divide"]),
        ({"axes": ("dropout=0,1.5",)}, ["hyper.dropout=1.5", "between 0.0 and 0.99"]),
        ({"axes": ("dropout=0..1.5",), "method": "random", "trials": 2}, ["hyper.dropout=1.5"]),
        ({"axes": ("space=x", "submodel.bottleneck=2,3")}, ["Submodels of a space", "submodel.bottleneck"]),
        ({"axes": ("lr=1,2",), "halving": 2}, ["Halving", "--select speaker"]),
        ({"axes": ("lr=1,2", "stop.halving=2")}, ["Halving", "--select speaker"]),
        ({"axes": ("lr=1,2",), "trials": 3}, ["a grid tries all"]),
        ({"axes": ("lr=1,2",), "method": "tpe"}, ["needs a number"]),
        ({"axes": ("lr=1,2",), "storage": "sqlite:///x"}, ["--method tpe"]),
        (
            {"axes": ("lr=1,2",), "experiment": dataclasses.replace(EXPERIMENT, grid=("wd=0,1",))},
            ["has a grid", "wd=0,1"],
        ),
        ({"axes": ("lr=1,2",), "name": "../x"}, ["'../x'", "--name"]),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_trained(how, named):
    def made():
        sweep = Sweep(**{"experiment": EXPERIMENT} | how)
        return sweep.folder, sweep.parsed

    with pytest.raises(SpecializeError) as raised:
        made()
    for words in named:
        assert words in str(raised.value)


def test_trials_that_differ_in_hyper_parameters_alone_are_points_of_one_run():
    runs = runs_of("lr=1,2", "cohort.batch=2,4", "seed=0,1,2")
    assert [numbers(run.trials) for run in runs] == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert [run.id for run in runs] == ["s-0000", "s-0003"]
    assert [run.experiment.cohort.batch for run in runs] == [2, 4]
    for run in runs:
        assert (run.experiment.runs, run.experiment.select) == (RUNS, "pooled")
        points = parse_grid(run.experiment.grid, run.experiment.hyper, run.experiment.submodel)
        assert points == [(EXPERIMENT.submodel, trial.experiment.hyper) for trial in run.trials]


def test_a_run_of_one_trial_is_that_trial():
    (run,) = runs_of("lr=0.5", halving=2, select="speaker")
    assert run.experiment.grid == ()
    assert run.experiment.hyper.learning_rate == 0.5
    assert run.experiment.stop == Stopping()  # there is nothing to halve


def test_an_axis_of_one_kind_is_for_trials_of_that_kind():
    runs = runs_of(
        "submodel.rank=2,4", "submodel.kind=lora,residual-adapter,bias-only", "lr=1,2", "submodel.bottleneck=7"
    )
    specs = [run.experiment.submodel for run in runs]
    assert specs[:3] == [LoRA(rank=2), LoRA(rank=4), ResidualAdapter(bottleneck=7)]
    assert [len(run.trials) for run in runs] == [2, 2, 2, 2]


def test_phases_of_other_lengths_are_runs_of_their_own():
    """When jobs of such a run may end depends on the longest first phase, and so on company."""
    with_space = dataclasses.replace(EXPERIMENT, space=Path("space"))
    axes = parse_axes(["embedding_steps=3,6", "lr=1,2"], with_space)
    for start, count in ((with_space, 2), (dataclasses.replace(with_space, fit="unfreeze"), 1)):
        assert len(grouped(make_trials(every(axes, start), start), RUNS, "s")) == count


def test_random_draws_lie_in_their_ranges_and_spread_as_they_are_asked_to():
    axes = parse_axes(
        ["lr=log:1e-4..1", "submodel.bottleneck=2..5", "dropout=0..0.5", "context=needed,full"], EXPERIMENT
    )
    values = drawn(axes, EXPERIMENT, 400, seed=3)
    assert len({tuple(of.items()) for of in values}) == 400
    rates = [math.log10(of["hyper.learning_rate"]) for of in values]
    assert -4 <= min(rates) < -3.9
    assert -2.2 < sum(rates) / 400 < -1.8
    sizes = Counter(of["submodel.bottleneck"] for of in values)
    assert set(sizes) == {2, 3, 4, 5}
    assert min(sizes.values()) > 60
    assert all(0 <= of["hyper.dropout"] <= 0.5 for of in values)
    assert min(Counter(of["context"] for of in values).values()) > 150
    assert drawn(axes, EXPERIMENT, 40, seed=3) == values[:40]
    assert drawn(axes, EXPERIMENT, 40, seed=4) != values[:40]


def test_random_draws_of_very_many_combinations_are_not_counted_out():
    """Of 2.7e10 combinations."""
    listed = ",".join(map(str, range(3000)))
    axes = parse_axes([f"seed={listed}", f"warmup={listed}", f"stop.max-steps={listed}"], EXPERIMENT)
    assert len(drawn(axes, EXPERIMENT, 5, seed=0)) == 5


def test_an_experiment_that_halves_may_be_pooled_where_the_sweep_turns_it_off():
    halving = dataclasses.replace(EXPERIMENT, stop=Stopping(halving=2))
    sweep = Sweep(halving, ("lr=1,2", "stop.halving=0"))
    (run,) = grouped(make_trials(every(sweep.parsed, halving), halving), RUNS, "s")
    assert run.experiment.stop.halving == 0
    for axes in (("lr=1,2",), ("lr=1,2", "stop.halving=0,2"), ("lr=1,2", "stop.halving=3")):
        with pytest.raises(SpecializeError, match="--select speaker"):
            _ = Sweep(halving, axes).parsed


def test_what_is_asked_is_the_same_however_it_is_spelt():
    spelt = (
        ("lr=1e-3,2", "submodel.bottleneck=2..5", "wd=log:1e-4..1"),
        ("hyper.learning-rate=0.001,2.0", "submodel.bottleneck=2..5", "hyper.weight_decay=log:0.0001..1"),
    )
    one, two = (Sweep(EXPERIMENT, axes, method="random", trials=2) for axes in spelt)
    assert one.asked() == two.asked()
    assert parse_axes(one.asked()["axes"], EXPERIMENT) == one.parsed


def test_random_draws_of_few_combinations_are_all_different_or_refused():
    axes = parse_axes(["lr=1,2,3", "wd=0,1"], EXPERIMENT)
    values = drawn(axes, EXPERIMENT, 6, seed=0)
    everything = itertools.product((1.0, 2.0, 3.0), (0.0, 1.0))
    assert sorted(tuple(of.values()) for of in values) == sorted(everything)
    with pytest.raises(SpecializeError, match="7 trials are asked for, and there are 6"):
        drawn(axes, EXPERIMENT, 7, seed=0)
    with pytest.raises(SpecializeError, match="hardly more than 2"):
        drawn(parse_axes(["seed=0..1"], EXPERIMENT), EXPERIMENT, 3, seed=0)
    with pytest.raises(SpecializeError, match=r"'hyper.seed' is a range"):
        every(parse_axes(["seed=0..1"], EXPERIMENT), EXPERIMENT)

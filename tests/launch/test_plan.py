"""What `specialize plan` says of a run, against the run."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from launch.accelerators import find
from launch.plan import RunPlan, plan_run
from launch.plan.costs import Cost, Costs, Roofline, count_costs
from launch.plan.counts import Copies, ScaledProgram, count, ends_by_steps
from launch.plan.where import Question, share_of_peak
from specialize.base import save_base
from specialize.cli import main
from specialize.corpus import CorpusConfig, Size
from specialize.errors import ConfigError
from specialize.submodel import ResidualAdapter
from specialize.train import CohortConfig, Experiment, HyperParameters, Plan, Stopping, plan, train
from specialize.train.estimate import Layout, Memory, Workload, lowered, needed_memory
from specialize.train.recorder import read_jobs
from tests.bases import tiny_conformer_ctc
from tests.people import write_people

SPEC = ResidualAdapter(where=("*/layers_*",), bottleneck=2)
CHIP = find("v5e-4").chip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("plan")
    write_people(folder, 19, 7, seconds=0.4)
    save_base(tiny_conformer_ctc(), folder / "base")
    return Experiment(
        name="people",
        base=folder / "base",
        corpus=CorpusConfig(manifest=folder / "people.jsonl", cache=folder / "cache"),
        submodel=SPEC,
        hyper=HyperParameters(learning_rate=0.05),
        stop=Stopping(max_steps=8, every=2, patience=1),
        cohort=CohortConfig(slots=8, batch=2, rows=1, shapes=3, chunk=0),
        runs=folder / "runs",
    )


@pytest.fixture(scope="module")
def trained(experiment) -> SimpleNamespace:
    """A run, what its programs were called with, and what it added up."""
    calls = {name: Counter() for name in ("gradient", "evaluate", "evaluate_alone")}
    made = []

    def watched(planned, *arguments):
        trainer = made_by_plan(planned, *arguments)
        made.append(trainer)
        for name, of in calls.items():
            setattr(trainer.cohort, name, counted(getattr(trainer.cohort, name), of))
        return trainer

    def counted(program, of):
        def call(*arguments):
            of[arguments[-1].audio.shape[-1]] += 1
            return program(*arguments)

        return call

    made_by_plan = Plan.trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "trainer", watched)
        run = train(experiment)
    return SimpleNamespace(run=run, calls=calls, totals=made[0].totals, cohort=made[0].cohort)


@pytest.fixture(scope="module")
def planned(experiment, trained) -> RunPlan:
    return plan_run(experiment, Question(like=trained.run.folder))


def by_samples(counted) -> dict[int, float]:
    """What was counted, by the samples that it is padded to."""
    return {size.samples: n for size, n in counted.items()}


def test_what_a_run_does_is_foreseen_to_the_last_sample(trained, planned):
    counts, totals = planned.programs[0].counts, trained.totals
    steps = {job["steps"] for job in read_jobs(trained.run)}
    assert len(steps) > 1, "jobs that all end alike would show little"
    assert counts.exact
    assert by_samples(counts.parts) == trained.calls["gradient"]
    assert by_samples(counts.looks) == trained.calls["evaluate"]
    assert by_samples(counts.starts) == trained.calls["evaluate_alone"]
    assert counts.job_steps == totals.busy_slot_steps
    assert counts.real_samples == totals.real_samples
    assert counts.computed_samples == totals.computed_samples
    summary = trained.run.read("summary.json")
    assert round(counts.busy_share, 4) == summary["slots_busy"]
    assert round(counts.padded_share, 4) == summary["padded_share"]


def test_memory_and_storage_are_those_of_the_run(experiment, trained, planned):
    (program,) = planned.programs
    state = jax.eval_shape(trained.cohort.empty_state)
    assert program.state_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    fresh = plan(experiment)
    layout = fresh.layout(fresh.programs[0], measure=True)
    assert program.memory.total == layout.needed
    assert program.memory.base == sum(leaf.nbytes for leaf in jax.tree.leaves(fresh.base.params))
    summary = trained.run.read("summary.json")
    assert (program.parameters_each, program.counts.slots) == (summary["parameters_each"], summary["slots"])
    folders = [Path(str(trained.run.store.path(speaker))) for speaker in trained.run.speakers()]
    files = [[path.stat().st_size for path in folder.rglob("*") if path.is_file()] for folder in folders]
    assert planned.stored_bytes == pytest.approx(sum(map(sum, files)), rel=0.1)
    assert planned.stored_files == pytest.approx(sum(map(len, files)), rel=0.4)


def test_a_run_here_is_measured_and_says_so(planned):
    (program,) = planned.programs
    assert planned.pace == "measured here"
    assert program.share_of_peak is None
    assert planned.between == (planned.seconds, planned.seconds)
    taken = program.seconds
    assert min(taken.steps, taken.looks, taken.starts, taken.refills, taken.storing, taken.feeding) > 0
    assert taken.total >= taken.compiling + taken.devices


@pytest.fixture(scope="module")
def costs(experiment) -> tuple[Plan, Workload, Costs]:
    fresh = plan(experiment)
    (program,) = fresh.programs
    shapes = fresh.shapes(program, 8)
    work = Workload(2, 1, shapes[0].sizes[-1])
    return fresh, work, count_costs(fresh, program, shapes, work, "tpu")


def test_costs_and_memory_of_many_slots_are_a_line_through_those_of_few(costs):
    fresh, work, found = costs
    one = dataclasses.replace(fresh, mesh=jax.sharding.Mesh(jax.devices()[:1], fresh.mesh.axis_names))
    cohort = one.cohort(fresh.programs[0], Layout(6, 0))
    compiled = lowered(cohort, fresh.base.params, work).compile()
    expected = Cost.of(compiled)
    foreseen = found.shared + found.part[work.longest.samples] * 6
    assert foreseen.flops == pytest.approx(expected.flops, rel=0.02)
    assert foreseen.bytes == pytest.approx(expected.bytes, rel=0.05)
    needed = needed_memory(cohort, fresh.base.params, work, compiled, "tpu")
    assert found.memory_of(6).total == pytest.approx(needed.total, rel=0.05)
    assert found.memory_of(6).slots == needed.slots
    for slots in (1, 6, 50):
        assert found.slots_in(found.memory_of(slots).total + 1000) == slots


def test_a_forward_pass_costs_less_than_a_gradient(costs):
    """Of the same utterances: a batch of a dev set has two rows, a part of a step one."""
    _, work, found = costs
    look = found.look[max(found.look)].flops / max(found.look) / 2
    part = found.part[work.longest.samples].flops / work.longest.samples
    assert 0.2 < look / part < 1.0


def roofline(flops: float, bandwidth: float) -> Roofline:
    memory = Memory(0, 0, 0, 0, 0)
    each = {100: Cost(10.0, 100.0), 300: Cost(30.0, 100.0)}
    costs = Costs(Cost(0.0, 60.0), each, Cost(4.0, 8.0), each, each, Cost(0.0, 5.0), (1, memory, memory), 0.0)
    return Roofline(costs, slots=7, parts=2, flops=flops, bandwidth=bandwidth)


def test_the_roofline_is_what_takes_longer():
    size = Size(200, 1)
    assert roofline(2.0, 1e9).part(size) == pytest.approx(7 * (20 + 4 / 2) / 2.0)
    assert roofline(1e9, 4.0).part(size) == pytest.approx((60 + 7 * (100 + 8 / 2)) / 4.0)
    assert roofline(2.0, 1e9).part(size) == 2 * roofline(4.0, 1e9).part(size)
    assert roofline(1e9, 5.0).refill == pytest.approx(7 * 5 / 5.0)


def test_a_sample_stands_for_a_long_queue(experiment, monkeypatch):
    fresh = plan(experiment)
    (program,) = fresh.programs
    jobs = type(program.jobs)(Copies(program.jobs.speakers, 190), program.jobs.points, 8)
    scaled = ScaledProgram(program.spec, jobs, program.jobs.speakers)
    shapes, stop = fresh.shapes(program, 8), experiment.stop

    def counted():
        sample = scaled.foreseen(8)
        ends = ends_by_steps(sample[0], stop, 6)
        return count(scaled, sample, ends, 8, stop, (fresh.cut, "continuous"), shapes)

    whole = counted()
    monkeypatch.setattr("specialize.train.planning._FORESEEN", 48)
    sampled = counted()
    assert (whole.exact, sampled.exact, sampled.sampled) == (True, False, 48)
    for name in ("job_steps", "real_samples", "computed_samples", "steps", "rounds"):
        assert getattr(sampled, name) == pytest.approx(getattr(whole, name), rel=0.1), name
    assert sum(sampled.starts.values()) == pytest.approx(sum(whole.starts.values()), rel=0.1)


@pytest.mark.parametrize("wanted", [7, 19, 20, 57, 1_000_000])
def test_copies_are_as_many_as_were_asked_for_and_in_the_order_of_the_queue(experiment, wanted):
    originals = plan(experiment).programs[0].jobs.speakers
    copies = Copies(originals, wanted)
    assert len(copies) == wanted
    seen = [copies[i] for i in range(0, wanted, max(1, wanted // 200))]
    assert len({speaker.id for speaker in seen}) == len(seen)
    order = [originals.index(next(o for o in originals if o.train == speaker.train)) for speaker in seen]
    assert order == sorted(order)
    if wanted == len(originals):
        assert list(copies) == list(originals)


def test_steps_on_average_are_met_by_jobs_that_end_at_looks(experiment):
    jobs, stop = plan(experiment).programs[0].jobs[:], Stopping(max_steps=30, every=12)
    for steps in (12, 15, 18, 26.5, 30):
        ends = ends_by_steps([*jobs] * 20, stop, steps)
        assert set(ends) <= {12, 24, 30}
        assert sum(ends) / len(ends) == pytest.approx(steps, abs=0.2)
    with pytest.raises(ConfigError, match="at least 12"):
        ends_by_steps(jobs, stop, 3)


@pytest.fixture(scope="module")
def modelled(experiment) -> RunPlan:
    return plan_run(experiment, Question(speakers=1_000_000, accelerator="v5e-256"))


def test_a_pod_is_modelled_and_says_so(modelled):
    (program,) = modelled.programs
    assert modelled.pace == "modelled"
    assert (modelled.chips, modelled.machines, modelled.speakers) == (256, 64, 1_000_000)
    assert program.counts.jobs == 1_000_000
    assert program.counts.slots % 256 == 0
    assert program.memory.total <= 0.9 * CHIP.hbm_bytes
    assert program.fits is not None
    assert program.counts.slots // 256 <= program.fits
    assert program.fast.devices < program.seconds.devices < program.slow.devices or program.bound == "memory"
    assert modelled.chip_hours == pytest.approx(256 * modelled.seconds / 3600)


def test_a_measured_step_takes_the_place_of_the_assumption(experiment, tmp_path):
    fresh, there = plan(experiment), find("v5e-256")
    row = {"slots": 4, "batch": 2, "rows": 1, "step_seconds_per_submodel": 1e-4}
    about = {
        "fingerprint": fresh.base.fingerprint,
        "spec": str(SPEC),
        "device": "1 x tpu TPU v5 lite",
        "devices": 1,
        "seconds": 0.5,
        "labels": 8,
        "rows": [row],
    }
    file = tmp_path / "step.json"

    def share(**changes: object) -> float:
        file.write_text(json.dumps(about | changes))
        return share_of_peak(file, fresh, fresh.programs[0], there)

    assert share(rows=[row | {"step_seconds_per_submodel": 2e-4}]) == pytest.approx(share() / 2)
    # The largest number of slots counts, and its seconds are those of all devices at once.
    assert share(rows=[row | {"step_seconds_per_submodel": 1.0, "slots": 2}, row]) == share()
    assert share(devices=2) == pytest.approx(share() / 2)
    for changes, message in (
        ({"fingerprint": "other"}, r"measured the base other.*--base"),
        ({"spec": "LoRA()"}, "measured the spec"),
        ({"rows": [row | {"step_seconds_per_submodel": 1e-12}]}, "times the peak of a TPU v5e"),
        ({"rows": [{"slots": 4}]}, r"does not say batch, .*older version"),
        ({"rows": []}, "is not what"),
    ):
        with pytest.raises(ConfigError, match=message):
            share(**changes)
    expected = share()
    scaled = plan_run(experiment, Question(1_000_000, there.name, 64, measured=file))
    assert scaled.pace == "measured on such a chip"
    assert scaled.programs[0].share_of_peak == expected
    assert scaled.between == (scaled.seconds, scaled.seconds)


def test_the_command_prints_and_writes_what_was_found(experiment, tmp_path, capsys):
    file = tmp_path / "people.py"
    file.write_text(
        "from specialize.train.experiment import Experiment, from_json\nimport json\n"
        f"experiment = from_json(Experiment, json.loads({json.dumps(json.dumps(as_json(experiment)))}))\n"
    )
    out = tmp_path / "plan.json"
    words = ["plan", str(file), "--name", "other", "--speakers", "1_000_000", "--accelerator", "h100-8"]
    main([*words, "--utilisation", "0.2", "--stop.max-steps", "4", "--json", str(out)])
    said = capsys.readouterr().out
    for part in ("1,000,000 speakers on h100-8", "MODELLED, not measured: 20%", "an hour", "chip-hours", "storage"):
        assert part in said, part
    written = json.loads(out.read_text())
    assert written["speakers"] == 1_000_000
    assert written["programs"][0]["counts"]["job_steps"] == pytest.approx(4_000_000)
    assert written["stored_bytes"] == 1_000_000 * written["programs"][0]["stored"]["bytes"]
    assert not (experiment.runs / "other").exists()


def as_json(experiment: Experiment) -> dict:
    from specialize.train.experiment import to_json

    return to_json(experiment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "abacus"}, "Choose from"),
        ({"accelerator": "v5e-4", "slots_per_chip": 10**9}, r"slots need .* fit: give --slots-per-chip"),
        ({"speakers": 0}, "--speakers 0"),
        ({"utilisation": 1.5}, "share of the peak"),
        ({"steps": 4.0, "like": Path("run")}, "Give one of them"),
        ({"measured": Path("step.json")}, "Name the --accelerator"),
        ({"slots_per_chip": 4}, "--cohort.slots"),
        ({"accelerator": "v5e-4", "measured": Path("nothing.json")}, "no file 'nothing.json'"),
        ({"like": Path("nothing")}, "is not a run"),
    ],
)
def test_questions_without_an_answer_say_what_to_change(experiment, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_run(experiment, Question(**changes))


def test_a_space_is_refused_with_what_to_ask_instead(capsys):
    file = Path(__file__).parents[2] / "experiments/synthetic_space.py"
    with pytest.raises(SystemExit):
        main(["plan", str(file)])
    assert "--dry-run" in capsys.readouterr().err

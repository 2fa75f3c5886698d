"""The progress display and the metrics log, on an injected console, clock and folder."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from specialize.errors import SpecializeError
from specialize.train.metrics import MetricsLog, TensorBoardLog, WandbLog, read_metrics
from specialize.train.progress import CELLS, Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def display(terminal: bool = False, width: int = 120, height: int = 60, **options) -> tuple[Progress, Clock]:
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None)
    return Progress(console, clock, **options), clock


def text_of(progress: Progress) -> str:
    file = progress.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def rendered(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=120, height=200, color_system=None)
    console.print(progress.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_come_at_events_and_no_more_often_than_asked():
    progress, clock = display(every=10.0)
    with progress:
        progress.start(2, 1, "run")
        for step in range(100):
            clock.now += 1.0
            progress.slot(0, "ana", step, 200, 1.0, 1.0, 1.0)
        progress.done("ana", "dev loss 2 -> 1")
        progress.note("left out: line 3")
    lines = text_of(progress).splitlines()
    assert sum("running" in line for line in lines) == 10
    assert sum("ana: dev loss 2 -> 1" in line for line in lines) == 1
    assert sum("line 3" in line for line in lines) == 1
    assert "1 of 2 jobs ended, 0 failed" in lines[-1]


def test_a_plain_line_says_the_mean_losses_of_the_slots_that_run():
    progress, clock = display(every=10.0)
    progress.start(3, 3, "run")
    progress.slot(0, "ana", 3, 10, None, 2.0, 2.0)
    assert "train loss" not in progress.line()
    progress.slot(0, "ana", 6, 10, 1.0, 2.0, 2.0)
    progress.slot(1, "bob", 6, 10, 3.0, 5.0, 4.0)
    clock.now += 20.0
    progress.slot(2, None, 0, 0, None, None, None)
    assert "train loss 2.000; dev loss 3.500" in text_of(progress).splitlines()[-1]


def test_time_left_of_equal_jobs_is_exact():
    progress, clock = display()
    progress.start(6, 2, "run")
    assert progress.seconds_left() is None
    # Two slots, three rounds of jobs, 10 steps a job, 2 s a step: 60 s in all.
    clock.now += 8.0
    for slot in range(2):
        progress.slot(slot, f"first {slot}", 4, 10, 1.0, 1.0, 1.0)
    assert progress.seconds_left() == pytest.approx(52.0)
    clock.now += 12.0
    for slot in range(2):
        progress.slot(slot, f"first {slot}", 10, 10, 1.0, 1.0, 1.0)
        progress.done(f"first {slot}", "")
        progress.slot(slot, None, 0, 0, None, None, None)
    for slot in range(2):
        progress.slot(slot, f"second {slot}", 0, 10, None, 1.0, 1.0)
    assert progress.seconds_left() == pytest.approx(40.0)
    assert progress.submodels_per_hour() == pytest.approx(2 / 20 * 3600)


def test_jobs_that_end_early_shorten_the_time_left():
    progress, clock = display()
    progress.start(3, 1, "run")
    clock.now += 20.0
    progress.slot(0, "ana", 10, 100, 1.0, 1.0, 1.0)
    assert progress.seconds_left() == pytest.approx((90 + 2 * 100) * 2.0)
    progress.done("ana", "stopped early")
    progress.slot(0, None, 0, 0, None, None, None)
    assert progress.seconds_left() == pytest.approx(2 * 10 * 2.0)


def test_the_last_running_job_sets_the_time_left():
    progress, clock = display()
    progress.start(4, 4, "run")
    clock.now += 10.0
    for slot, maximum in enumerate((10, 10, 10, 50)):
        progress.slot(slot, str(slot), 10, maximum, 1.0, 1.0, 1.0)
    assert progress.seconds_left() == pytest.approx(40.0)


@pytest.mark.parametrize("slots", [1, 12, 13, CELLS, CELLS + 5])
def test_the_table_shows_every_slot_or_says_how_many_it_leaves_out(slots):
    progress, _ = display()
    progress.start(2 * slots, slots, "run")
    for index in range(slots):
        progress.slot(index, f"<{index}>", 1, 10, 1.0, 1.25, 1.25)
    shown = rendered(progress)
    assert all(f"<{index}>" in shown for index in range(min(slots, CELLS)))
    assert ("and 5 more slots" in shown) == (slots > CELLS)
    assert f"{slots} running, {slots} queued" in shown
    progress.close()


def test_hostile_names_stay_text():
    progress, _ = display()
    with progress:
        progress.start(1, 1, "[red]run[/nope]")
        progress.slot(0, "\x1b[2J[bold]ana[/x]\r\n", 1, 2, math.nan, math.nan, math.inf)
        shown = rendered(progress)
        progress.done("\x1b[2Jana", "[/] odd")
    for output in (shown, text_of(progress)):
        assert "\x1b" not in output
        assert "ana" in output
    assert "[bold]ana[/x]" in shown
    assert "nan" in shown
    assert "[/] odd" in text_of(progress)


def test_a_terminal_is_drawn_live_and_left_clean():
    progress, _ = display(terminal=True)
    with progress:
        progress.start(1, 1, "run")
        progress.slot(0, "ana", 3, 10, 1.0, 0.5, 0.5)
        progress.done("ana", "well")
    output = text_of(progress)
    assert "done 1/1 ana: well" in output
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1
    progress.close()
    assert text_of(progress) == output


def test_a_display_closes_when_the_run_breaks():
    progress, _ = display(terminal=True)
    progress.start(1, 1, "run")
    with pytest.raises(KeyError), progress:
        raise KeyError
    assert "0 of 1 jobs ended" in text_of(progress)


def test_metrics_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    records = [
        {"speaker": "nan", "step": 1, "loss": 0.1, "ok": True, "none": None},
        {"speaker": "a\u2028\n\"b'", "loss": math.inf, "dev": -math.inf},
        {"loss": np.float32(0.5), "step": np.int64(3)},
    ]
    with MetricsLog(path) as log:
        for record in records:
            log.write(record)
        log.write({"loss": np.float32("nan")})
        assert read_metrics(path)[:3] == records
        assert math.isnan(read_metrics(path)[3]["loss"])

    def refuse(constant: str):
        raise AssertionError(constant)

    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', "x" * 200_000])
@pytest.mark.parametrize("whole", [0, 2])
def test_a_torn_line_is_cut_off_and_the_log_goes_on(tmp_path, torn, whole):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(whole)) + torn)
    assert len(read_metrics(path)) == whole
    with MetricsLog(path) as log:
        log.write({"step": whole})
    assert read_metrics(path) == [{"step": step} for step in range(whole + 1)]


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(SpecializeError, match="Line 2"):
        read_metrics(path)


@pytest.mark.parametrize("record", [{"not_finite": 1}, {"array": np.zeros(2).tolist()}])
def test_a_record_that_would_not_come_back_is_refused(tmp_path, record):
    with MetricsLog(tmp_path / "m.jsonl") as log, pytest.raises(ValueError, match=r"not_finite|array"):
        log.write(record)


def test_tensorboard_writes_an_event_file(tmp_path):
    pytest.importorskip("tensorboardX")
    log = TensorBoardLog(tmp_path / "tb")
    log.scalar("dev_loss/ana", 1.5, 1)
    log.scalar("dev_loss/ana", math.nan, 2)
    log.close()
    (events,) = (tmp_path / "tb").iterdir()
    assert events.read_bytes().count(b"dev_loss/ana") == 1


def test_wandb_keeps_curves_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra 'wandb'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = WandbLog("people", "a run", {"slots": 4}, tmp_path)
    for step, loss in enumerate((2.0, float("nan"), 1.0)):
        log.scalar("dev_loss/ana", loss, step)
    log.close()
    (stored,) = tmp_path.rglob("*.wandb")
    assert b"dev_loss/ana" in stored.read_bytes()

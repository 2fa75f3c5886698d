"""TPU VMs: what gcloud is asked, and what the workers' scripts do, on workers that are folders of this machine."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.tpu_vm import tpu_vm
from specialize.errors import ConfigError, LaunchError, Preempted
from tests.launch.cloud import Cloud

WHERE = ("--name", "pod", "--zone", "us-west4-a")
FILE = "experiments/x.py"

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="workers run Linux, and this does not")


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> Iterator[Cloud]:
    """A cloud, with the checkout as the current folder."""
    cloud = Cloud(tmp_path / "cloud")
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(cloud.checkout(tmp_path / "checkout"))
    yield cloud
    for home in cloud.homes:
        (home / "hold").unlink(missing_ok=True)  # what a test that failed has left running ends


@pytest.fixture
def installed(cloud) -> Cloud:
    """The same with the checkout installed on the workers."""
    tpu_vm(["install", *WHERE])
    (cloud.folder / "calls.jsonl").write_text("")
    return cloud


def soon(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends, "it did not come true"
        time.sleep(0.02)


def test_create_asks_waits_and_installs(cloud, capsys):
    flags = [*WHERE, "--project", "p", "--accelerator", "v5e-16", "--spot", "--network", "n", "--poll", "0"]
    tpu_vm(["create", *flags])
    asked, created, *_ = cloud.calls
    assert asked[:4] == ["compute", "tpus", "queued-resources", "describe"]
    assert created == [
        *("compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--network=n", "--spot"),
        *("--zone=us-west4-a", "--project=p"),
    ]
    seen = capsys.readouterr()
    tpu_vm(["create", "--dry-run", *flags])
    assert shlex.split(capsys.readouterr().out.splitlines()[0]) == ["gcloud", *created]
    assert [line.split()[-1] for line in seen.err.splitlines() if "'pod' is" in line] == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
    ]
    assert "next: specialize launch tpu-vm run --name pod" in seen.out
    for number, home in enumerate(cloud.homes):
        assert (home / ".specialize/bin/specialize").exists()
        assert (home / "specialize" / FILE).exists()
        assert not (home / "specialize/runs").exists()
        assert f"--editable {home}/specialize[tpu,bucket]" in (home / "python3").read_text()
        assert f"[{number}] specialize 0" in Path("pod.log").read_text()


def test_install_again_keeps_runs_and_nothing_that_is_old(installed):
    for home in installed.homes:
        (home / "specialize/runs").mkdir()
        (home / "specialize/runs/kept").touch()
        (home / "specialize/old.py").touch()
    tpu_vm(["install", *WHERE])
    for home in installed.homes:
        assert (home / "specialize/runs/kept").exists()
        assert not (home / "specialize/old.py").exists()
        assert (home / "python3").read_text().count("uv venv") == 1


def test_install_does_not_touch_a_run_that_is_under_way(installed):
    for home in installed.homes:
        (home / "hold").touch()
    command = installed.command("run", *WHERE, FILE, cwd=Path.cwd())
    soon(lambda: all(map(len, installed.runs)))
    with pytest.raises(LaunchError, match="a run is under way: stop it first"):
        tpu_vm(["install", *WHERE, "--log", "install.log"])
    for home in installed.homes:
        (home / "hold").unlink()
    command.communicate(timeout=60)
    assert command.returncode == 0


def test_create_again_goes_on_with_waiting(cloud):
    (cloud.folder / "queue").write_text("PROVISIONING\nACTIVE")
    tpu_vm(["create", *WHERE, "--accelerator", "v5e-16", "--poll", "0", "--no-install"])
    assert {call[3] for call in cloud.calls} == {"describe"}


def test_a_slice_that_is_gone_is_not_waited_for(cloud):
    (cloud.folder / "queue").write_text("SUSPENDED")
    with pytest.raises(LaunchError, match=r"SUSPENDED\. It was preempted.*tpu-vm delete --name pod"):
        tpu_vm(["create", *WHERE, "--accelerator", "v5e-16", "--poll", "0"])
    (cloud.folder / "queue").write_text("WAITING_FOR_RESOURCES")
    with pytest.raises(LaunchError, match=r"WAITING_FOR_RESOURCES after 0 hours.*waits on"):
        tpu_vm(["create", *WHERE, "--accelerator", "v5e-16", "--poll", "0", "--hours", "0"])


def test_run_gives_every_worker_the_words_as_they_are(installed, capsys):
    odd = ["--a", 'it\'s "$HOME" `x`', "--b=1e-3", "two\nlines", "", "*"]
    Path(FILE).write_text("experiment = 2")
    capsys.readouterr()
    tpu_vm(["run", *WHERE, "--runs", "/b/runs", "--env", "A=b c", FILE, *odd])
    shown = capsys.readouterr().out.splitlines()
    for number, (home, runs) in enumerate(zip(installed.homes, installed.runs, strict=True)):
        assert runs == [["auto", "b c", f"{home}/specialize", "train", FILE, "--runs", "/b/runs", *odd]]
        assert (home / "specialize" / FILE).read_text() == "experiment = 2"
        said = [line for line in shown if line.startswith(f"[{number}] ")]
        assert said == [f"[{number}] step 1", f"[{number}] done", f"[{number}] ended with code 0"]
    assert [call[2:4] for call in installed.calls] == [["tpu-vm", "scp"], ["tpu-vm", "ssh"]]
    assert all("--worker=all" in call for call in installed.calls)


def test_a_worker_that_fails_is_named_and_its_output_kept(installed):
    (installed.homes[1] / "fails").write_text("3")
    with pytest.raises(LaunchError) as failed:
        tpu_vm(["run", *WHERE, FILE])
    message = str(failed.value)
    assert "'experiments/x.py' on 'pod': worker 1 failed, with code 3." in message
    assert "[1] out of memory" in message
    assert "[0]" not in message
    # Worker 0 says first that it ends, but since another did.
    (installed.homes[0] / "fails").write_text("76")
    (installed.homes[1] / "hold").touch()
    command = installed.command("run", *WHERE, FILE, cwd=Path.cwd())
    soon(lambda: "ended with code 76" in Path("pod.log").read_text())
    (installed.homes[1] / "hold").unlink()
    said, _ = command.communicate(timeout=60)
    assert command.returncode == 1
    assert "worker 1 failed, with code 3. With it ended 0." in said
    kept = Path("pod.log").read_text()
    assert all(f"[{number}] step 1" in kept for number in range(2))
    # The same command goes on, when what was wrong is mended.
    for home in installed.homes:
        (home / "fails").unlink()
    tpu_vm(["run", *WHERE, FILE])
    assert [len(runs) for runs in installed.runs] == [3, 3]


def test_a_worker_that_cannot_be_reached_is_named(installed, monkeypatch):
    monkeypatch.setenv("UNREACHABLE", "0")
    with pytest.raises(LaunchError, match=r"worker 0 failed, with code 255\. .*could not be reached"):
        tpu_vm(["run", *WHERE, FILE])


def test_saved_and_stopped_is_told_from_failed(installed):
    for home in installed.homes:
        (home / "fails").write_text("75")
    with pytest.raises(Preempted, match=r"saved its state\. The same command goes on"):
        tpu_vm(["run", *WHERE, FILE])


def test_a_run_outlives_its_connection_and_stops_when_asked(installed):
    for home in installed.homes:
        (home / "hold").touch()
    command = installed.command("run", *WHERE, FILE, cwd=Path.cwd())
    soon(lambda: all(map(len, installed.runs)))
    os.killpg(command.pid, signal.SIGKILL)
    command.communicate()
    again = installed.command("run", *WHERE, FILE, cwd=Path.cwd())
    soon(lambda: Path("pod.log").read_text().count("runs already") == 2)
    tpu_vm(["stop", *WHERE, "--log", "stop.log"])
    assert Path("stop.log").read_text().count("asked to save and stop") == 2
    said, _ = again.communicate(timeout=30)
    assert again.returncode == 75
    assert "was asked to stop, and saved its state" in said
    assert [len(runs) for runs in installed.runs] == [1, 1]
    tpu_vm(["stop", *WHERE, "--log", "stop.log"])
    assert Path("stop.log").read_text().count("nothing runs") == 2


def test_status_and_delete(installed, capsys):
    (installed.folder / "queue").write_text("ACTIVE")
    tpu_vm(["run", *WHERE, FILE])
    capsys.readouterr()
    tpu_vm(["status", *WHERE])
    assert "[1] does not run; it ended with 0\n" in capsys.readouterr().out
    tpu_vm(["delete", *WHERE])
    assert installed.calls[-1] == [
        *("compute", "tpus", "queued-resources", "delete", "pod", "--force", "--quiet", "--zone=us-west4-a")
    ]


def test_gcloud_refusing_is_passed_on(cloud):
    with pytest.raises(LaunchError, match="code 1, and says why above"):
        tpu_vm(["delete", *WHERE])


def test_a_missing_gcloud_is_said(cloud, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for words in (["create", *WHERE, "--accelerator", "v5e-16"], ["run", *WHERE, FILE], ["delete", *WHERE]):
        with pytest.raises(ConfigError, match="gcloud is not installed here"):
            tpu_vm(words)


@pytest.mark.parametrize(
    "words",
    [
        ["install", *WHERE],
        ["run", *WHERE, FILE, "--a", "it's\n$HOME"],
        ["stop", *WHERE],
        ["status", *WHERE],
        ["delete", *WHERE],
    ],
    ids=lambda words: words[0],
)
def test_a_dry_run_prints_what_would_be_called_and_calls_nothing(cloud, capsys, monkeypatch, words):
    tpu_vm([*words[:1], "--dry-run", *words[1:]])
    assert cloud.calls == []
    printed = capsys.readouterr().out
    # What is printed is for a shell: it calls there what the command calls without --dry-run.
    monkeypatch.setenv("ONLY_RECORDS", "1")
    subprocess.run(["bash", "-euc", printed], check=True, capture_output=True)
    typed = cloud.calls
    (cloud.folder / "calls.jsonl").write_text("")
    tpu_vm(words)

    def told(calls: list[list[str]]) -> list[list[str]]:
        # The archive of the checkout lies elsewhere.
        return [[word for word in call if not word.endswith("/specialize.tar.gz")] for call in calls]

    assert told(typed) == told(cloud.calls) != []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["start"], "Choose from create, install, run"),
        (["create", *WHERE, "--accelerator", "v5e-3"], "v5e-1, v5e-4"),
        (["create", *WHERE, "--accelerator", "v7x-8"], "v4, v5e, v5p, v6e"),
        (["create", *WHERE, "--accelerator", "h100-8"], "no TPU VMs of h100-8"),
        (["create", *WHERE, "--accelerator", "v5e-4", "--spot", "--reserved"], "Choose one"),
        (["create", *WHERE, "--accelerator", "v5e-4", "--source", "experiments"], "no setup.py"),
        (["delete", "--name", "My_Pod", "--zone", "z"], "'my-pod' will do"),
        (["run", *WHERE, "/abs/x.py"], "relative to the checkout"),
        (["run", *WHERE, "../x.py"], "relative to the checkout"),
        (["run", *WHERE, "experiments/none.py"], "no experiment file"),
        (["run", *WHERE, "--env", "SPECIALIZE_PROCESSES=2", FILE], "the launcher sets it"),
        (["run", *WHERE, "--runs", "a", FILE, "--runs=b"], "before and after"),
        (["run", *WHERE], "Name the experiment file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_called(cloud, words, said):
    with pytest.raises(ConfigError, match=said):
        tpu_vm(words)
    assert cloud.calls == []

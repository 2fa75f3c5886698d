"""The text of a job's script, flags that SLURM would not take, and which flags are whose."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launch.slurm import slurm
from launch.slurm_script import Slurm, script
from specialize.errors import ConfigError
from tests.launch import slurm_cluster
from tests.launch.slurm_cluster import CannotStart, cluster

ODD = ["a b", "it's", '"', "$HOME", "`id`", "\\", "*", "", "--", "#SBATCH --nodes=99", "é\n$(exit 1)", "!"]
"""Words that a shell, or SLURM, might take for something else."""

EVERYTHING = Slurm(
    nodes=2,
    tasks_per_node=2,
    gpus_per_task=1,
    cpus_per_task=1,
    partition="high",
    account="lab",
    qos="normal",
    time="1-00:30",
    mem="2G",
    constraint="fast|large",
    signal_seconds=90,
    name="all.of-it_",
    setup=("module load cuda", "source ~/it's/activate"),
)
"""All that can be asked of SLURM."""


@pytest.mark.parametrize("options", [Slurm(name="x"), EVERYTHING, replace(EVERYTHING, requeue=False, setup=())])
def test_the_script_is_one_of_bash(options):
    text = script(["python", *ODD], replace(options, setup=options.setup[:1]))
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    heads = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert ("#SBATCH --requeue" in heads) == options.requeue
    # SLURM reads no more of them after the first line of the shell.
    assert heads == text.splitlines()[2 : 2 + len(heads)]


TOO_SHORT = "told to save up to 180 s before the end"


@pytest.mark.parametrize(
    ("flag", "value", "why"),
    [
        ("nodes", 0, "at least 1"),
        ("tasks_per_node", 0, "at least 1"),
        ("gpus_per_task", -1, "at least 1"),
        ("signal_seconds", 70000, "65535"),
        ("time", "soon", "write minutes"),
        ("time", "1:2:3:4", "write minutes"),
        ("time", "0", "write minutes"),
        ("time", "3", TOO_SHORT),
        ("time", "2:59", TOO_SHORT),
        ("time", "0-0:3", TOO_SHORT),
        ("mem", "64 GB", "64G"),
        ("name", "a/b", "the log is called after it"),
        ("partition", "a b", "without spaces"),
        ("constraint", "a'b", "without spaces"),
        ("log", Path("a\\b"), "backslash"),
        ("setup", ("a\nb",), "its own --setup"),
    ],
)
def test_what_slurm_would_not_take_is_refused_by_name(flag, value, why):
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} ") as refused:
        Slurm(**{flag: value})
    assert why in str(refused.value)


@pytest.mark.parametrize("time", ["4", "3:01", "0:3:01", "0-1", "0-0:04", "0-0:0:181", "365-0"])
def test_times_are_read_as_slurm_reads_them(time):
    assert Slurm(time=time).time == time


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> Path:
    """A folder to type commands in, with an experiment's file."""
    monkeypatch.chdir(tmp_path)
    Path("ex periment.py").write_text("")
    return Path("ex periment.py")


def test_flags_before_the_file_are_the_launchers_and_those_after_it_of_train(experiment, capsys):
    slurm(["--nodes", "3", "--no-requeue", "--dry-run", "--setup=a b", str(experiment), "--nodes", "5", "--out", "x"])
    printed = capsys.readouterr().out
    assert "#SBATCH --nodes=3\n" in printed
    assert "#SBATCH --job-name=ex-periment\n" in printed
    words = ["python", "-m", "specialize.cli", "train", "'ex periment.py'", "--nodes", "5", "--out", "x"]
    assert "command=(\n    " + "\n    ".join(words) + "\n)" in printed
    assert not Path("logs").exists()
    assert not Path("x").exists()


def test_the_script_can_be_kept(experiment, capsys):
    slurm(["--out", "folder/job.sh", "--dry-run", str(experiment)])
    assert Path("folder/job.sh").read_text() == capsys.readouterr().out


def test_without_an_experiment_or_slurm_it_says_what_to_do(experiment, monkeypatch):
    with pytest.raises(ConfigError, match="Name the experiment file"):
        slurm(["--nodes", "2"])
    with pytest.raises(ConfigError, match=r"no experiment file 'other\.py'"):
        slurm(["other.py"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"no `sbatch` .* login node"):
        slurm([str(experiment)])


def test_a_machine_without_slurm_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(slurm_cluster, "CLIENTS", ("no-such-command",))
    with pytest.raises(CannotStart, match=r"no-such-command not found; .* apt-get install"), cluster():
        pass

"""`specialize launch`: which launcher, and whose words are whose."""

import contextlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.command import LAUNCHERS
from launch.words import Launcher, parse, split
from specialize.cli import main
from specialize.corpus import CorpusConfig
from specialize.errors import ConfigError
from specialize.train import Experiment


@dataclass(frozen=True)
class Flags(Launcher):
    """Flags of a launcher that there is not."""

    zone: str = "here"
    """Where."""
    many: tuple[str, ...] = ()
    """Several."""
    spot: bool = False
    """Whether."""
    at_most: int = 3
    """How many."""


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["x.py", "--zone", "a"], []),
        (["--zone", "z.py", "x.py", "--spot", "y.py"], ["--zone", "z.py"]),
        (["--zone=a", "--spot", "x.py"], ["--zone=a", "--spot"]),
        (["--no-spot", "--at-most", "-1", "x.py"], ["--no-spot", "--at-most", "-1"]),
        (["--at_most", "2", "--many", "a", "--many", "-b", "x.py"], ["--at_most", "2", "--many", "a", "--many", "-b"]),
    ],
)
def test_flags_end_at_the_experiment_file(words, flags):
    assert split(Flags, words) == (flags, words[len(flags) :])


def test_what_follows_the_file_is_not_touched():
    rest = ["--zone", "theirs", "--no-such-flag", "", "a b", "--", "x.py"]
    job = parse(Flags, ["--many", "a=b", "--many", "c", "--spot", "dir/x.py", *rest], "prog")
    assert job.options == Flags(many=("a=b", "c"), spot=True)
    assert job.words() == ["train", "dir/x.py", *rest]
    assert parse(Flags, ["--command", "pretrain", "x.py"], "prog").words("/r") == ["pretrain", "x.py", "--runs", "/r"]


def test_a_missing_file_is_asked_for():
    with pytest.raises(ConfigError, match="Name the experiment file"):
        parse(Flags, ["--spot"], "prog")
    with pytest.raises(ConfigError, match="'true' stands where the experiment file"):
        parse(Flags, ["--spot", "true", "x.py"], "prog")


def test_an_unknown_flag_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Flags, ["--zon", "a", "x.py"], "prog")
    assert ended.value.code == 2
    assert "--zon" in capsys.readouterr().err


def test_the_overview_has_every_launcher(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in LAUNCHERS)
    with pytest.raises(SystemExit) as ended:
        main(["launch"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["launch", "mars", "x.py"])
    assert ended.value.code == 1
    assert "no launcher 'mars'" in capsys.readouterr().err


def test_local_passes_words_and_the_exit_code_on(monkeypatch):
    monkeypatch.setattr("launch.local.run_local", lambda options, words: len(words) + options.processes)
    with pytest.raises(SystemExit) as ended:
        main(["launch", "local", "--processes", "4", "--devices", "2", "x.py", "--a", "b"])
    assert ended.value.code == 8


@pytest.mark.parametrize("name", ["gke", "sky", "tpu-vm", "local"])
def test_every_launcher_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main(["launch", name, "--help"])
    assert ended.value.code == 0
    assert f"specialize launch {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["slurm", "--dry-run"],
        ["gke", "--accelerator", "v5e-16", "--image", "i:1"],
        ["sky", "--accelerator", "h100-8"],
        ["tpu-vm", "run", "--name", "pod", "--zone", "z", "--dry-run"],
        ["local", "--dry-run"],
    ],
    ids=lambda words: words[0],
)
class TestEveryLauncher:
    def test_launches_a_pretraining_too(self, words, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "x.py").touch()
        with contextlib.suppress(SystemExit):
            main(["launch", *words, "--command", "pretrain", "x.py", "--seed", "7"])
        shown = capsys.readouterr().out
        assert re.search(r"\bpretrain\W+x\.py\W+--seed\W+7\b", shown), shown

    def test_does_not_delete_what_it_would_go_on_with(self, words, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "x.py").touch()
        with pytest.raises(SystemExit) as ended:
            main(["launch", *words, "x.py", "--overwrite"])
        said = capsys.readouterr()
        if words[0] == "local":  # which nothing starts again
            assert ended.value.code == 0
            assert "--overwrite" in said.out
        else:
            assert ended.value.code == 1
            assert "--overwrite would delete" in said.err


def test_launchers_need_no_jax():
    """They run where there are no accelerators, and `--help` shall not wait."""
    modules = ("launch.command", "launch.gke", "launch.tpu_vm", "launch.sky", "launch.local")
    asked = f"import sys, {', '.join(modules)}; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "False\n"


def test_runs_in_a_bucket_are_refused_before_anything_is_launched():
    with pytest.raises(ConfigError, match=r"--runs gs://b/runs.*Mount the bucket"):
        parse(Flags, ["x.py"], "test").words("gs://b/runs")
    with pytest.raises(ConfigError, match=r"runs='gs:/b/runs' is a bucket"):
        Experiment("x", Path("base"), CorpusConfig(Path("m.jsonl")), runs=Path("gs://b/runs"))

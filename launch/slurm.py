"""`specialize launch slurm`: an experiment as a job of a SLURM cluster, which goes on after every interruption."""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from launch.slurm_script import Slurm, script
from launch.words import parse
from specialize.errors import ConfigError


def slurm(words: list[str]) -> None:
    """Submit an experiment to a SLURM cluster: `specialize launch slurm [flags] EXPERIMENT.py [flags of --command]`.

    Args:
        words: flags of `Slurm`, then the experiment's file, then flags that --command gets unchanged.

    Raises:
        ConfigError: a value that SLURM would not take, no experiment, no SLURM, or a job that SLURM refuses.
        SystemExit: with `--help`, wrong flags, or the job's exit code after `--wait`.
    """
    job = parse(Slurm, words, "specialize launch slurm")
    options, file = job.options, Path(job.experiment)
    if not file.is_file():
        raise ConfigError(
            f"There is no experiment file '{file}'. Flags of the launcher come before it, those of --command after it."
        )
    if options.name is None:
        options = dataclasses.replace(options, name=re.sub(r"[^\w.+-]", "-", file.stem, flags=re.ASCII))
    python = options.python or ("python" if options.setup else sys.executable)
    text = script([python, "-m", "specialize.cli", *job.words()], options)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    if options.dry_run:
        print(text, end="")
        return
    _submit(text, options)


def _submit(text: str, options: Slurm) -> None:
    """Gives a script to `sbatch`, and says what to type next."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "There is no `sbatch` on this machine's PATH. Type this on a login node of the cluster (some need `module "
            "load slurm` first), or give the script, which --dry-run prints, to sbatch there."
        )
    # SLURM makes no folders, and a job whose log cannot be opened fails without a word.
    options.log.mkdir(parents=True, exist_ok=True)
    words = ["sbatch", "--parsable", *(["--wait"] if options.wait else [])]
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as said:
        given.write(text)
        given.seek(0)
        with subprocess.Popen(words, stdin=given, stdout=subprocess.PIPE, stderr=said, text=True) as sbatch:
            assert sbatch.stdout is not None
            job = sbatch.stdout.readline().strip().partition(";")[0]
            if not (job and options.wait):
                sbatch.wait()
            said.seek(0)
            complaint = said.read()
            if not job:
                complaint = "; ".join(line.removeprefix("sbatch: error: ") for line in complaint.splitlines())
                raise ConfigError(
                    f"sbatch refused the job: {complaint}. `sinfo` lists partitions, limits and nodes; change the "
                    "flags, and submit again."
                )
            print(complaint, end="", file=sys.stderr)  # warnings
            _tell_next(job, options)
        if sbatch.returncode != 0:
            sys.exit(sbatch.returncode)


def _tell_next(job: str, options: Slurm) -> None:
    log = shlex.quote(str(options.log / f"{options.name}-{job}.log"))
    print(f"job {job} ({options.name}) is submitted. What to type next:")
    for command, why in (
        (f"squeue --job {job}", "where it is in the queue, and why it waits"),
        (f"tail -F {log}", "what it says; each line begins with the number of its process"),
        (f"scancel --signal=TERM {job}", "save, and go on in another sitting"),
        (f"scancel {job}", "end it; submitted again, it goes on from the last state that was saved"),
    ):
        print(f"  {command:<36}  {why}")
    sys.stdout.flush()

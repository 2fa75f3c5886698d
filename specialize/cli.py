"""`specialize …`: which command, and how a process ends. The commands are in `commands/` and where they belong."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import tyro

from specialize import __version__
from specialize.caches import keep_compiled_programs
from specialize.commands.folders import compact, components, corpus, import_base, inspect
from specialize.commands.scoring import curve, evaluate, transcribe
from specialize.commands.training import pretrain, train
from specialize.errors import EXIT_PREEMPTED, PeerEnded, Preempted, SpecializeError
from specialize.printable import printable

_GO_ON = ("train", "pretrain", "sweep")
"""Commands that go on where they were stopped."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point.

    Exits 0 on success, 1 on an error that is explained in one sentence, 2 on wrong usage, 75 (EX_TEMPFAIL) when SIGTERM
    stopped a run that the same command goes on with, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"specialize {__version__}")
        sys.exit(0)
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"specialize: there is no command '{name}'.\n\n{_overview()}", file=sys.stderr)
        sys.exit(2)
    keep_compiled_programs()
    # Orbax logs whole tracebacks of what is told here in one sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        if name in _GO_ON:
            signal.signal(signal.SIGTERM, _stop_at_once)
        COMMANDS[name](rest)
        sys.stdout.flush()
    except PeerEnded as error:
        _fail(name, None if error.told else str(error), error.code)
    except Preempted as error:
        _fail(name, str(error) if not _together() or _peers().first else None, EXIT_PREEMPTED, all_alike=True)
    except SpecializeError as error:
        _fail(name, str(error), 1)
    except BrokenPipeError:
        # Who read the output wants no more of it. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(name, _os_error(error), 1)
    except KeyboardInterrupt:
        again = "; the same command goes on from the last state that was saved" if name in _GO_ON else ""
        _fail(name, f"interrupted{again}", 130)
    except Exception:
        if not _together():
            raise
        traceback.print_exc()
        _fail(name, None, 1)


def _fail(command: str, message: str | None, code: int, *, all_alike: bool = False) -> NoReturn:
    """Says why a command ends, without what a terminal would obey: messages quote manifests.

    Args:
        command: which.
        message: why; None where it has been said.
        code: exit code.
        all_alike: whether the other processes of the run end here too.
    """
    for line in f"specialize {command}: {message}".split("\n") if message is not None else ():
        print(printable(line), file=sys.stderr)
    if _together() and not all_alike:
        # JAX would wait for the other processes, which may be gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _together() -> bool:
    """Whether this is one of several processes of a run."""
    return "specialize.processes.peers" in sys.modules and _peers().count > 1


def _peers() -> Any:
    from specialize.processes import here

    return here()


def _os_error(error: OSError) -> str:
    """What the system refused, as a sentence with the path."""
    paths = " -> ".join(f"'{path}'" for path in (error.filename, error.filename2) if path is not None)
    reason = error.strerror or str(error) or type(error).__name__
    return f"The system refused {paths}: {reason}. Mend that, or name another path." if paths else f"{reason}."


def _stop_at_once(*_: object) -> None:
    """What SIGTERM does before a run can save a state; the run then turns it into a question of its own."""
    raise Preempted("asked to stop before the run had begun. The same command begins it.")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join(
        [
            "specialize: one frozen speech recogniser, and a small Submodel for each person.",
            "",
            "usage: specialize COMMAND …        (`specialize COMMAND --help` explains every flag)",
            "",
            *lines,
        ]
    )


def sweep(words: list[str]) -> None:
    """Try many settings of an experiment, those that can in one program: `specialize sweep FILE.py lr=1e-4,1e-3 …`."""
    from specialize.sweep.command import sweep as run

    run(words)


def serve(words: list[str]) -> None:
    """Serve transcriptions of any speaker over HTTP, as OpenAI's API does."""
    from specialize.serve.command import serve as run

    run(words)


def forget(words: list[str]) -> None:
    """Delete a speaker's Submodel from a store and a running server, and prove it."""
    from specialize.serve.command import forget as run

    run(words)


def keys(words: list[str]) -> None:
    """Make, list and revoke the API keys of a server: `specialize keys add NAME --speakers …`."""
    from specialize.serve.keys_command import keys as run_keys

    run_keys(words)


def export(words: list[str]) -> None:
    """Write Submodels for other programs: safetensors, PEFT, merged Hugging Face folders, or a program of JAX."""
    from specialize.exchange import Export, run_export

    for line in run_export(tyro.cli(Export, args=words, prog="specialize export")):
        print(printable(line), flush=True)


def plan(words: list[str]) -> None:
    """Say what a run would take, here or on accelerators elsewhere: `specialize plan FILE --accelerator v5e-256`."""
    from launch.plan.command import plan as run

    run(words)


def import_submodel(words: list[str]) -> None:
    """Make a stored Submodel of a folder of PEFT, or of an exported safetensors file."""
    from specialize.exchange import ImportSubmodel, run_import

    command = tyro.cli(ImportSubmodel, args=words, prog="specialize import-submodel")
    stored = run_import(command)
    print(printable(f"{command.out}: the Submodel of '{stored.speaker}', {stored.spec}"))


def launch(words: list[str]) -> None:
    """Run an experiment on this machine, SLURM, GKE or TPU VMs: `specialize launch WHERE … experiments/FILE.py`."""
    from launch.command import launch as run_launcher

    run_launcher(words)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "pretrain": pretrain,
    "sweep": sweep,
    "launch": launch,
    "evaluate": evaluate,
    "curve": curve,
    "transcribe": transcribe,
    "import-base": import_base,
    "corpus": corpus,
    "inspect": inspect,
    "plan": plan,
    "components": components,
    "compact": compact,
    "serve": serve,
    "keys": keys,
    "forget": forget,
    "export": export,
    "import-submodel": import_submodel,
}

if __name__ == "__main__":
    main()

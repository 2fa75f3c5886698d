"""Errors that a user can mend: a sentence with what was found, what was expected, and what to do."""


class SpecializeError(Exception):
    """Base of the errors that the command line prints as one sentence instead of a traceback."""


class BaseModelError(SpecializeError):
    """A base folder or checkpoint that cannot be read, or is not of a kind that is known."""


class FingerprintMismatch(SpecializeError):
    """A Submodel that was made for another base."""


class CorpusError(SpecializeError):
    """A corpus that cannot be used at all, or, with `strict`, one bad utterance."""


class SpecError(SpecializeError):
    """A spec whose `where` matches nothing, or does not fit what it matches."""


class StoreError(SpecializeError):
    """A Submodel that cannot be stored or loaded."""


class SaveBroken(SpecializeError):
    """A state that one process of a run could not save while the others had begun to, who wait for it."""


class NoSubmodel(StoreError):
    """A speaker who has no Submodel in a store."""


class StoreUnavailable(StoreError):
    """A store that cannot be asked now: it is not known whether something is whole, nor whose, nor if it is there."""


class Forgotten(SpecializeError):
    """A speaker was deleted while somebody was using the Submodel."""


class ExportError(SpecializeError):
    """A Submodel that another program's format cannot hold, or what such a format holds and no Submodel can."""


class ConfigError(SpecializeError):
    """Settings that contradict each other or the machine."""


class RunTaken(ConfigError):
    """A run that another process is training."""


class LaunchError(SpecializeError):
    """What a launcher called ended in failure: another program, or a worker."""


class AudioRefused(SpecializeError):
    """Audio of somebody that is not taken. The message says why, and may be shown to them: it names no path."""


class KeyFileError(SpecializeError):
    """A file of API keys that cannot be used, or a change of it that is refused."""


class Preempted(SpecializeError):
    """The process was asked to stop, and did; the same command goes on. The exit code is `EXIT_PREEMPTED`."""


class PeerEnded(SpecializeError):
    """A run of several processes is over, because one of them has died, stands still, or ended with an error.

    Args:
        why: which, and what is known of it.
        code: its exit code; None where it has none, and the others exit with `EXIT_PEER`. 0 is not passed on: it left a
            run that had not ended.
    """

    def __init__(self, why: str, code: int | None):
        super().__init__(f"{why}. This process ends with it; the same command goes on from the last saved state.")
        self.code = code or EXIT_PEER
        self.told = False
        """Whether the user has read it."""


EXIT_PREEMPTED = 75
"""Exit code of a run that was asked to stop by SIGTERM and is to be started again: EX_TEMPFAIL of sysexits.h."""

EXIT_PEER = 76
"""Exit code of the other processes of a run when one of them has died or stands still."""

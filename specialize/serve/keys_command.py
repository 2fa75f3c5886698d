"""`specialize keys`: make, list and revoke the API keys of a file."""

import datetime
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from specialize.printable import printable
from specialize.serve.keys import Entry, KeyFile, utc_today

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Add:
    """Make a key and print it. It is shown this once: the file keeps only its hash."""

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")]
    """Of the key: who will hold it."""
    speakers: tuple[str, ...] = ()
    """Ids of the speakers whose voice it may use, or patterns: 'clinic-*', '*' for all, '[*]' for a star itself."""
    manage: bool = False
    """It may also delete Submodels of its speakers and see metrics. Without speakers, only metrics."""
    expires: datetime.date | None = None
    """First day, in UTC, on which it is no longer good: 2027-01-01."""
    file: Path = Path("keys.json")
    """The key file; made, for its owner alone, where there is none."""

    def run(self) -> None:
        print(KeyFile(self.file).add(self.name, self.speakers, manage=self.manage, expires=self.expires))
        print("Keep this key now: it cannot be shown again.", file=sys.stderr)


@dataclass(frozen=True)
class List:
    """List the keys: name, speakers, when made, when they expire. Keys themselves are nowhere."""

    file: Path = Path("keys.json")
    """The key file."""

    def run(self) -> None:
        for entry in KeyFile(self.file).entries():
            print(printable(_line(entry)))


@dataclass(frozen=True)
class Revoke:
    """Take a key out of the file. Servers that run refuse it from the next request on."""

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")]
    """Of the key."""
    file: Path = Path("keys.json")
    """The key file."""

    def run(self) -> None:
        KeyFile(self.file).revoke(self.name)
        print(printable(f"'{self.name}' is revoked."))


def keys(words: list[str]) -> None:
    """Runs the command that the words after `specialize keys` say."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"add": Add, "list": List, "revoke": Revoke},
        args=words,
        prog="specialize keys",
        description="API keys of a server: who may use whose voice.",
    )
    command.run()


def _line(entry: Entry) -> str:
    grant = entry.grant
    may = [", ".join(grant.speakers) or "no speakers", *(["manages"] if grant.manages else [])]
    until = "" if entry.expires is None else f", expire{'d' if entry.expired(utc_today()) else 's'} {entry.expires}"
    return f"{grant.name}: {'; '.join(may)}; made {entry.created}{until}"

"""API keys: who may use whose voice.

A key file is JSON, made and changed by `specialize keys`:

    {"format": 1, "keys": [{"name": "clinic", "salt": "…", "hash": "…", "speakers": ["ana", "ben"], "manage": false,
                            "created": "2026-11-25", "expires": "2027-01-01"}]}

A key is 32 random bytes, shown once as `sk-…`, and only its salted SHA-256 is kept. A slow hash is for passwords, which
can be guessed; 256 random bits cannot, so a fast one is enough and costs a request microseconds.
"""

import datetime
import fcntl
import fnmatch
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specialize.errors import KeyFileError
from specialize.printable import printable

FORMAT = 1
"""Version of the file; one of a later version is refused."""
PREFIX = "sk-"
_LONGEST = 256
"""Characters of what is presented as a key and is looked at; keys have 46."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grant:
    """What the bearer of a key may do."""

    name: str
    """Of the key: what may be logged, unlike the key."""
    speakers: tuple[str, ...]
    """Exact ids, or patterns as of a shell: `clinic-*`, `*` for all, `[*]` for a star itself. Case counts."""
    manages: bool
    """Whether it may also delete Submodels of its speakers and see metrics."""

    def allows(self, speaker: str) -> bool:
        """Whether the bearer may use the voice of `speaker`, who need not exist: the answer does not depend on it."""
        return any(speaker == one or fnmatch.fnmatchcase(speaker, one) for one in self.speakers)


@dataclass(frozen=True)
class Entry:
    """One key as the file has it."""

    grant: Grant
    salt: bytes
    hash: bytes
    created: datetime.date
    expires: datetime.date | None = None
    """The first day, in UTC, on which the key is no longer good; None is never."""

    def expired(self, day: datetime.date) -> bool:
        return self.expires is not None and day >= self.expires


class KeyFile:
    """The file of keys, for those who change it; a server asks `Keys`.

    A file that its group or others may write is refused, for whoever writes it makes keys. One that all may read is
    told of in the log: no key can be computed from it, but it names speakers.

    Args:
        path: of the file. A link is followed.
    """

    def __init__(self, path: Path | str):
        self.path = Path(os.path.realpath(path))

    def entries(self) -> tuple[Entry, ...]:
        """The keys, in the order in which they were added.

        Raises:
            KeyFileError: there is no such file, it is damaged, of a later version, or writable by others.
        """
        return _read(self.path)[0]

    def add(
        self,
        name: str,
        speakers: Sequence[str] = (),
        *,
        manage: bool = False,
        expires: datetime.date | None = None,
    ) -> str:
        """Makes a key and returns it, the only time that it is seen. A file is made (mode 0600) where there is none.

        Args:
            name: of the key; no other has it.
            speakers: exact ids or patterns, as `Grant.speakers`.
            manage: as `Grant.manages`.
            expires: as `Entry.expires`.

        Raises:
            KeyFileError: the name is taken or cannot be printed, the key would be good for nothing, or as `entries`.
        """
        if not name or printable(name) != name or name != name.strip():
            raise KeyFileError(f"{name!r} cannot be the name of a key. Take a word that can be printed.")
        if not all(speakers):
            raise KeyFileError("A speaker id is empty. Name ids, or patterns such as 'clinic-*'; '*' is all speakers.")
        if not speakers and not manage:
            raise KeyFileError(f"The key '{name}' would be good for nothing. Name --speakers, or give it --manage.")
        if expires is not None and expires <= utc_today():
            raise KeyFileError(f"The key '{name}' would have expired on {expires} already. Name a day to come.")
        key, salt = PREFIX + secrets.token_urlsafe(32), secrets.token_bytes(16)
        entry = Entry(Grant(name, tuple(speakers), manage), salt, _hash(salt, key), utc_today(), expires)
        with self._locked():
            entries = self.entries() if self.path.exists() else ()
            if any(one.grant.name == name for one in entries):
                raise KeyFileError(f"'{self.path}' has a key '{name}' already. Revoke that, or take another name.")
            self._write((*entries, entry))
        return key

    def revoke(self, name: str) -> None:
        """Takes a key out of the file; servers that run notice at the next request.

        Raises:
            KeyFileError: there is no key of this name, or as `entries`.
        """
        with self._locked():
            entries = self.entries()
            kept = tuple(one for one in entries if one.grant.name != name)
            if len(kept) == len(entries):
                names = ", ".join(one.grant.name for one in entries) or "none"
                raise KeyFileError(f"'{self.path}' has no key '{name}'. It has: {names}.")
            self._write(kept)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time. The lock is a file of its own, for each change replaces the key file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, entries: Sequence[Entry]) -> None:
        """Replaces the file whole or not at all. Its owner and mode stay, for a server may run as another user."""
        text = json.dumps({"format": FORMAT, "keys": [_to_json(one) for one in entries]}, indent=1) + "\n"
        file, beside = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(file, "w", encoding="utf-8") as out:
                if self.path.exists():
                    old, new = self.path.stat(), os.fstat(out.fileno())
                    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
                        os.fchown(out.fileno(), old.st_uid, old.st_gid)
                    os.fchmod(out.fileno(), stat.S_IMODE(old.st_mode))
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.replace(beside, self.path)
        except BaseException:
            os.unlink(beside)
            raise


class Keys:
    """The keys of a file, for a server. They are read again when the file changes, so a revoked key is refused at once.

    A file that goes missing, is damaged or becomes writable by others lets nobody in: what it said before might have a
    key that was since revoked. Why is logged once, and is in `problem`; the next good file lets them in again.

    Args:
        path: of the key file.
        today: gives the day that expiry is judged by.

    Raises:
        KeyFileError: as `KeyFile.entries`, so that a server does not start without keys.
    """

    def __init__(self, path: Path | str, *, today: Callable[[], datetime.date] | None = None):
        # The path as it was given: a mounted secret is a link that is turned to another file.
        self.path, self._today = Path(path), today or utc_today
        self._state: tuple[tuple[Entry, ...], Any, str | None] = (*_read(self.path), None)

    @property
    def problem(self) -> str | None:
        """Why nobody is let in, as a sentence for who runs the server (it names the file); None where all is well."""
        return self._current()[2]

    def check(self, presented: str) -> Grant | None:
        """What the bearer of a key may do; None for what is no key of the file, or expired.

        The time that it takes tells nothing of the keys: each is compared, in constant time.
        """
        if len(presented) > _LONGEST:
            return None
        found = None
        for entry in self._current()[0]:
            if hmac.compare_digest(_hash(entry.salt, presented), entry.hash):
                found = entry
        return None if found is None or found.expired(self._today()) else found.grant

    def _current(self) -> tuple[tuple[Entry, ...], Any, str | None]:
        try:
            seen = _signature(os.stat(self.path))
        except OSError as error:
            seen = error.errno
        if seen != self._state[1]:
            try:
                self._state = (*_read(self.path), None)
                logger.info("The keys in '%s' were read again: %d.", self.path, len(self._state[0]))
            except KeyFileError as error:
                self._state = ((), seen, str(error))
                logger.error("No key is taken until this is mended: %s", error)
        return self._state


def utc_today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _hash(salt: bytes, key: str) -> bytes:
    return hashlib.sha256(salt + key.encode("utf-8", "surrogatepass")).digest()


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does, its mode and owner included."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
    """The entries of a file, and the signature of exactly the file that they were read from."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except FileNotFoundError:
        raise KeyFileError(
            f"There is no key file '{path}'. Make one: specialize keys add NAME --speakers … --file {path}"
        ) from None
    except OSError as error:
        raise KeyFileError(f"The key file '{path}' cannot be read: {error.strerror}. Mend that.") from error
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeyFileError(f"Others may write the key file '{path}', and so make keys. Say: chmod go-w {path}")
    if status.st_mode & stat.S_IROTH:
        logger.warning("All users may read the key file '%s', which names speakers. Say: chmod o-r %s", path, path)
    try:
        data = json.loads(content)
        if data["format"] > FORMAT:
            raise KeyFileError(
                f"The key file '{path}' has format {data['format']}; this specialize knows up to {FORMAT}. Update it."
            )
        entries = tuple(map(_from_json, data["keys"]))
        if len({one.grant.name for one in entries}) < len(entries):
            raise ValueError("two keys have the same name")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise KeyFileError(f"The key file '{path}' is damaged: {said}. Put a good copy in its place.") from error
    return entries, _signature(status)


def _to_json(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.grant.name,
        "salt": entry.salt.hex(),
        "hash": entry.hash.hex(),
        "speakers": list(entry.grant.speakers),
        "manage": entry.grant.manages,
        "created": entry.created.isoformat(),
        "expires": None if entry.expires is None else entry.expires.isoformat(),
    }


def _from_json(data: Any) -> Entry:
    """An entry of the file; raises what `_read` catches. Nothing is guessed: what is of another type is damaged."""
    name, speakers, manage, expires = data["name"], data["speakers"], data["manage"], data["expires"]
    if not (isinstance(name, str) and name):
        raise ValueError("the name of a key is no text")
    if not (isinstance(speakers, list) and all(isinstance(one, str) and one for one in speakers)):
        raise ValueError(f"the speakers of '{name}' are no list of texts")
    if not isinstance(manage, bool):
        raise ValueError(f"'manage' of '{name}' is neither true nor false")
    entry = Entry(
        Grant(name, tuple(speakers), manage),
        bytes.fromhex(data["salt"]),
        bytes.fromhex(data["hash"]),
        datetime.date.fromisoformat(data["created"]),
        None if expires is None else datetime.date.fromisoformat(expires),
    )
    if len(entry.hash) != hashlib.sha256().digest_size:
        raise ValueError(f"the hash of '{name}' is no SHA-256")
    return entry

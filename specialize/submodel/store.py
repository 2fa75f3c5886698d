"""The store of record: one Orbax checkpoint a Submodel, which loads without the run that made it."""

import hashlib
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from etils import epath

from specialize.errors import SpecError, StoreError, StoreUnavailable
from specialize.submodel.bucket import is_far
from specialize.submodel.checkpoint import (
    NEW,
    OLD,
    UNFINISHED,
    absolute,
    check_base,
    checkpoint_version,
    children,
    clear_unfinished,
    near,
    read_arrays,
    read_metadata,
    remnants,
    remove_checkpoint,
    standing,
    write_checkpoint,
)
from specialize.submodel.insert import Submodel
from specialize.submodel.kinds import Kind, spec_from_json, spec_to_json

FORMAT = 1
"""Version of the metadata; a store of a later version is refused."""
_LONGEST = 120
_TRIES = 20
"""How often a Submodel is read that is replaced meanwhile."""
_READERS = 8
"""How many Submodels are asked at once whose or of which spec they are."""
_Read = TypeVar("_Read")
_ENTRIES = {"base": str, "spec": dict, "speaker": str, "training": dict}


@dataclass(frozen=True)
class StoredSubmodel:
    """A Submodel with all that is needed to use and to judge it."""

    submodel: Submodel
    """`{module path: {name: float32 array}}`, on the host."""
    spec: Kind
    speaker: str
    base: str
    """Fingerprint of the base that it belongs to."""
    training: dict[str, Any] = field(default_factory=dict)
    """What the run says of its making: steps, hyper-parameters, losses. JSON data."""

    @property
    def helps(self) -> bool:
        """Whether it is to be used: False only where its run says that it does not beat the base on dev."""
        return self.training.get("beats_base_on_dev", True)


def speaker_folder(speaker: str) -> str:
    """A folder name for any speaker id: safe on every file system and bucket, and different for different ids.

    Letters, digits, `-`, `_` and inner dots stay (but not before `orbax`); everything else is percent-encoded as UTF-8.
    A name that would be longer than 120 characters is cut and ends in a hash of the whole id, after `%%`, which no
    encoded name contains.

    Raises:
        StoreError: an empty id.
    """
    if not speaker:
        raise StoreError("A speaker id is empty. Give every speaker an id.")
    name = urllib.parse.quote(speaker, safe="", errors="surrogatepass").replace("~", "%7E")
    name = name.replace(".orbax", "%2Eorbax")  # `….orbax-checkpoint-tmp` is how Orbax calls an unfinished save
    if name.startswith("."):
        name = "%2E" + name[1:]
    if name.endswith("."):
        name = name[:-1] + "%2E"
    if len(name) > _LONGEST:
        digest = hashlib.sha256(speaker.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        name = f"{name[: _LONGEST - 34]}%%{digest}"
    return name


def save_submodel(path: Any, stored: StoredSubmodel, *, overwrite: bool = False) -> None:
    """Writes one Submodel as one Orbax checkpoint with its metadata, whole or not at all (see `write_checkpoint`).

    Args:
        path: the folder to make; not in a bucket, which is filled by copying.
        stored: what to write.
        overwrite: replace what is there, if it is the same speaker's.

    Raises:
        StoreError: the path is of a bucket, something is there already, or another speaker's Submodel is, or `training`
            is no JSON data, or the file system refused.
    """
    path = near(path)
    if path.exists():
        if not overwrite:
            raise StoreError(f"'{path}' is there already. Choose another path, or overwrite.")
        if submodel_metadata(path)["speaker"] != stored.speaker:
            raise StoreError(
                f"'{path}' holds the Submodel of another speaker than '{stored.speaker}'; not overwritten."
            )
    arrays = {
        name: {key: np.asarray(value, np.float32) for key, value in weights.items()}
        for name, weights in stored.submodel.items()
    }
    metadata = {
        "format": FORMAT,
        "base": stored.base,
        "spec": spec_to_json(stored.spec),
        "speaker": stored.speaker,
        "training": stored.training,
    }
    write_checkpoint(path, arrays, metadata, f"Submodel of '{stored.speaker}'")


def submodel_metadata(path: Any) -> dict[str, Any]:
    """The metadata of a stored Submodel, without its arrays.

    Raises:
        StoreError: nothing is there, or it is not a Submodel, or it is of a later version.
    """
    return read_metadata(absolute(path), "Submodel", "speaker", FORMAT, _ENTRIES)


def load_submodel(path: Any, *, base: str | None = None) -> StoredSubmodel:
    """Reads one Submodel onto the host, whatever devices and processes it was written from.

    Args:
        path: its folder.
        base: fingerprint of the base that it will be used with; None reads it without that check.

    Raises:
        StoreError: nothing is there, or it is damaged or of a later version.
        FingerprintMismatch: it belongs to another base.
    """
    path = absolute(path)
    metadata = submodel_metadata(path)
    check_base(f"Submodel at '{path}'", metadata["base"], base)
    try:
        spec = spec_from_json(metadata["spec"])
    except SpecError as error:
        raise StoreError(f"The Submodel at '{path}' is of a kind that cannot be read: {error}") from error
    arrays = read_arrays(path, "Submodel")
    try:
        submodel = {
            name: {key: np.asarray(value) for key, value in weights.items()} for name, weights in arrays.items()
        }
    except Exception as error:  # whatever a damaged file gives
        raise StoreError(f"The Submodel at '{path}' is damaged: {error}") from error
    return StoredSubmodel(submodel, spec, metadata["speaker"], metadata["base"], metadata["training"])


class SubmodelStore:
    """A folder of Submodels, one subfolder a speaker: `run/submodels`."""

    def __init__(self, folder: Any):
        self.folder = absolute(folder)

    def path(self, speaker: str) -> epath.Path:
        """Where the Submodel of `speaker` is, or would be."""
        return self.folder / speaker_folder(speaker)

    def save(self, stored: StoredSubmodel, *, overwrite: bool = False) -> None:
        """Saves a Submodel under its speaker; see `save_submodel`."""
        save_submodel(self.path(stored.speaker), stored, overwrite=overwrite)

    def load(self, speaker: str, *, base: str | None = None) -> StoredSubmodel:
        """Loads the Submodel of `speaker`, the old or the new one while it is being replaced.

        Raises:
            StoreError, FingerprintMismatch: as `load_submodel`; or what is there is another's.
        """
        stored = self._read(speaker, lambda path: load_submodel(path, base=base))
        if stored.speaker != speaker:
            raise StoreError(
                f"'{self.path(speaker)}' holds the Submodel of '{stored.speaker}', not of '{speaker}': the file "
                "system does not tell their names apart."
            )
        return stored

    def version(self, speaker: str) -> str | None:
        """What differs after each time that the Submodel of `speaker` is written; None where there is none.

        While one is being replaced, it is the old one until the new one is in its place.

        Raises:
            StoreError: it cannot be told.
        """
        found = standing(self.path(speaker))
        return None if found is None else found[1]

    def remove(self, speaker: str) -> bool:
        """Deletes the Submodel of `speaker`, and what unfinished saves have left of it. False if there was nothing.

        Raises:
            StoreError: what is there is another speaker's, or the file system refused.
        """
        path = self.path(speaker)
        if self._owner(path) not in (speaker, None):
            raise StoreError(f"'{path}' holds the Submodel of another speaker than '{speaker}'; not deleted.")
        return remove_checkpoint(path, f"Submodel of '{speaker}'")

    def remnants(self, speaker: str) -> list[epath.Path]:
        """Whatever is here of `speaker`: the Submodel, unfinished saves of it, and copies under other names.

        Raises:
            StoreError: something here cannot be read, and may be theirs.
        """
        named = remnants(self.path(speaker))
        others = [path for path in children(self.folder) if path not in named and (is_far(path) or path.is_dir())]
        with ThreadPoolExecutor(_READERS) as readers:
            owners = list(readers.map(self._surely_owner, others))
        return named + [path for path, owner in zip(others, owners, strict=True) if owner == speaker]

    def specs(self, base: str) -> Counter[Kind]:
        """How many Submodels of a base there are of each spec; what cannot be read is left out.

        Args:
            base: its fingerprint.
        """
        with ThreadPoolExecutor(_READERS) as readers:
            found = readers.map(lambda speaker: self._spec(speaker, base), list(self.listed()))
            return Counter(spec for spec in found if spec is not None)

    def __contains__(self, speaker: str) -> bool:
        try:
            return bool(speaker) and self._read(speaker, submodel_metadata)["speaker"] == speaker
        except StoreError:
            return False

    def clear_unfinished(self) -> None:
        """Removes what killed saves have left. Not while another process saves here.

        A replaced Submodel whose save was killed between its two renames is put back.
        """
        clear_unfinished(self.folder)

    def speakers(self) -> Iterator[str]:
        """The speakers that have a finished Submodel here, in the order of their folders' names."""
        for name, path in sorted(self._folders().items()):
            speaker = self._owner(path)
            if speaker and name == speaker_folder(speaker):
                yield speaker

    def listed(self) -> Iterator[str]:
        """As `speakers`, by the names of the folders alone where they say it: quick, also for very many."""
        for name, path in self._folders().items():
            speaker = urllib.parse.unquote(name, errors="surrogatepass")
            if "%%" in name or speaker_folder(speaker) != name:
                speaker = self._owner(path)
            if speaker and name == speaker_folder(speaker):
                yield speaker

    def _read(self, speaker: str, read: Callable[[epath.Path], _Read]) -> _Read:
        """What `read` gives of a speaker's folder, all of it from before or from after a write that replaces it."""
        for _ in range(_TRIES):
            found = standing(self.path(speaker))
            if found is None:
                return read(self.path(speaker))  # which says what is wrong with what may be there
            place, version = found
            try:
                given = read(place)
            except StoreError:
                if checkpoint_version(place) == version:
                    raise
            else:
                if checkpoint_version(place) == version:
                    return given
        raise StoreError(f"The Submodel of '{speaker}' is replaced faster than it can be read.")

    def _folders(self) -> dict[str, epath.Path]:
        """{name of a speaker's folder: where what it should hold is}, without what is being written."""
        paths = {path.name: path for path in children(self.folder)}
        names = {name.removesuffix(OLD) for name in paths if UNFINISHED not in name and not name.endswith(NEW)}
        return {name: paths[name] if name in paths else paths[f"{name}{OLD}"] for name in names}

    def _spec(self, speaker: str, base: str) -> Kind | None:
        try:
            metadata = self._read(speaker, submodel_metadata)
            return spec_from_json(metadata["spec"]) if metadata["base"] == base else None
        except (StoreError, SpecError):
            return None

    def _owner(self, path: epath.Path) -> str | None:
        """Whose Submodel is at `path`, as far as it can be read."""
        try:
            return self._surely_owner(path)
        except StoreUnavailable:
            return None

    def _surely_owner(self, path: epath.Path) -> str | None:
        """Whose Submodel is at `path`; None for nothing, an unfinished save, or something that is no Submodel.

        Raises:
            StoreUnavailable: it cannot be told.
        """
        try:
            return submodel_metadata(path)["speaker"]
        except StoreUnavailable as error:
            raise StoreUnavailable(f"It cannot be told whose Submodel is at '{path}': {error}") from error
        except StoreError:
            return None

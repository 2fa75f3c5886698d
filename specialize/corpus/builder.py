"""Speech as a TFDS data set in ArrayRecord files, decoded and resampled once. Needs no TensorFlow."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from specialize.corpus.audio import read_audio
from specialize.corpus.catalogue import catalogue_examples, catalogue_name
from specialize.corpus.manifest import Problem, Row, read_manifest
from specialize.errors import CorpusError

FORMAT = "1.0.0"
"""Version of what is stored; another version is built anew."""

Examples = Iterator[tuple[Row, Any]]
"""Rows, each with its samples, float32 [N], or the reason why it has none."""


class SpeechCorpus(tfds.core.GeneratorBasedBuilder):
    """Utterances: PCM of 16 bits at one rate, text, speaker and the line they come from.

    Broken audio is left out and added to `problems`.
    """

    VERSION = tfds.core.Version(FORMAT)

    def __init__(self, examples: Examples, **kwargs: Any):
        self._examples = examples
        self.problems: list[Problem] = []
        self.index: list[tuple[Row, int]] = []
        """Every stored utterance in order, and its samples."""
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "line": np.int64,
                "utterance": tfds.features.Text(),
                "speaker": tfds.features.Text(),
                "text": tfds.features.Text(),
                # Little-endian PCM; a Tensor of numbers would be stored as one varint each.
                "pcm": tfds.features.Tensor(shape=(), dtype=np.bytes_),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"utterances": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, audio in self._examples:
            if isinstance(audio, str):
                self.problems.append(row.problem(audio))
                continue
            self.index.append((row, audio.size))
            pcm = np.rint(np.clip(audio, -1.0, 32767 / 32768) * 32768).astype("<i2").tobytes()
            example = {"line": row.line, "utterance": row.utterance, "speaker": row.speaker, "text": row.text}
            yield row.line, example | {"pcm": pcm}


def _files(rows: list[Row], sample_rate: int) -> Examples:
    """The audio files of a manifest."""

    def read(row: Row) -> Any:
        try:
            return read_audio(row.audio, sample_rate)
        except CorpusError as error:
            return str(error)

    rest = iter(rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # A window of rows at a time: `map` over all would read ahead without bound.
        while window := list(islice(rest, 64)):
            yield from zip(window, pool.map(read, window), strict=True)


@dataclass(frozen=True)
class BuiltCorpus:
    """Rows of a manifest or of the catalogue, and their data set."""

    rows: list[Row]
    """Usable rows, in the order of `source`."""
    samples: list[int]
    """Length of each."""
    problems: list[Problem]
    source: Any
    """Random access: `source[i]['pcm']` is row i's audio."""
    sample_rate: int
    folder: Path
    """Where the data set is; its name holds a hash of all that went into it."""

    def audio(self, index: int) -> np.ndarray:
        """float32 [N] samples of row `index`, in [-1, 1]. May be called from several threads.

        Raises:
            CorpusError: the stored audio is damaged.
        """
        try:
            pcm = np.frombuffer(self.source[index]["pcm"], "<i2")
        except Exception as error:  # ArrayRecord and TFDS raise many types for damaged data
            raise CorpusError(f"Its stored audio in '{self.folder}' cannot be read: {error}") from error
        if pcm.size != self.samples[index]:
            raise CorpusError(
                f"Its stored audio in '{self.folder}' has {pcm.size} samples instead of {self.samples[index]}. "
                "Remove that folder, and it is built anew."
            )
        return pcm.astype(np.float32) / 32768


def build_corpus(manifest: Path, sample_rate: int, cache: Path) -> BuiltCorpus:
    """Opens the data set of a manifest, or of `tfds:NAME`, building it if it is not in the cache.

    The cache is keyed by the manifest, the sizes and times of its audio files, the rate and the version of the format;
    what comes from the catalogue by its name, so that it is opened without TensorFlow.
    A data set is built beside its place and renamed, so that one that was killed is never opened, and two processes
    may build at the same time.

    Raises:
        CorpusError: the manifest cannot be used, or no utterance has audio that can be read.
    """
    manifest, name = Path(manifest), catalogue_name(manifest)
    rows, problems = ([], []) if name is not None else read_manifest(manifest)
    key = _key(manifest, rows, sample_rate) if name is None else _catalogue_key(name, sample_rate)
    folder = Path(cache) / key
    if not (folder / "index.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        examples = _files(rows, sample_rate) if name is None else catalogue_examples(name, sample_rate)
        _build(examples, folder, with_rows=name is not None)
    stored = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    if name is not None:
        rows = [Row(**fields | {"audio": Path(fields["audio"])}) for fields in stored["rows"]]
    by_line = {row.line: row for row in rows}
    roles = {row.line: row.role or "" for row in rows}  # which older caches do not say of problems
    broken = [Problem(**problem | {"role": roles.get(problem["line"], "")}) for problem in stored["problems"]]
    problems = sorted([*problems, *broken], key=lambda p: p.line)
    kept = [by_line[line] for line, _ in stored["index"]]
    builder: Any = tfds.builder_from_directory(folder / stored["data"])
    source = builder.as_data_source(split="utterances")
    return BuiltCorpus(kept, [samples for _, samples in stored["index"]], problems, source, sample_rate, folder)


def _build(examples: Examples, folder: Path, with_rows: bool) -> None:
    """`with_rows` keeps the rows too, where there is no manifest to read them from."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        builder = SpeechCorpus(examples, data_dir=beside)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it announces a download; there is none
                builder.download_and_prepare(download_config=config)
        except CorpusError:
            raise
        except Exception as error:
            if builder.problems and not builder.index:
                first = builder.problems[0]
                raise CorpusError(
                    f"No audio of the corpus can be read; the first is line {first.line}: {first.reason}"
                ) from None
            raise CorpusError(f"The data set could not be built in '{beside}': {error}") from error
        index = {
            "data": str(Path(builder.data_dir).relative_to(beside)),
            "problems": [asdict(problem) for problem in builder.problems],
            "index": [(row.line, samples) for row, samples in builder.index],
        }
        if with_rows:
            index["rows"] = [asdict(row) | {"audio": str(row.audio)} for row, _ in builder.index]
        (beside / "index.json").write_text(json.dumps(index), encoding="utf-8")
        beside.chmod(0o755)
        try:
            beside.rename(folder)
        except OSError:
            if not (folder / "index.json").is_file():
                raise
            # Another process was faster, with the same data.
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _catalogue_key(name: str, sample_rate: int) -> str:
    digest = hashlib.sha256(f"{FORMAT} {sample_rate} {name}".encode()).hexdigest()[:16]
    return f"tfds-{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{digest}"


def _key(manifest: Path, rows: list[Row], sample_rate: int) -> str:
    digest = hashlib.sha256(f"{FORMAT} {sample_rate}".encode())
    digest.update(manifest.read_bytes())
    for row in rows:
        stat = row.audio.stat()
        digest.update(f"{row.line} {stat.st_size} {stat.st_mtime_ns}".encode())
    return f"{manifest.stem}-{digest.hexdigest()[:16]}"

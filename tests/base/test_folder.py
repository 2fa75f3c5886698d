"""Base folders and imports: what is written comes back, and what does not fit is named."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import save_file

from specialize.base import Base, Tokenizer, import_base, load_base, save_base
from specialize.base.checkpoint import read_weights
from specialize.base.import_whisper import whisper_tensor
from specialize.errors import BaseModelError
from tests.bases import END, QUIET, START, byte_tokenizer, tiny_conformer_ctc, tiny_whisper, whisper_of


def tensors(base: Base) -> dict[str, np.ndarray]:
    """The base's parameters under Hugging Face's names and axes."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(base.params)[0]:
        name, change = whisper_tensor(tuple(key.key for key in path))
        found[name] = np.ascontiguousarray(leaf if change is None else change(np.asarray(leaf)))  # its own inverse
    return found


def checkpoint(folder: Path, values: dict[str, np.ndarray], shards: int = 1, **config) -> Path:
    """A Hugging Face folder of the tiny base."""
    folder.mkdir()
    definition, ids = byte_tokenizer()
    sizes = dataclasses.asdict(whisper_of(tiny_whisper()).config)
    (folder / "config.json").write_text(
        json.dumps(
            sizes
            | {"model_type": "whisper", "decoder_start_token_id": ids[START], "eos_token_id": ids[END]}
            | {"suppress_tokens": [5, 6, *range(259, 264)], "no_timestamps_token_id": ids[QUIET]}
            | config
        )
    )
    (folder / "tokenizer.json").write_text(definition)
    names = sorted(values)
    if shards == 1:
        save_file(values, folder / "model.safetensors")
    else:
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        for i, file in enumerate(files):
            save_file({name: values[name] for name in names[i::shards]}, folder / file)
        weight_map = {name: files[i % shards] for i, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def whisper_in(tokens: list[str]) -> Base:
    """The tiny base with these markup tokens in its prompt."""
    base = tiny_whisper()
    tokenizer = tokenizers.Tokenizer.from_str(base.tokenizer.definition)
    tokenizer.add_special_tokens(tokens)
    start, quiet = whisper_of(base).prompt
    prompt = (start, *(tokenizer.token_to_id(token) for token in tokens), quiet)
    architecture = dataclasses.replace(whisper_of(base), prompt=prompt)
    return Base.make(architecture, base.params, Tokenizer(tokenizer.to_str(), base.tokenizer.end))


def test_import_and_load_give_the_base_back(tmp_path):
    base = tiny_whisper()
    imported = import_base(checkpoint(tmp_path / "hf", tensors(base)), tmp_path / "base")
    loaded = load_base(tmp_path / "base")
    assert imported.fingerprint == base.fingerprint == loaded.fingerprint
    assert loaded.architecture == base.architecture
    jax.tree.map(np.testing.assert_array_equal, loaded.params, base.params)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_and_shards(tmp_path, dtype, shards):
    halved = {name: value.astype(dtype) for name, value in tensors(tiny_whisper()).items()}
    base = import_base(checkpoint(tmp_path / "hf", halved, shards), tmp_path / "base")
    for name, value in tensors(base).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, halved[name].astype(np.float32), err_msg=name)


def test_weights_are_read_in_their_own_types_and_shapes(tmp_path):
    written = {
        "half": np.arange(4).astype(ml_dtypes.bfloat16),
        "steps": np.array(2**40),
        "none": np.zeros((0, 2), np.float16),
        "single": np.array([[1.0, np.nan]], np.float32),
    }
    save_file(written, tmp_path / "one.safetensors")
    read = read_weights(tmp_path / "one.safetensors")
    assert read.keys() == written.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(read[name], value, strict=True)


def test_names_without_model_and_a_tied_output_are_known(tmp_path):
    base = tiny_whisper()
    values = {name.removeprefix("model."): value for name, value in tensors(base).items()}
    values["proj_out.weight"] = values["decoder.embed_tokens.weight"].copy()
    assert import_base(checkpoint(tmp_path / "hf", values), tmp_path / "base").fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.encoder.conv1.weight"), "encoder.conv1.weight is missing"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "extra is not known"),
        (
            lambda t: t.update({"model.encoder.conv1.bias": np.zeros(3, np.float32)}),
            r"has shape \(3,\), expected \(16,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    values = tensors(tiny_whisper())
    change(values)
    with pytest.raises(BaseModelError, match=message):
        import_base(checkpoint(tmp_path / "hf", values), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    values = tensors(tiny_whisper())
    with pytest.raises(BaseModelError, match="model_type 'bert'"):
        import_base(checkpoint(tmp_path / "bert", values, model_type="bert"), tmp_path / "base")
    with pytest.raises(BaseModelError, match="activation_function='relu'"):
        import_base(checkpoint(tmp_path / "relu", values, activation_function="relu"), tmp_path / "base")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BaseModelError, match=r"no config.json"):
        import_base(empty, tmp_path / "base")
    with pytest.raises(BaseModelError, match="no folder"):
        import_base(tmp_path / "not here", tmp_path / "base")
    folder = checkpoint(tmp_path / "no weights", values)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"no model.safetensors"):
        import_base(folder, tmp_path / "base")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BaseModelError, match="cannot be read"):
        import_base(folder, tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match="no tokenizer"):
        import_base(folder, tmp_path / "base")
    for data in ("[1, 2]", "\xff", "{"):
        (folder / "config.json").write_text(data, encoding="latin-1")
        with pytest.raises(BaseModelError, match="JSON"):
            import_base(folder, tmp_path / "base")
    with pytest.raises(BaseModelError, match="English-only"):
        import_base(checkpoint(tmp_path / "german", values), tmp_path / "base", language="de")
    assert not (tmp_path / "base").exists()


def test_a_multilingual_checkpoint_is_prompted_for_its_language(tmp_path):
    table: dict[str, Any] = {
        "lang_to_id": {"<|de|>": 11, "<|fr|>": 12},
        "task_to_id": {"transcribe": 13, "translate": 14},
    }
    folder = checkpoint(tmp_path / "hf", tensors(tiny_whisper()), is_multilingual=True, **table)
    start, quiet = whisper_of(tiny_whisper()).prompt
    german = import_base(folder, tmp_path / "de", language="de")
    assert whisper_of(german).prompt == (start, 11, 13, quiet)
    french = import_base(folder, tmp_path / "fr", language="fr", task="translate")
    assert whisper_of(french).prompt == (start, 12, 14, quiet)
    assert german.fingerprint != french.fingerprint
    with pytest.raises(BaseModelError, match="It has: de, fr"):
        import_base(folder, tmp_path / "en")


@pytest.mark.parametrize(
    "forced",
    [
        {"forced_decoder_ids": [[1, 11], [2, 14], [3, 263]]},
        {"forced_decoder_ids": [[1, None], [2, 14]], "language": "<|de|>"},
        {"language": "de", "task": "translate"},
    ],
)
def test_a_multilingual_checkpoint_is_prompted_as_its_own_settings_force(tmp_path, forced):
    table = {"lang_to_id": {"<|en|>": 10, "<|de|>": 11}, "task_to_id": {"transcribe": 13, "translate": 14}}
    folder = checkpoint(tmp_path / "hf", tensors(tiny_whisper()), is_multilingual=True, **table, **forced)
    start, quiet = whisper_of(tiny_whisper()).prompt
    assert whisper_of(import_base(folder, tmp_path / "own")).prompt == (start, 11, 14, quiet)
    asked = import_base(folder, tmp_path / "asked", language="en", task="transcribe")
    assert whisper_of(asked).prompt == (start, 10, 13, quiet)


def test_settings_that_are_null_or_lacking_do_not_hide_what_is_known(tmp_path):
    base = tiny_whisper()
    folder = checkpoint(tmp_path / "hf", tensors(base))
    settings = {"eos_token_id": None, "decoder_start_token_id": None, "suppress_tokens": None}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    imported = import_base(folder, tmp_path / "base")
    assert whisper_of(imported).prompt == whisper_of(base).prompt
    assert imported.tokenizer.end == base.tokenizer.end


def test_a_multilingual_checkpoint_of_before_the_language_tables_is_known_by_its_vocabulary(tmp_path):
    base, size = tiny_whisper(), 51_865
    values = tensors(base)
    embedding = values["model.decoder.embed_tokens.weight"]
    values["model.decoder.embed_tokens.weight"] = np.resize(embedding, (size, embedding.shape[1]))
    folder = checkpoint(tmp_path / "hf", values, vocab_size=size)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|de|>", "<|transcribe|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    german, transcribe = (tokenizer.token_to_id(token) for token in ("<|de|>", "<|transcribe|>"))
    start, quiet = whisper_of(base).prompt
    imported = import_base(folder, tmp_path / "de", language="de")
    assert whisper_of(imported).prompt == (start, german, transcribe, quiet)
    with pytest.raises(BaseModelError, match="no language 'fr'"):
        import_base(folder, tmp_path / "fr", language="fr")
    with pytest.raises(BaseModelError, match="no task 'translate'"):
        import_base(folder, tmp_path / "en", language="de", task="translate")


@pytest.mark.parametrize(
    ("tokens", "language"),
    [
        ([], "en"),
        (["<|it|>", "<|transcribe|>"], "it"),
        (["<|yue|>", "<|transcribe|>"], "yue"),
        (["<|it|>", "<|translate|>"], "en"),
    ],
)
def test_a_base_writes_the_language_that_it_is_prompted_for(tokens, language):
    base = whisper_in(tokens)
    assert base.language == language
    assert base.adapt("qui i libri") == ("Qui I libri." if language == "en" else "Qui i libri.")


def test_the_limit_of_tokens_is_how_a_base_is_used():
    base = tiny_whisper()
    more = base.with_tokens_per_second(20)
    assert whisper_of(more).tokens_per_second == 20.0
    assert more.fingerprint == base.fingerprint
    assert base.with_tokens_per_second(None) is base
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(BaseModelError, match="positive"):
            base.with_tokens_per_second(rate)
    with pytest.raises(BaseModelError, match="ConformerCTC has no limit"):
        tiny_conformer_ctc().with_tokens_per_second(20)


def test_an_import_replaces_nothing(tmp_path):
    folder = checkpoint(tmp_path / "hf", tensors(tiny_whisper()))
    (tmp_path / "base").mkdir()
    (tmp_path / "base/mine").write_text("kept")
    with pytest.raises(BaseModelError, match="there already"):
        import_base(folder, tmp_path / "base")
    assert (tmp_path / "base/mine").read_text() == "kept"


def test_the_fingerprint_is_of_all_four_parts():
    base = tiny_whisper()
    architecture = dataclasses.replace(whisper_of(base), suppress=(5,))
    params = jax.tree.map(np.copy, base.params)
    params["encoder"]["conv1"]["bias"][3] += 1e-6
    definition = base.tokenizer.definition.replace("notimestamps", "notimestamp5")
    tokenizer = type(base.tokenizer)(definition, base.tokenizer.end)
    made = {
        Base.make(architecture, base.params, base.tokenizer).fingerprint,
        Base.make(base.architecture, params, base.tokenizer).fingerprint,
        Base.make(base.architecture, base.params, tokenizer).fingerprint,
        base.fingerprint,
    }
    assert len(made) == 4
    how_it_is_used = {"context": "full", "tail": 0.5, "tokens_per_second": 3.0}
    architecture = dataclasses.replace(whisper_of(base), **how_it_is_used)
    assert Base.make(architecture, base.params, base.tokenizer).fingerprint == base.fingerprint


def test_how_a_base_is_used_is_kept(tmp_path):
    base = tiny_whisper().with_context("full")
    save_base(base, tmp_path / "base")
    assert load_base(tmp_path / "base").architecture == base.architecture


def test_a_changed_folder_is_noticed(tmp_path):
    save_base(tiny_whisper(), tmp_path / "base")
    data = json.loads((tmp_path / "base/base.json").read_text())
    data["config"]["suppress"] = [7]
    (tmp_path / "base/base.json").write_text(json.dumps(data))
    with pytest.raises(BaseModelError, match="changed since it was written"):
        load_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("base.json", lambda text: text[: len(text) // 2], "damaged"),
        ("base.json", lambda text: "[]", "holds no object"),
        ("base.json", lambda text: text.replace('"end"', '"and"', 1), "lacks end"),
        ("base.json", lambda text: text.replace('"d_model"', '"e_model"'), "does not fit"),
        ("base.json", lambda text: text.replace('"suppress"', '"oppress"'), "does not fit"),
        ("tokenizer.json", lambda text: None, r"tokenizer\.json .* cannot be read"),
        ("tokenizer.json", lambda text: text[: len(text) // 2], "tokenizer cannot be read"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, name, change, message):
    save_base(tiny_whisper(), tmp_path / "base")
    changed = change((tmp_path / "base" / name).read_text())
    (tmp_path / "base" / name).unlink()
    if changed is not None:
        (tmp_path / "base" / name).write_text(changed)
    with pytest.raises(BaseModelError, match=message):
        load_base(tmp_path / "base")


class Hub:
    """What `huggingface_hub.snapshot_download` does, from a folder instead of the network."""

    def __init__(self, source: Path, cache: Path):
        self.source, self.cache = source, cache / "snapshots/0123abc"

    def __call__(self, name: str, allow_patterns: list[str], revision: str | None = None) -> str:
        assert name == "someone/model"
        assert revision in (None, self.cache.name)
        self.cache.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects([path.name for path in self.source.iterdir()], allow_patterns=allow_patterns):
            shutil.copy(self.source / file, self.cache / file)
        return str(self.cache)


@pytest.mark.parametrize("shards", [1, 3])
def test_only_the_weights_that_are_needed_come_from_the_hub(tmp_path, monkeypatch, shards):
    values = tensors(tiny_whisper())
    source = checkpoint(tmp_path / "repository", values, shards)
    save_file(values, source / "model.fp32-00001-of-00001.safetensors")
    (source / "pytorch_model.bin").write_bytes(b"the same again")
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(source, tmp_path))
    base = import_base("someone/model", tmp_path / "base")
    assert base.fingerprint == tiny_whisper().fingerprint
    weights = {path.name for path in (tmp_path / "snapshots/0123abc").iterdir() if path.suffix != ".json"}
    assert weights == {path.name for path in source.glob("model*.safetensors") if "fp32" not in path.name}


def test_a_hub_model_without_safetensors_says_what_to_do(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "repository", tensors(tiny_whisper()))
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(source, tmp_path))
    with pytest.raises(BaseModelError, match=r"'someone/model' on the hub has no safetensors\. .*save_pretrained"):
        import_base("someone/model", tmp_path / "base")


def test_what_is_not_a_base_folder_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match=r"no base.json"):
        load_base(tmp_path)
    folder = checkpoint(tmp_path / "hf", tensors(tiny_whisper()))
    with pytest.raises(BaseModelError, match="specialize import-base"):
        load_base(folder)
    save_base(tiny_whisper(), tmp_path / "base")
    with pytest.raises(BaseModelError, match="there already"):
        save_base(tiny_whisper(), tmp_path / "base")


KILLED = """
import os, pathlib, signal, sys
from specialize.base import save_base
from tests.bases import tiny_whisper

base, folder, count = tiny_whisper(), pathlib.Path(sys.argv[1]), int(sys.argv[2])
renames = 0

def hook(event, arguments):
    global renames
    if event == "os.rename" and str(folder) in str(arguments[0]):
        renames += 1
        if renames == count:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
save_base(base, folder / "base")
print(renames)
"""


def test_a_save_that_is_killed_before_its_end_leaves_no_base(tmp_path):
    def save(folder: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
        folder.mkdir()
        command = [sys.executable, "-W", "ignore", "-c", KILLED, str(folder), str(killed_at)]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])

    whole = save(tmp_path / "whole", 0)
    renames = int(whole.stdout)
    assert renames > 0, whole.stderr
    assert load_base(tmp_path / "whole/base").fingerprint == tiny_whisper().fingerprint
    # The last rename is the one that makes the folder appear; Orbax may have renamed files of its own before.
    for moment in {1, renames}:
        folder = tmp_path / f"killed at {moment}"
        assert save(folder, moment).returncode == -signal.SIGKILL
        assert any(folder.iterdir()), "it was killed before it began"
        with pytest.raises(BaseModelError, match=r"no base.json"):
            load_base(folder / "base")
        save_base(tiny_whisper(), folder / "base")
        assert load_base(folder / "base").fingerprint == tiny_whisper().fingerprint


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("specialize.base.folder.ocp.save", full)
    with pytest.raises(OSError, match="No space"):
        save_base(tiny_whisper(), tmp_path / "base")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("spelled", ["<|nospeech|>", "<|nocaptions|>"])
def test_the_token_for_no_speech_is_the_tokenizers_and_no_part_of_the_fingerprint(tmp_path, spelled):
    tiny = tiny_whisper()
    made = tokenizers.Tokenizer.from_str(tiny.tokenizer.definition)
    made.add_special_tokens([spelled])
    tokenizer = Tokenizer(made.to_str(), tiny.tokenizer.end)
    expected = tokenizer.id_of(spelled)
    hf = checkpoint(tmp_path / "hf", tensors(tiny))
    (hf / "tokenizer.json").write_text(made.to_str())
    imported = import_base(hf, tmp_path / "base")
    assert expected is not None
    assert whisper_of(imported).no_speech == whisper_of(load_base(tmp_path / "base")).no_speech == expected
    without = Base.make(dataclasses.replace(whisper_of(imported), no_speech=None), imported.params, tokenizer)
    assert without.fingerprint == imported.fingerprint

    description = json.loads((tmp_path / "base" / "base.json").read_text())
    del description["config"]["no_speech"]  # a folder of before it was known
    (tmp_path / "base" / "base.json").write_text(json.dumps(description))
    assert whisper_of(load_base(tmp_path / "base")).no_speech == expected
    assert whisper_of(tiny).no_speech is None

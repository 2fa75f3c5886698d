"""`specialize export` and `import-submodel`, as a user types them."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from specialize.base import import_base, load_base, save_base
from specialize.cli import main
from specialize.corpus import CorpusConfig
from specialize.export import merged_parameters, read_safetensors
from specialize.submodel import LoRA, SubmodelStore, load_submodel, save_submodel
from specialize.submodel.sites import flatten
from specialize.submodel.store import speaker_folder
from specialize.train import CohortConfig, Experiment
from specialize.train.experiment import to_json
from tests.base.test_folder import checkpoint, tensors
from tests.bases import tiny_whisper
from tests.export.checkpoints import random_stored, whisper_checkpoint
from tests.submodel.submodels import assert_same
from tests.test_cli import fails

SPEC = LoRA(("encoder/**",), rank=2)
SPEAKERS = ("ana", "Bob/1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Hugging Face folder `hf`, its `base`, and a `run` of two speakers on it that has ended."""
    folder = tmp_path_factory.mktemp("exchange")
    whisper_checkpoint(folder / "hf")
    base = import_base(folder / "hf", folder / "base")
    (folder / "run").mkdir()
    experiment = Experiment(
        "run", folder / "base", CorpusConfig(folder / "x.jsonl"), SPEC, cohort=CohortConfig(slots=1)
    )
    config = {"kind": "Experiment", "base": base.fingerprint, "experiment": to_json(experiment), "versions": {}}
    (folder / "run/config.json").write_text(json.dumps(config))
    for seed, speaker in enumerate(SPEAKERS):
        stored = random_stored(base, SPEC, speaker, scale=0.1 * (1 + seed), beats_base_on_dev=speaker == "ana")
        SubmodelStore(folder / "run/submodels").save(stored)
    return folder


def stored(folder: Path, speaker: str = "ana"):
    return SubmodelStore(folder / "run/submodels").load(speaker)


@pytest.mark.parametrize("format", ["safetensors", "peft"])
def test_one_submodel_there_and_back(folder, tmp_path, capsys, format):
    source, base = folder / "run/submodels/ana", str(folder / "base")
    main(["export", str(source), str(tmp_path / "out"), "--format", format, "--base", base])
    assert "of 'ana'" in capsys.readouterr().out
    main(["import-submodel", str(tmp_path / "out"), str(tmp_path / "back"), "--base", base])
    assert "of 'ana'" in capsys.readouterr().out
    assert_same(load_submodel(tmp_path / "back"), stored(folder))
    main(["import-submodel", str(tmp_path / "out"), str(tmp_path / "eve"), "--base", base, "--speaker", "eve"])
    assert load_submodel(tmp_path / "eve").speaker == "eve"


def test_a_run_as_files(folder, tmp_path, capsys):
    main(["export", str(folder / "run"), str(tmp_path / "out"), "--format", "safetensors"])
    printed = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ana.safetensors", "Bob%2F1.safetensors"}
    for speaker in SPEAKERS:
        file = tmp_path / "out" / f"{speaker_folder(speaker)}.safetensors"
        assert_same(read_safetensors(file), stored(folder, speaker))
        assert str(file) in printed
    assert printed.count("did not beat the base on dev") == 1


def test_a_run_as_folders_of_peft_and_merged(folder, tmp_path, capsys):
    words = ["export", str(folder / "run"), "--huggingface", str(folder / "hf")]
    main([*words, str(tmp_path / "peft"), "--format", "peft"])
    config = json.loads((tmp_path / "peft/Bob%2F1/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "hf")
    main([*words, str(tmp_path / "merged"), "--format", "merged", "--speakers", "Bob/1"])
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["Bob%2F1"]
    base = import_base(tmp_path / "merged/Bob%2F1", tmp_path / "base")
    expected = merged_parameters(stored(folder, "Bob/1"), load_base(folder / "base"))
    for path, value in expected.items():
        np.testing.assert_array_equal(flatten(base.params)[path], value)
    assert "tensors of float32" in capsys.readouterr().out


def test_a_run_as_one_program(folder, tmp_path):
    words = ["--program.seconds", "1", "2", "--program.platforms", "cpu", "--program.max-tokens", "5"]
    main(["export", str(folder / "run"), str(tmp_path / "out"), "--format", "program", *words])
    about = json.loads((tmp_path / "out/program.json").read_text())
    assert set(about["submodels"]) == set(SPEAKERS)
    assert [program["samples"] for program in about["programs"]] == [16_000, 32_000]


def test_an_exported_file_is_exported_on(folder, tmp_path):
    file, base = tmp_path / "ana.safetensors", str(folder / "base")
    main(["export", str(folder / "run/submodels/ana"), str(file), "--format", "safetensors"])
    main(["export", str(file), str(tmp_path / "peft"), "--format", "peft", "--base", base])
    main(["import-submodel", str(tmp_path / "peft"), str(tmp_path / "back"), "--base", base])
    assert_same(load_submodel(tmp_path / "back"), stored(folder))


def test_errors_are_a_sentence_and_leave_nothing(folder, tmp_path, capsys):
    one, run, out = folder / "run/submodels/ana", folder / "run", tmp_path / "out"
    save_base(tiny_whisper(), tmp_path / "other")
    words = ("--format", "merged", "--base", folder / "base")
    for message, *said in (
        ("needs --base", one, out, "--format", "peft"),
        ("needs --huggingface", one, out, *words),
        ("another model", one, out, *words, "--huggingface", _other(tmp_path)),
        ("chooses from a run", one, out, "--format", "safetensors", "--speakers", "ana"),
        ("no Submodel of 'eve'", run, out, "--format", "safetensors", "--speakers", "ana", "eve"),
        ("no Submodel at", tmp_path / "nothing", out, "--format", "safetensors"),
        ("was trained on the base", run, out, "--format", "peft", "--base", tmp_path / "other"),
        (tiny_whisper().fingerprint, one, out, "--format", "peft", "--base", tmp_path / "other"),
        (tiny_whisper().fingerprint, one, out, "--format", "safetensors", "--base", tmp_path / "other"),
        ("there already", run, tmp_path, "--format", "safetensors"),
        ("up to 5 s", run, out, "--format", "program", "--program.seconds", "6"),
        ("rows=0", run, out, "--format", "program", "--program.rows", "0"),
    ):
        assert message in fails(capsys, "export", *said)
        assert not out.exists()
    for message, source in (("not a folder of PEFT", one), ("no Submodel at", tmp_path / "nothing")):
        assert message in fails(capsys, "import-submodel", source, out, "--base", folder / "base")
    save_submodel(tmp_path / "kept", stored(folder))
    main(["export", str(one), str(tmp_path / "file"), "--format", "safetensors"])
    command = ("import-submodel", tmp_path / "file", tmp_path / "kept", "--base", folder / "base")
    assert "there already" in fails(capsys, *command)


def _other(folder: Path) -> Path:
    """A Hugging Face folder of another size."""
    return checkpoint(folder / "other-hf", tensors(tiny_whisper()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see test_store_damage
def test_a_run_that_fails_in_the_middle_leaves_nothing(folder, tmp_path, capsys):
    shutil.copytree(folder / "run", tmp_path / "run")
    for path in (tmp_path / "run/submodels/ana").rglob("*"):
        if path.is_file() and path.name != "_CHECKPOINT_METADATA":
            path.write_bytes(b"")
    assert "ana" in fails(capsys, "export", tmp_path / "run", tmp_path / "out", "--format", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_two_speakers_differ(folder):
    one, two = (jax.tree.leaves(stored(folder, speaker).submodel) for speaker in SPEAKERS)
    assert not any(np.array_equal(a, b) for a, b in zip(one, two, strict=True))

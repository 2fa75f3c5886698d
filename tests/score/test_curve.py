"""The learning curve: the same figures as from the errors themselves, over the people that all runs have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specialize import CorpusConfig, Experiment, HyperParameters
from specialize.cli import main
from specialize.errors import ConfigError
from specialize.score import Transcript, score, write_report
from specialize.score.curve import learning_curve, write_curve
from specialize.train import Run
from specialize.train.recorder import JOBS

WORDS, BASE = 20, 9


def counted(speakers: dict[str, int], words: int = WORDS) -> dict[str, Any]:
    """A results.json of speakers with so many errors each."""

    def of(errors: int) -> dict[str, int]:
        return {"substitutions": errors - errors // 3, "deletions": errors // 3, "insertions": 0, "hits": 0}

    return {
        "speakers": {
            name: {"words": words, "counts": of(errors), "base_counts": of(BASE)} for name, errors in speakers.items()
        }
    }


def run(folder: Path, name: str, errors: dict[str, int], utterances: int, base: str = "b", **of: Any) -> Path:
    """A run that has been scored, told and not trained."""
    experiment = Experiment(name, Path("base"), CorpusConfig(Path("people.jsonl")), runs=folder, **of)
    made = Run.begin(experiment, base=base)
    jobs = [{"speaker": speaker, "point": 0, "quarantined": None, "utterances": utterances} for speaker in errors]
    (made.folder / JOBS).write_text("".join(json.dumps(job) + "\n" for job in jobs))
    (made.folder / "results.json").write_text(json.dumps(counted(errors)))
    return made.folder


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    people = [f"p{i}" for i in range(12)]
    rng = np.random.default_rng(0)

    def errors(most: int) -> dict[str, int]:
        return {name: int(rng.integers(most - 3, most + 1)) for name in people}

    return [
        run(tmp_path, "plain_3", errors(8), 3),
        run(tmp_path, "plain_12", errors(6), 12),
        run(tmp_path, "start_3", errors(5), 3, start=Path("start")),
        run(tmp_path, "space_3", errors(5), 3, space=Path("space"), fit="embedding"),
        run(tmp_path, "unfrozen_3", errors(4) | {"late": 0}, 3, space=Path("space")),
    ]


def control(folder: Path, errors: int = 5) -> Path:
    file = folder / "results.personal.json"
    file.write_text(json.dumps(counted({f"p{i}": errors for i in range(12)})))
    return file


def test_points_are_the_pooled_rates_of_those_in_all_runs(tmp_path, folders):
    made = learning_curve(folders, control(tmp_path))
    assert made["speakers"] == 12
    assert made["words"] == 12 * WORDS
    assert made["base"] == BASE / WORDS
    assert made["pooled_control"] == 5 / WORDS
    for folder in folders:
        rows = json.loads((folder / "results.json").read_text())["speakers"]
        wrong = sum(sum(rows[f"p{i}"]["counts"].values()) for i in range(12))
        assert made[folder.name.replace("_", "_at_")] == pytest.approx(wrong / (12 * WORDS))
    assert [point["utterances"] for point in made["curves"]["plain"]] == [3, 12]
    for of in made["curves"].values():
        for point in of:
            low, high = point["wer_interval"]
            assert low <= point["wer"] <= high
            assert point["reduction_against_control"] == pytest.approx(1 - point["wer"] / made["pooled_control"])
            assert 0 < point["p_against_control"] <= 1


def test_without_a_control_nothing_is_said_of_one(folders):
    made = learning_curve(folders)
    assert made["pooled_control"] is None
    assert "reduction_against_control" not in made["curves"]["plain"][0]


def test_the_command_writes_figures_and_a_page(tmp_path, folders, capsys):
    file, out = control(tmp_path), tmp_path / "out"
    main(["curve", *map(str, folders), "--control", str(file), "--out", str(out)])
    assert json.loads((out / "learning_curve.json").read_text()) == learning_curve(folders, file)
    page = (out / "learning_curve.html").read_text()
    assert page.count("<polyline") == 4
    assert "http" not in page.replace("http-equiv", "")
    assert "12 speakers, base 45.0%, one for all 25.0%" in capsys.readouterr().out


def test_what_cannot_be_compared_is_told(tmp_path, folders):
    with pytest.raises(ConfigError, match="Name at least one run"):
        learning_curve([])
    with pytest.raises(ConfigError, match="both a Submodel from no effect after 3 utterances"):
        learning_curve([*folders, run(tmp_path, "again", {"p0": 1}, 3)])
    with pytest.raises(ConfigError, match="No speaker is in all"):
        learning_curve([*folders, run(tmp_path, "other", {"q": 1}, 4)])
    with pytest.raises(ConfigError, match="runs of one base"):
        learning_curve([*folders, run(tmp_path, "foreign", {"p0": 1}, 4, base="c")])
    with pytest.raises(ConfigError, match="budgets of the same unit"):
        learning_curve([*folders, run(tmp_path, "seconds", {"p0": 1}, 4, hyper=HyperParameters(seconds=9.0))])
    with pytest.raises(ConfigError, match="is a folder"):
        learning_curve(folders, folders[0])
    (folders[0] / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"specialize evaluate .*plain_3"):
        learning_curve(folders)


def test_other_texts_are_not_compared(tmp_path, folders):
    (folders[1] / "results.json").write_text(json.dumps(counted(dict.fromkeys([f"p{i}" for i in range(12)], 1), 21)))
    with pytest.raises(ConfigError, match="scored other texts of 'p0'"):
        learning_curve(folders)


def test_a_base_that_was_scored_in_another_way_is_not_compared(folders):
    results = counted(dict.fromkeys([f"p{i}" for i in range(12)], 1))
    results["speakers"]["p7"]["base_counts"]["deletions"] += 1
    (folders[1] / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError, match=r"scored in another way .* \(of 'p7'\)"):
        learning_curve(folders)


def test_seconds_are_an_amount_too(tmp_path):
    errors = {"p0": 1, "p1": 3}
    folders = [run(tmp_path, f"s{n}", errors, 4, hyper=HyperParameters(seconds=n)) for n in (7.5, 30.0)]
    made = learning_curve(folders)
    assert made["unit"] == "seconds"
    assert made["plain_at_7.5"] == made["plain_at_30"] == 4 / (2 * WORDS)


def test_without_an_error_to_reduce_there_is_no_reduction(tmp_path):
    folder = run(tmp_path, "perfect", {"p0": 0, "p1": 0}, 4)
    made = learning_curve([folder], control(tmp_path, errors=0))
    assert made["curves"]["plain"][0]["reduction_against_control"] is None
    write_curve(made, tmp_path)


def test_the_report_of_a_run_shows_the_curve_that_is_in_its_folder(tmp_path, folders):
    heard = [Transcript(f"u{i}", f"p{i}", "one two", "one", "one two") for i in range(3)]
    results = score(heard)
    write_report(tmp_path / "without.html", results, heard)
    write_report(tmp_path / "with.html", results, heard, learning_curve=learning_curve(folders, control(tmp_path)))
    pages = [(tmp_path / name).read_text() for name in ("without.html", "with.html")]
    assert ["Learning curve" in page for page in pages] == [False, True]
    assert "one Submodel for all" in pages[1]

"""`--mixer` and `--directions`: from `train` to `predict`, `export` and `compare`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from phantoms import Finished

from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks import registry
from umamba_cli.pipeline.networks.mamba2 import Mamba2Block
from umamba_cli.pipeline.networks.s4d import S4DBlock
from umamba_cli.pipeline.runs.network import recorded_network
from umamba_cli.pipeline.runs.record import read_record
from umamba_cli.pipeline.workflows.cross_validation import cross_validate

Umamba = Callable[..., Finished]

QUICK = ("--epochs", 1, "--iterations", 1, "--device", "cpu", "-j", 0)


@pytest.fixture
def own_workspace(tiny_workspace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_workspace, tmp_path / "work"))


def document(done: Finished) -> dict[str, Any]:
    assert done.code == 0, done.err
    content: dict[str, Any] = json.loads(done.out)
    return content


def test_a_mixer_goes_the_whole_way(umamba: Umamba, own_workspace: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    train = ("train", own_workspace, "-m", "umamba-bot", "--directions", "both", *QUICK, "--json")
    document(umamba(*train, "--mixer", "s4d"))
    run = Run(own_workspace / "runs" / "umamba-bot__3d_fullres__s4d-both" / "fold_0")
    assert run.is_finished
    record = read_record(run)
    assert (record.model, record.mixer, record.scan_directions) == ("umamba-bot", "s4d", "both")
    assert sum(isinstance(layer, S4DBlock) for layer in recorded_network(record).modules()) == 2
    assert umamba("predict", run.folder, "-i", tiny_dataset / "imagesTs", "-o", tmp_path / "p").code == 0
    assert '"umamba-bot+s4d-both"' in (tmp_path / "p" / "prediction.json").read_text()
    bundle = tmp_path / "model.zip"
    assert document(umamba("export", run.folder, "-o", bundle, "--json"))["model"] == "umamba-bot+s4d-both"
    assert umamba("predict", bundle, "-i", tiny_dataset / "imagesTs", "-o", tmp_path / "q").code == 0
    # The same training by its other name, and by its folder's.
    finished = umamba("train", own_workspace, "-m", "umamba-bot+s4d-both", *QUICK)
    assert "is trained already" in finished.err
    finished = umamba("train", own_workspace, "-m", "umamba-bot", "--tag", "s4d-both", *QUICK)
    assert "is trained already" in finished.err
    other = umamba("train", own_workspace, "-m", "umamba-bot", "--mixer", "mamba2", "--tag", "s4d-both", *QUICK)
    assert other.code == 2
    assert "is one of umamba-bot+s4d-both, not of umamba-bot+mamba2" in other.err
    assert "--tag" in other.err


def test_the_folds_of_a_folder_are_of_one_model(umamba: Umamba, own_workspace: Path) -> None:
    train = ("train", own_workspace, "-m", "umamba-bot", "--tag", "mine", *QUICK)
    assert umamba(*train, "--mixer", "s4d").code == 0
    other = umamba(*train, "-f", 1)
    assert other.code == 2
    assert "beside it is a training of umamba-bot+s4d, not of umamba-bot" in other.err
    assert "give -m umamba-bot+s4d" in other.err
    assert umamba("train", own_workspace, "-m", "umamba-bot+mamba2", *QUICK).code == 0
    selected = umamba("select", own_workspace)
    assert "-m umamba-bot+s4d --tag mine -f 1-4" in selected.out + selected.err
    assert "-m umamba-bot+mamba2 -f 1-4" in selected.out + selected.err


def test_the_folds_of_a_variant_have_a_cross_validation_of_their_own(umamba: Umamba, own_workspace: Path) -> None:
    for variant in ("umamba-bot", "umamba-bot+s4d"):
        done = document(umamba("train", own_workspace, "-m", variant, "-f", "0-1", *QUICK, "--json"))
        assert done["cross_validation"]["model"] == Path(done["folds"][0]["run"]).parent.name
    for folder in ("umamba-bot__3d_fullres", "umamba-bot__3d_fullres__s4d"):
        assert json.loads((own_workspace / "runs" / folder / "cross_validation.json").read_text())["model"] == folder


def test_starting_over_mixes_no_models(umamba: Umamba, own_workspace: Path) -> None:
    train = ("train", own_workspace, "-m", "umamba-bot", "--tag", "mine", *QUICK)
    folder = own_workspace / "runs" / "umamba-bot__3d_fullres__mine"
    assert umamba(*train, "-f", "0-1", "--mixer", "s4d").code == 0
    other = umamba(*train, "--mixer", "mamba", "--restart")
    assert other.code == 2
    assert "fold_1 beside it is a training of umamba-bot+s4d, not of umamba-bot" in other.err
    assert umamba(*train, "--restart").code == 0  # with the layers that it had
    assert read_record(Run(folder / "fold_0")).mixer == "s4d"
    assert umamba(*train, "-f", "0-1", "--mixer", "mamba2", "--restart").code == 0  # all of them at once
    assert [read_record(Run(folder / f"fold_{n}")).mixer for n in (0, 1)] == ["mamba2", "mamba2"]
    record = (folder / "fold_1" / "run.json").read_text()
    (folder / "fold_1" / "run.json").write_text(record.replace('"mixer": "mamba2"', '"mixer": "s4d"'))
    with pytest.raises(InputError, match="are of different models"):
        cross_validate(folder)


def test_all_models_are_looked_at_before_one_is_trained(
    umamba: Umamba, own_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    done = umamba("compare", own_workspace, "--models", "unet,segresnet", "--folds", 0, "--epochs", 1, "-j", 0)
    assert done.code == 2
    assert "segresnet needs umamba[monai]" in done.err
    assert not (own_workspace / "runs").exists()


def test_a_published_model_has_no_tag_of_its_own(umamba: Umamba, own_workspace: Path) -> None:
    named = ("train", own_workspace, "-m", "umamba-bot", "--mixer", "mamba", "--directions", "forward", *QUICK)
    assert umamba(*named).code == 0
    assert Run(own_workspace / "runs" / "umamba-bot__3d_fullres" / "fold_0").is_finished
    tagged = umamba("train", own_workspace, "-m", "umamba-bot", "--mixer", "mamba2", "--tag", "mine", *QUICK)
    assert tagged.code == 0, tagged.err
    record = read_record(Run(own_workspace / "runs" / "umamba-bot__3d_fullres__mine" / "fold_0"))
    assert any(isinstance(layer, Mamba2Block) for layer in recorded_network(record).modules())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-m", "unet", "--mixer", "s4d"), "unet has no state space layers"),
        (("-m", "umamba-bot", "--mixer", "s5"), "there is no mixer 's5'"),
        (("-m", "umamba-bot", "--directions", "up"), "there is no directions 'up'"),
        (("-m", "umamba-bot+s5"), "there is no model 'umamba-bot+s5'"),
        (("-m", "umamba-none", "--mixer", "mamba"), "umamba-none has no state space layers"),
        (("-m", "umamba-bot+s4d", "--mixer", "mamba2"), "has the mixer s4d, not mamba2"),
        (("-m", "umamba-bot", "--tag", "s4d"), "the tag s4d says umamba-bot+s4d"),
        (("-m", "umamba-bot+both", "--tag", "s4d"), "the tag s4d says umamba-bot+s4d"),
    ],
)
def test_what_cannot_be_is_refused(umamba: Umamba, own_workspace: Path, options: tuple[str, ...], said: str) -> None:
    done = umamba("train", own_workspace, *options, *QUICK)
    assert done.code == 2
    assert said in done.err
    assert "next: " in done.err
    assert not (own_workspace / "runs").exists()


def test_variants_are_compared_and_counted(umamba: Umamba, own_workspace: Path) -> None:
    names = "umamba-none,umamba-bot+mamba2"
    short = ("--folds", 0, "--epochs", 1, "--iterations", 1, "--device", "cpu", "-j", 0, "--json")
    content = document(umamba("compare", own_workspace, "--models", names, "--seeds", 2, *short))
    assert content["comparison"]["models"] == ["umamba-none", "umamba-bot+mamba2"]
    assert "umamba-bot+mamba2" in content["mamba_verdict"]
    folders = sorted(path.name for path in (own_workspace / "runs").iterdir())
    assert folders == [
        "umamba-bot__3d_fullres__mamba2",
        "umamba-bot__3d_fullres__mamba2-seed-1",
        "umamba-none__3d_fullres",
        "umamba-none__3d_fullres__seed-1",
    ]
    survey = document(umamba("models", own_workspace, "-m", names, "--device", "cpu", "--json"))
    assert [model["name"] for model in survey["models"]] == ["umamba-none", "umamba-bot+mamba2"]
    costs = {cost["model"]: cost for cost in content["costs"]}
    for model in survey["models"]:
        assert costs[model["name"]]["multiply_adds"] == model["multiply_adds"]
        assert costs[model["name"]]["memory_bytes"] == model["memory"]["peak_bytes"]
    assert umamba("report", own_workspace, "-q").code == 0
    page = (own_workspace / "report.html").read_text(encoding="utf-8")
    assert "umamba-bot+mamba2 seed-1" in page
    assert "umamba-bot mamba2" not in page
    shown = umamba("status", own_workspace).out
    assert "umamba-bot+mamba2 3d_fullres seed-1" in " ".join(shown.split())

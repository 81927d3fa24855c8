"""`umamba select`, as a user sees it; what it chooses is tested in tests/workflows/test_select.py."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_cascades import finish, new_record

from umamba_cli.pipeline.data.workspace import open_workspace

BEST, OTHER = "unet__2d", "unet__3d_fullres"


@pytest.fixture
def workspace(own_workspace: Path) -> Path:
    """Two models without training, whose evaluations are made up."""
    opened = open_workspace(own_workspace)
    for configuration, dice in (("2d", 0.75), ("3d_fullres", 0.5)):
        for fold in range(5):
            record = new_record(opened, configuration, fold)
            run = finish(opened, record, finds=0)
            labels = {str(value): {"dice": dice, "iou": dice / 2} for value in record.dataset.foreground}
            names = {str(value): name for value, name in record.dataset.foreground.items()}
            run.validation.mkdir()
            summary = {"label_names": names, "cases": [{"case": case, "labels": labels} for case in record.val_cases]}
            (run.validation / "summary.json").write_text(json.dumps(summary))
    return own_workspace


def test_a_table_and_the_command(umamba: Callable, workspace: Path) -> None:
    done = umamba("select", workspace, "--device", "cpu", "--precision", "fp32", "--threads", 1)
    assert done.code == 0, done.err
    rows = {line.split("  ")[0].strip(): line.split() for line in done.out.splitlines() if line.strip()}
    assert rows[BEST][1:] == ["0.7500", *["0.750"] * 4, "chosen"]
    assert rows[OTHER][1:] == ["0.5000", *["0.500"] * 4, "-"]
    assert rows[f"{BEST} + {OTHER}"][3:] == ["0.0000", *["0.000"] * 4, "-"]  # background everywhere
    assert "means over the 5 cases that folds 0, 1, 2, 3, 4 held back" in done.out
    assert f"{BEST} is chosen: {workspace / 'select.json'}" in done.out
    model = shlex.quote(str(workspace / "runs" / BEST))
    assert f"next: umamba predict {model} -i IMAGES -o predictions" in done.out
    assert "pairs 5/5" in done.err
    assert (workspace / "logs/select.log").is_file()


def test_json(umamba: Callable, workspace: Path) -> None:
    done = umamba("select", workspace, "--no-pairs", "--json")
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert content["chosen"] == [BEST]
    assert [each["models"] for each in content["candidates"]] == [[BEST], [OTHER]]
    assert content["file"] == str(workspace / "select.json")
    assert not (workspace / "select").exists()
    only = json.loads(umamba("select", workspace, "--models", OTHER, "--json").out)
    assert only["chosen"] == [OTHER]
    assert umamba("select", workspace, "--no-pairs", "--quiet").out == ""


def test_the_command_can_be_run(umamba: Callable, workspace: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """That of a model, and that of a pair."""
    for models in ([BEST], [BEST, OTHER]):
        if len(models) > 1:  # so that the pair, which finds nothing but background, is the better one
            for path in (workspace / "runs").glob("*/fold_*/validation/summary.json"):
                path.write_text(path.read_text().replace("0.75", "-1.0").replace("0.5", "-1.0"))
        selected = umamba("select", workspace, "--device", "cpu", "--precision", "fp32", "--json")
        content = json.loads(selected.out)
        assert content["chosen"] == models
        (command,) = content["commands"]
        program, *words = shlex.split(command)
        assert program == "umamba"
        places = {"IMAGES": tiny_dataset / "imagesTs", "predictions": tmp_path / f"found{len(models)}"}
        predicted = umamba(*(places.get(word, word) for word in words), "--device", "cpu")
        assert predicted.code == 0, predicted.err
        assert list(places["predictions"].glob("*.nii.gz"))


def test_what_is_left_out_and_what_is_missing(umamba: Callable, workspace: Path) -> None:
    where = shlex.quote(str(workspace))
    shutil.rmtree(workspace / f"runs/{OTHER}/fold_3")
    done = umamba("select", workspace, "--no-pairs")
    assert f"left out: {OTHER}, fold 3 is not trained and evaluated" in done.out
    assert f"umamba train {where} -c 3d_fullres -m unet -f 3\n" in done.out
    assert "no model has all" not in done.out
    shutil.rmtree(workspace / f"runs/{BEST}/fold_0")
    done = umamba("select", workspace, "--no-pairs")
    assert "no model has all 5 folds" in done.out
    assert f"umamba train {where} -c 2d -m unet -f 0\n" in done.out
    assert "left out" not in done.out
    assert f"predict {shlex.quote(str(workspace / 'runs' / BEST))} -f 1 -f 2 -f 4 -i IMAGES" in done.out


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', None])
def test_a_model_without_its_record_is_left_out(umamba: Callable, workspace: Path, content: str | None) -> None:
    file = workspace / "runs" / BEST / "fold_2/run.json"
    file.unlink() if content is None else file.write_text(content)
    selected = json.loads(umamba("select", workspace, "--no-pairs", "--json").out)
    assert selected["chosen"] == [OTHER]
    (left,) = selected["left_out"]
    assert (left["model"], str(file) in left["why"]) == (BEST, True)
    shutil.rmtree(workspace / "runs" / OTHER)
    refused = umamba("select", workspace, "--no-pairs")
    assert (refused.code, str(file) in refused.err) == (2, True)


@pytest.mark.parametrize("content", ["[]", "{}"])
def test_without_folds_there_is_nothing_to_compare_on(umamba: Callable, workspace: Path, content: str) -> None:
    (workspace / "splits.json").write_text(content)
    refused = umamba("select", workspace)
    assert refused.code == 2
    assert "splits.json holds no folds" in refused.err
    assert "-f 0--1" not in refused.err


def test_nothing_to_select_from(umamba: Callable, own_workspace: Path, tmp_path: Path) -> None:
    refused = umamba("select", own_workspace)
    assert refused.code == 2
    assert "no model with a fold that is trained and evaluated" in refused.err
    assert "next: train one first" in refused.err
    assert umamba("select", tmp_path / "nowhere").code == 2

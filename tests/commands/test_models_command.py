"""`umamba models`, and `umamba train --dry-run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_datasets import error_lines, snapshot
from torch import nn

from umamba_cli.pipeline.networks import registry

QUICK = ("--device", "cpu", "-m", "unet", "--epochs", "3", "--iterations", "2", "-j", "0")


def _everything(folder: Path) -> tuple[dict[str, bytes | None], list[Path]]:
    """All files with their content, and all names: logs and empty folders too."""
    return snapshot(folder), sorted(folder.rglob("*"))


@pytest.fixture
def few_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models, so that the tests are quick."""
    monkeypatch.setattr(registry, "_MODELS", {name: registry._MODELS[name] for name in ("umamba-none", "unet")})


@pytest.mark.usefixtures("few_models")
def test_models_lists_parameters_and_memory(umamba: Callable, tiny_workspace: Path) -> None:
    before = _everything(tiny_workspace)
    figures = {}
    for precision in ("fp32", "bf16"):
        done = umamba("models", tiny_workspace, "--device", "cpu", "--precision", precision, "--json")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["precision"] == precision
        assert report["batch_size"] == 2
        assert report["free_bytes"] > 0
        figures[precision] = {model["name"]: model for model in report["models"]}
    assert list(figures["fp32"]) == ["umamba-none", "unet"]
    for name, needs in figures["fp32"].items():
        assert needs["memory"]["parameter_bytes"] == 4 * needs["parameters"]
        assert figures["bf16"][name]["memory"]["saved_bytes"] < 0.65 * needs["memory"]["saved_bytes"]
        assert not needs["problem"]
    assert _everything(tiny_workspace) == before


@pytest.mark.usefixtures("few_models")
def test_models_takes_a_configuration_and_a_batch_size_and_shows_a_table(
    umamba: Callable, tiny_workspace: Path
) -> None:
    done = umamba("models", tiny_workspace, "-c", "2d", "--batch-size", 7, "--device", "cpu", "--precision", "fp32")
    assert done.code == 0, done.err
    assert "2d: patch 40x40, batch size 7, fp32" in done.out
    assert "umamba-none" in done.out
    assert "Isensee" in done.out
    assert "count 2/2: 2 models" in done.err


@pytest.mark.usefixtures("few_models")
def test_a_model_that_fails_says_so_in_its_row(
    umamba: Callable, tiny_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(plan: registry.NetworkPlan) -> nn.Module:
        raise ZeroDivisionError("it is broken")

    monkeypatch.setitem(registry._MODELS, "broken", registry.Model("broken", broken, "of a package"))
    done = umamba("models", tiny_workspace, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    models = {model["name"]: model for model in json.loads(done.out)["models"]}
    assert models["broken"]["memory"] is None
    assert models["broken"]["problem"] == "it cannot be built: ZeroDivisionError: it is broken"
    assert models["unet"]["memory"]
    assert models["broken"]["description"] == "of a package"
    assert "broken: it cannot be built: ZeroDivisionError" in umamba("models", tiny_workspace, "--device", "cpu").err


@pytest.mark.usefixtures("few_models")
def test_models_says_what_each_can_and_lacks(
    umamba: Callable, tiny_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = registry._MODELS["unet"]
    monkeypatch.setitem(registry._MODELS, "absent", registry.Model("absent", unet.builder, "a paper", "monai"))
    monkeypatch.setitem(registry._MODELS, "mixed", registry.Model("mixed", unet.builder, "a paper", has_mixer=True))
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    monkeypatch.setattr("umamba_cli.pipeline.workflows.models.free_device_bytes", lambda device: 1000)
    done = umamba("models", tiny_workspace, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    models = {model["name"]: model for model in json.loads(done.out)["models"]}
    keys = ("needs", "is_installed", "has_mixer", "can_checkpoint", "fits")
    assert [models["absent"][key] for key in keys] == ["umamba[monai]", False, False, False, None]
    assert [models["mixed"][key] for key in keys] == ["", True, True, True, False]
    shown = umamba("models", tiny_workspace, "--device", "cpu")
    assert "umamba[monai] (not installed)" in " ".join(shown.out.split())
    assert "do not fit into that: mixed, umamba-none, unet" in shown.out
    assert "take --mixer and --directions: mixed" in shown.out
    assert "absent needs umamba[monai], which is not installed" in shown.err
    assert "; needs umamba[monai]" in umamba("doctor").out.replace("\n", " ")


def test_models_says_what_it_lacks(umamba: Callable, tiny_workspace: Path, tmp_path: Path) -> None:
    assert "is no workspace" in error_lines(umamba("models", tmp_path), code=2)[0]
    assert "no configuration '4d'" in error_lines(umamba("models", tiny_workspace, "-c", "4d"), code=2)[0]
    arguments = ("models", tiny_workspace, "--device", "cpu", "--precision", "fp16")
    assert "fp16" in error_lines(umamba(*arguments), code=2)[0]


def test_a_dry_run_shows_the_training_and_writes_nothing(umamba: Callable, tiny_workspace: Path) -> None:
    before = _everything(tiny_workspace)
    done = umamba("train", tiny_workspace, *QUICK, "--precision", "fp32", "--dry-run", "--json")
    assert done.code == 0, done.err
    preview = json.loads(done.out)
    assert preview["steps"] == 3 * 2
    assert preview["settings"]["batch_size"] == 2
    assert (preview["train_cases"], preview["val_cases"]) == (4, 1)
    assert preview["precision_reason"] == "asked for"
    assert preview["fits"] is True
    memory = preview["model"]["memory"]
    parts = [memory[part] for part in ("parameter_bytes", "optimizer_bytes", "batch_bytes", "saved_bytes")]
    assert sum(parts) < memory["peak_bytes"] < 2 * sum(parts)
    shown = umamba("train", tiny_workspace, *QUICK, "--dry-run")
    assert shown.code == 0, shown.err
    for text in ("unet__3d_fullres", "12x40x40", "batch size 2", "saved for backward", "nothing was changed"):
        assert text in shown.out
    assert _everything(tiny_workspace) == before


def test_a_dry_run_refuses_what_a_training_refuses(umamba: Callable, own_workspace: Path) -> None:
    for path in (own_workspace / "preprocessed/3d_fullres").glob("*_000*"):
        path.unlink()
    before = _everything(own_workspace)
    done = umamba("train", own_workspace, *QUICK, "--dry-run")
    assert "not preprocessed for 3d_fullres: 1 of 5 cases" in error_lines(done, code=2)[0]
    assert _everything(own_workspace) == before


def test_a_dry_run_says_too_little_memory(
    umamba: Callable, tiny_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umamba_cli.pipeline.workflows.preview.free_device_bytes", lambda device: 1000)
    done = umamba("train", tiny_workspace, *QUICK, "--dry-run")
    assert done.code == 0
    assert "does not fit into the 0 MiB that are free" in done.err


def test_a_dry_run_of_a_training_that_is_there(umamba: Callable, own_workspace: Path) -> None:
    assert umamba("train", own_workspace, *QUICK, "--precision", "fp32").code == 0
    run = own_workspace / "runs/unet__3d_fullres/fold_0"
    assert "finished, is only evaluated" in umamba("train", own_workspace, *QUICK, "--dry-run").out
    (run / "checkpoint_final.safetensors").unlink()  # as if it had been stopped after an epoch
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text(lines[0])
    before = _everything(own_workspace)
    going_on = json.loads(umamba("train", own_workspace, *QUICK, "--dry-run", "--json").out)
    assert (going_on["epochs_done"], going_on["steps"]) == (1, 4)
    assert going_on["precision"] == "fp32"  # as it was begun, not what auto would choose
    anew = json.loads(umamba("train", own_workspace, *QUICK, "--restart", "--dry-run", "--json").out)
    assert (anew["epochs_done"], anew["steps"]) == (0, 6)
    other = umamba("train", own_workspace, *QUICK[:4], "--epochs", 9, "--dry-run")
    assert "other settings" in error_lines(other, code=2)[0]
    assert _everything(own_workspace) == before


@pytest.mark.usefixtures("few_models")
def test_what_is_no_network_harms_its_own_row_alone(
    umamba: Callable, tiny_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_MODELS", {**registry._MODELS, "odd": registry.Model("odd", lambda _plan: 5, "")})  # type: ignore[arg-type, return-value]
    report = json.loads(umamba("models", tiny_workspace, "--device", "cpu", "--json").out)
    rows = {row["name"]: row for row in report["models"]}
    assert "no torch.nn.Module" in rows["odd"]["problem"]
    assert rows["unet"]["memory"]


def test_a_wrong_scan_backend_is_refused(
    umamba: Callable, tiny_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UMAMBA_SCAN", "nonsense")
    error_lines(umamba("models", tiny_workspace, "--device", "cpu"), code=2)

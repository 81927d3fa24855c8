"""A network that cannot learn one case by heart cannot learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from needs_monai import NEEDS_MONAI
from small_trainings import PLAN, SETTINGS, SHAPE, small_loop

from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.inference.sliding_window import Window, WindowOptions
from umamba_cli.pipeline.networks.registry import find_variant


# MONAI's transformers take minutes with this image, which is padded to several times its size: see
# test_monai_networks, where they learn a picture.
@pytest.mark.parametrize(
    "model",
    [
        *("unet", "resenc", "umamba-none", "umamba-bot", "umamba-enc", "unet++", "attention-unet", "unetr++"),
        *("umamba-bot+s4d", "umamba-bot+mamba2"),
        pytest.param("segresnet", marks=NEEDS_MONAI),
    ],
)
def test_one_case_is_learnt_by_heart(model: str, tmp_path: Path) -> None:
    variant = find_variant(model)
    plan = replace(
        PLAN,
        mixer=variant.mixer,
        scan_directions=variant.scan_directions,
        features_per_stage=(8, 16, 32),
        strides=((1, 1, 1), (2, 2, 2), (1, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 3,
        convolutions_per_stage=(2,) * 3,
        convolutions_per_stage_decoder=(2,) * 2,
        blocks_per_stage=(1,) * 3,
        blocks_per_stage_decoder=(1,) * 2,
    )
    loop = small_loop(tmp_path, settings=replace(SETTINGS, epochs=4, iterations=25), model=variant.model, plan=plan)
    log = loop.train()
    assert 1 + log[-1]["train_loss"] < 0.5 * (1 + log[0]["train_loss"])  # -1 is the least that is possible
    case = Store(tmp_path / "store").case("case")
    predicted = Window([loop.network.eval()], SHAPE, loop.compute, WindowOptions()).logits(case.image[:]).argmax(0)
    for label in (1, 2):
        ours, reference = predicted == label, case.labels[0] == label
        dice = 2 * (ours & reference).sum() / (ours.sum() + reference.sum())
        assert dice > 0.95

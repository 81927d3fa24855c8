"""Models with the choice of their state space layers, by name."""

from __future__ import annotations

from typing import get_args

import pytest

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Mixer, ModelVariant, ScanDirections
from umamba_cli.pipeline.networks.registry import available_models, describe, find_variant


@pytest.mark.parametrize(
    ("text", "variant", "tag", "title"),
    [
        ("unet", ModelVariant("unet"), "", "unet"),
        ("unet++", ModelVariant("unet++"), "", "unet++"),
        ("umamba-bot", ModelVariant("umamba-bot"), "", "umamba-bot"),
        ("umamba-bot+mamba", ModelVariant("umamba-bot"), "", "umamba-bot"),
        ("umamba-bot+mamba-forward", ModelVariant("umamba-bot"), "", "umamba-bot"),
        ("umamba-bot+s4d", ModelVariant("umamba-bot", "s4d"), "s4d", "umamba-bot+s4d"),
        ("umamba-enc+axes", ModelVariant("umamba-enc", "mamba", "axes"), "axes", "umamba-enc+axes"),
        (
            "umamba-enc+both-mamba2",
            ModelVariant("umamba-enc", "mamba2", "both"),
            "mamba2-both",
            "umamba-enc+mamba2-both",
        ),
    ],
)
def test_a_variant_has_a_name(text: str, variant: ModelVariant, tag: str, title: str) -> None:
    found = find_variant(text)
    assert found == variant
    assert (found.tag, found.title) == (tag, title)
    assert find_variant(found.title) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "there is no model 'nothing'"),
        ("nothing+s4d", "there is no model 'nothing\\+s4d'"),
        ("umamba-bot+", "there is no model 'umamba-bot\\+'"),
        ("umamba-bot+s5", "there is no model 'umamba-bot\\+s5'"),
        ("umamba-bot+s4d-mamba2", "there is no model"),
        ("unet+s4d", "unet has no state space layers"),
        ("unet+++s4d", "unet\\+\\+ has no state space layers"),
        ("unet+forward", "unet has no state space layers"),
        ("umamba-none+mamba", "umamba-none has no state space layers"),
    ],
)
def test_what_is_no_variant_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_variant(text)


def test_options_add_to_the_name() -> None:
    assert find_variant("umamba-bot", "s4d").title == "umamba-bot+s4d"
    assert find_variant("umamba-bot+s4d", "s4d", "both").title == "umamba-bot+s4d-both"
    assert find_variant("umamba-bot+both", "mamba", "both").title == "umamba-bot+both"
    with pytest.raises(InputError, match=r"umamba-bot\+s4d has the mixer s4d, not mamba2"):
        find_variant("umamba-bot+s4d", "mamba2")
    with pytest.raises(InputError, match=r"umamba-bot\+both has the directions both, not forward"):
        find_variant("umamba-bot+both", None, "forward")
    with pytest.raises(InputError, match="there is no mixer 's5'") as error:
        find_variant("umamba-bot", "s5")
    assert error.value.next_step == "choose mamba, s4d, mamba2"
    with pytest.raises(InputError, match="there is no directions 'up'"):
        find_variant("umamba-bot", None, "up")
    for given in (("s4d", None), ("mamba", None), (None, "forward")):
        with pytest.raises(InputError, match="umamba-none has no state space layers"):
            find_variant("umamba-none", *given)


def test_every_choice_is_described() -> None:
    lines = {
        describe(ModelVariant("umamba-bot", mixer, directions))
        for mixer in get_args(Mixer)
        for directions in get_args(ScanDirections)
    }
    assert len(lines) == 9
    assert describe(ModelVariant("umamba-bot")) == available_models()["umamba-bot"].description
    assert "Dao and Gu" in describe(find_variant("umamba-enc+mamba2-axes"))
    assert "VMamba" in describe(find_variant("umamba-enc+mamba2-axes"))

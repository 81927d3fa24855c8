"""How a report calls and draws the models of a workspace: the same everywhere on the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from umamba_cli.pipeline.networks.architecture import ModelVariant

_SEPARATOR = "__"
_SEED = re.compile(r"(?:(.+)-)?seed-[0-9]+")  # the tag of a repeated training, see `workflows.compare`


@dataclass(frozen=True)
class ShownModel:
    """A model's folder under `runs`, as the page shows it."""

    title: str
    """`umamba-bot+s4d seed-1`; with the configuration where the workspace has several."""

    style: int
    """See `svg_plots.style_of`."""

    is_repetition: bool = False
    """The same model was trained with its first seed too."""


def shown_models(folders: Mapping[str, ModelVariant | None]) -> dict[str, ShownModel]:
    """The models by the names of their folders, in the order of these.

    Args:
        folders: what is in `MODEL__CONFIGURATION` and `MODEL__CONFIGURATION__TAG`; None: the model as published.
    """
    names = sorted(folders)
    configurations = {parts[1] for name in names if len(parts := name.split(_SEPARATOR)) > 1}
    repeated = {name for name in names if _first_of(name) in names}
    # Repetitions come last, so that few models have the styles that differ most.
    styles = {name: index for index, name in enumerate(sorted(names, key=lambda name: (name in repeated, name)))}
    return {
        name: ShownModel(
            _title(name, folders[name], with_configuration=len(configurations) > 1), styles[name], name in repeated
        )
        for name in names
    }


def one_configuration(folders: Iterable[str]) -> str:
    """The configuration that all models have; "" where there are several, or none."""
    found = {parts[1] for name in folders if len(parts := name.split(_SEPARATOR)) > 1}
    return found.pop() if len(found) == 1 else ""


def _title(name: str, variant: ModelVariant | None, *, with_configuration: bool) -> str:
    model, configuration, *tag = [*name.split(_SEPARATOR), ""]
    variant = variant or ModelVariant(model)
    return variant.named(configuration if with_configuration else "", " ".join(filter(None, tag))) or name


def _first_of(name: str) -> str | None:
    """The folder of the same model with its first seed; None where this is no repetition."""
    *parts, tag = name.split(_SEPARATOR)
    found = _SEED.fullmatch(tag) if len(parts) > 1 else None
    return _SEPARATOR.join([*parts, *filter(None, found.groups())]) if found else None

"""That a folder of trainings holds one variant of a model, and the one that its name says."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import ModelVariant
from umamba_cli.pipeline.networks.registry import find_variant
from umamba_cli.pipeline.runs.record import read_record


def variant_of(run: Run) -> ModelVariant | None:
    """What a training that is there is of; None where there is none, or its run.json is damaged."""
    with suppress(InputError):
        return read_record(run).variant if run.configuration_file.is_file() else None
    return None


def variant_in(model_folder: Path) -> ModelVariant | None:
    """What the folds of a folder are of, by the first whose run.json can be read; None where there is none."""
    found = (variant_of(Run(fold)) for fold in sorted(model_folder.glob("fold_*")))
    return next(filter(None, found), None)


def require_same_variant_beside(run: Run, variant: ModelVariant, restarted: Collection[Path]) -> None:
    """The folds of a folder are averaged, so that all are of one variant.

    Args:
        run: of the training that is to begin.
        variant: of that training.
        restarted: folders of trainings that are started over together with it, and may be of another one until then.

    Raises:
        InputError: another fold in the folder is of another variant.
    """
    for other in sorted(run.folder.parent.glob("fold_*")):
        found = variant_of(Run(other)) if other not in restarted else None  # a damaged one is refused where it is used
        if found not in (None, variant):
            raise InputError(
                f"{other} beside it is a training of {found.title}, not of {variant.title}",
                next_step=f"give -m {found.title}, or keep both with another --tag",
            )


def require_honest_tag(tag: str, variant: ModelVariant) -> None:
    """A tag that is the name of a variant is that of the training's own.

    Raises:
        InputError: it is that of another one.
    """
    named = None
    with suppress(InputError):  # most tags name none
        named = find_variant(f"{variant.model}+{tag}") if tag else None
    if named not in (None, variant):
        raise InputError(
            f"the tag {tag} says {named.title}, but the training is one of {variant.title}",
            next_step=f"give -m {named.title}, or another --tag",
        )

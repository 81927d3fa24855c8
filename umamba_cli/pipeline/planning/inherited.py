"""Plans that are taken over from a trained model, for fine-tuning on another dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from umamba_cli.pipeline.geometry import numbers_text, size_text
from umamba_cli.pipeline.planning.decisions import Decision
from umamba_cli.pipeline.planning.planner import PlannedDataset
from umamba_cli.pipeline.planning.plans import Plans

Value = TypeVar("Value")


def plans_like(model: Plans, planned: PlannedDataset, *, source: str) -> PlannedDataset:
    """A model's plans for another dataset: all that its weights depend on is the model's.

    Its intensity statistics are among that, because normalisation must be what the weights were trained with. Median
    spacing and shape, by which memory and disk are estimated, are the dataset's own.

    Args:
        model: the plans that the model was trained with.
        planned: what the dataset itself would have got.
        source: the model, for the reasons shown.
    """
    own = planned.plans

    def turned(values: Sequence[Value]) -> tuple[Value, ...]:
        """From the axis order of the dataset's own plans to that of the model's."""
        in_file = [values[axis] for axis in own.transpose_backward]
        return tuple(in_file[axis] for axis in model.transpose_forward)

    plans = model.model_copy(
        update={
            "dataset_name": own.dataset_name,
            "original_median_spacing_after_transp": turned(own.original_median_spacing_after_transp),
            "original_median_shape_after_transp": turned(own.original_median_shape_after_transp),
            "training": own.training,
        }
    )
    decisions = []
    for name in plans.configurations:
        configuration = plans.configuration(name)
        decisions += [
            Decision(name, what, value, f"as {source} has it")
            for what, value in (
                ("patch size", size_text(configuration.patch_size)),
                ("spacing", numbers_text(configuration.spacing)),
                ("batch size", str(configuration.batch_size)),
            )
        ]
    return PlannedDataset(plans, tuple(decisions))

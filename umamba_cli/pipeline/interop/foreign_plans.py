"""What nnU-Net's plans say of a network: in the keys of its older versions too, and whether it can be built here.

Source: nnU-Net 2.8.1, utilities/plans_handling (the older keys), and dynamic-network-architectures 0.4 (the networks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.planner import network_architecture
from umamba_cli.pipeline.planning.plans import Configuration, Plans

_MODELS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "resenc"}
"""The classes of network that are known here, and their models."""

_OLD_KEYS = {
    "conv_kernel_sizes",
    "n_conv_per_stage_decoder",
    "n_conv_per_stage_encoder",
    "num_pool_per_axis",
    "pool_op_kernel_sizes",
    "UNet_base_num_features",
    "UNet_class_name",
    "unet_max_num_features",
}
_WITHOUT_EFFECT = {"deep_supervision", "stochastic_depth_p"}
"""Arguments of networks that change nothing about a prediction."""


def plans_of(written: object, configuration: str, source: str) -> dict[str, Any]:
    """The plans with one configuration and those it inherits from, with the older keys of networks made new.

    Args:
        written: what the plans file holds.
        configuration: the one that is wanted; others may hold what is not known here.
        source: what errors call the plans.

    Raises:
        InputError: there is no such configuration, or the older keys are not whole.
    """
    configurations = written.get("configurations") if isinstance(written, Mapping) else None
    if not isinstance(written, Mapping) or not isinstance(configurations, Mapping):
        raise InputError(f"{source} are no plans of nnU-Net", next_step="bring the model's plans.json beside its folds")
    wanted: dict[str, Any] = {}
    name: object = configuration
    while name is not None and name not in wanted:
        if not isinstance(name, str) or not isinstance(configurations.get(name), Mapping):
            raise InputError(
                f"{source} have no configuration {name!r}", next_step="give the plans that the model was trained with"
            )
        wanted[name] = dict(configurations[name])
        name = wanted[name].get("inherits_from")
    resolved: dict[str, Any] = {}
    for keys in reversed(wanted.values()):
        resolved |= keys
    if "architecture" not in resolved and "UNet_class_name" in resolved:
        missing = _OLD_KEYS - {"num_pool_per_axis"} - resolved.keys()
        if missing:
            raise InputError(f"{source} lack {', '.join(sorted(missing))}", next_step="give the model's own plans")
        wanted = {key: {k: v for k, v in keys.items() if k not in _OLD_KEYS} for key, keys in wanted.items()}
        wanted[configuration]["architecture"] = _architecture(resolved)
        parents = [key for key in wanted if key != configuration]
        for parent in parents:  # as configurations of their own they need one too
            wanted[parent]["architecture"] = wanted[configuration]["architecture"]
    return {**written, "configurations": wanted}


def _architecture(old: Mapping[str, Any]) -> dict[str, Any]:
    """`architecture` from the keys that nnU-Net used up to 2.1, and U-Mamba's fork of it still does."""
    is_residual = str(old["UNet_class_name"]).startswith("Residual")
    base, most = old["UNet_base_num_features"], old["unet_max_num_features"]
    return network_architecture(
        str(old["UNet_class_name"]),
        len(old["patch_size"]),
        features_per_stage=[min(base * 2**stage, most) for stage in range(len(old["n_conv_per_stage_encoder"]))],
        kernel_sizes=old["conv_kernel_sizes"],
        strides=old["pool_op_kernel_sizes"],
        layers={
            "n_blocks_per_stage" if is_residual else "n_conv_per_stage": old["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": old["n_conv_per_stage_decoder"],
        },
    )


def model_of(configuration: Configuration) -> str:
    """`unet` or `resenc`, where the configuration names such a network; otherwise the class's name."""
    name = _class_name(configuration.architecture.network_class_name)
    return _MODELS.get(name, name)


def task_problems(plans: Plans, configuration: Configuration, dataset: DatasetDescription) -> list[str]:
    """Why predictions with these plans would not be nnU-Net's, whatever the network; empty where they would."""
    problems = []
    if configuration.previous_stage is not None:
        problems.append(
            f"{configuration.name} is the second stage of a cascade, which needs the labels of the first beside the "
            "image; predicting so is not known yet"
        )
    if (name := _class_name(configuration.preprocessor_name)) not in ("", "DefaultPreprocessor"):
        problems.append(f"its images were prepared by {name}, known is DefaultPreprocessor")
    if (name := _class_name(plans.image_reader_writer)).endswith("Reorient"):
        problems.append(f"its images were read by {name}, which turns them; here they are read as they lie")
    if (name := _class_name(getattr(plans, "label_manager", None))) not in ("", "LabelManager"):
        problems.append(f"its labels were managed by {name}, known is LabelManager")
    return problems


def network_problems(configuration: Configuration) -> list[str]:
    """Why the network of nnU-Net's that a configuration names cannot be built here; empty where it can."""
    network, axes = configuration.network, configuration.dimensions
    if model_of(configuration) not in _MODELS.values():
        return [f"its network is {configuration.architecture.network_class_name}, known are {' and '.join(_MODELS)}"]
    problems = []
    found = {key: _class_name(getattr(network, key)) for key in ("conv_op", "norm_op", "nonlin")}
    for key, known in (("conv_op", f"Conv{axes}d"), ("norm_op", f"InstanceNorm{axes}d"), ("nonlin", "LeakyReLU")):
        if found[key] != known:
            problems.append(f"{key} of its network is {found[key] or 'none'}, known is {known}")
    norm = {"eps": 1e-5, "affine": True, **(network.norm_op_kwargs or {})}
    if norm.pop("eps") != 1e-5 or norm.pop("affine") is not True or any(norm.pop(k, False) for k in tuple(norm)):
        problems.append(f"norm_op_kwargs of its network are {network.norm_op_kwargs}, known are eps 1e-5, affine")
    slope = {"negative_slope": 0.01, **(network.nonlin_kwargs or {})}["negative_slope"]
    if slope != 0.01:
        problems.append(f"nonlin_kwargs of its network give a negative_slope of {slope}, known is 0.01")
    if not network.conv_bias:
        problems.append("the convolutions of its network have no bias")
    extra = {
        k: v for k, v in (network.model_extra or {}).items() if k not in _WITHOUT_EFFECT and v not in (None, False)
    }
    problems += [
        f"its network was built with {key} = {value!r:.60}, which is not known" for key, value in extra.items()
    ]
    return problems


def _class_name(path: object) -> str:
    """`LeakyReLU` of `torch.nn.LeakyReLU`; nothing of None."""
    return "" if path is None else str(path).rpartition(".")[2]

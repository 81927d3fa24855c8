"""Models that nnU-Net or the released U-Mamba trained, as bundles.

nnU-Net keeps a model in a folder TRAINER__PLANS__CONFIGURATION: plans.json, dataset.json, and for each fold
fold_N/checkpoint_final.pth, a file of torch with weights, trainer's name and arguments, and where the training was.

Source: nnU-Net 2.8.1, what its trainer saves and its predictor loads; the released U-Mamba is a fork of nnU-Net 2.1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.files import read_json, to_plain, validated
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.foreign_plans import model_of, network_problems, plans_of, task_problems
from umamba_cli.pipeline.interop.released import nnunet_weights, released_umamba, umamba_weights
from umamba_cli.pipeline.interop.torch_file import load_torch_file
from umamba_cli.pipeline.interop.unpickle import require_tree
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.networks.unet import UNet
from umamba_cli.pipeline.planning.plans import Configuration, Plans
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.bundle import Fold, Manifest, is_bundle, require_new_file, write_bundle
from umamba_cli.pipeline.runs.network import new_network
from umamba_cli.pipeline.runs.record import RunRecord, current_versions

CHECKPOINT = "checkpoint_final.pth"

_UMAMBA: dict[str, Literal["bot", "enc"]] = {
    "nnUNetTrainerUMambaBot": "bot",
    "nnUNetTrainerUMambaEnc": "enc",
    "nnUNetTrainerUMambaEncNoAMP": "enc",
}
"""The released U-Mamba's trainers, and the networks that they build."""

# nnU-Net's own trainers that build the network of the plans: those that change augmentation, loss, optimiser or length.
_KNOWN_TRAINERS = re.compile(
    r"nnUNetTrainer(Benchmark_5epochs(_noDataLoading)?|NoMirroring|NoDA|NoDeepSupervision|_warmup|CosAnneal|_\d+epochs?"
    r"|_noDummy2DDA|_probabilisticOversampling(_\d+)?|(Dice|DiceCE|CE|Topk10|DiceTopK10)Loss(LS01|_noSmooth|_5epochs)?"
    r"|(Vanilla)?Ada[mn](CosAnneal|\den\d)?|_?DA(5|Seg|5Seg)?(ord0|Ord0)?(_10epochs)?|_onlyMirror01(_\w+)?)?"
    r"(_NoMirroring)?"
)
_OPTIMISER = ("optimizer_state", "grad_scaler_state", "logging")
_GIVE_MODEL = "give a checkpoint_final.pth, or the folder TRAINER__PLANS__CONFIGURATION that holds the folds"


class _Arguments(pydantic.BaseModel):
    """`init_args`: what the trainer was made with."""

    configuration: str
    fold: int | str
    plans: Any = None
    dataset_json: Any = None


class _Checkpoint(pydantic.BaseModel):
    """What is used of a checkpoint."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    network_weights: dict[str, Tensor]
    trainer_name: str
    current_epoch: int
    init_args: _Arguments
    inference_allowed_mirroring_axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ImportedModel:
    """What `import_model` did."""

    bundle: Path
    manifest: Manifest
    record: RunRecord
    folds: tuple[Fold, ...]

    notes: tuple[str, ...]
    """What a person should know of it."""


def import_model(
    source: Path,
    bundle: Path,
    *,
    folds: Sequence[Fold] = (),
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ImportedModel:
    """Write a bundle of what nnU-Net or the released U-Mamba trained. Nothing that the checkpoints hold is run.

    Args:
        source: a checkpoint, or the folder of a model.
        bundle: the file to write.
        folds: of a folder; none means the numbered ones that are finished, or `all` where that is the only one.
        overwrite: replace a bundle that is there.
        on_progress: told after each fold.

    Raises:
        InputError: the source is no such model, is damaged, or is one whose predictions would not be the same here.
        WorkError: the bundle cannot be written.
    """
    require_new_file(bundle, overwrite=overwrite)
    files = find_checkpoints(source, folds)
    first = _read(files[0])
    record, architecture = _described(files[0], first)
    taken: list[Fold] = []

    def each() -> Iterator[tuple[Fold, dict[str, Tensor]]]:
        on_progress(Progress("import", 0, len(files)))
        for done, file in enumerate(files, start=1):
            checkpoint = first if file == files[0] else _read(file)
            _require_same_training(file, checkpoint, files[0], first)
            fold = _fold(file, checkpoint)
            yield fold, _weights(file, checkpoint, record.model, architecture)
            taken.append(fold)
            on_progress(Progress("import", done, len(files), step=f"fold {fold}"))

    origin = {
        "program": "U-Mamba" if first.trainer_name in _UMAMBA else "nnU-Net",
        "trainer": first.trainer_name,
        "plans": record.plans.plans_name,
        "dataset": record.plans.dataset_name,
        "epochs": first.current_epoch,
        "checkpoints": [{"file": f"{file.parent.name}/{file.name}", "sha256": _sha256(file)} for file in files],
    }
    manifest = write_bundle(bundle, record, each(), origin=origin)
    return ImportedModel(bundle, manifest, record, tuple(taken), _notes(first))


def find_checkpoints(source: Path, folds: Sequence[Fold] = ()) -> list[Path]:
    """The checkpoints that a file or a model's folder and folds mean; see `import_model`.

    Raises:
        InputError: there is none, or one that is asked for is not there.
    """
    if (source / CHECKPOINT).is_file():  # the folder of one fold
        source = source / CHECKPOINT
    if source.is_file():
        if folds:
            raise InputError(f"{source} is one fold already", next_step="leave -f out, or give the folder of the model")
        return [source]
    if not source.is_dir():
        raise InputError(f"{source} does not exist", next_step=_GIVE_MODEL)
    found = {path.parent.name.removeprefix("fold_"): path for path in sorted(source.glob(f"fold_*/{CHECKPOINT}"))}
    numbered = {name: path for name, path in found.items() if name.isdecimal()}
    chosen = {str(fold): found.get(str(fold)) for fold in folds} if folds else (numbered or found)
    if missing := [name for name, path in chosen.items() if path is None]:
        raise InputError(
            f"{source} holds no {CHECKPOINT} of fold {', '.join(missing)}",
            next_step=f"choose from {', '.join(found) or 'another folder'} with -f",
        )
    if not chosen:
        models = [path.parent.parent.name for path in source.glob(f"*/fold_*/{CHECKPOINT}")]
        hint = f"give one of the models in it: {', '.join(sorted(set(models)))}" if models else _GIVE_MODEL
        raise InputError(f"{source} holds no fold_*/{CHECKPOINT}", next_step=hint)
    return [path for path in chosen.values() if path is not None]


def _read(path: Path) -> _Checkpoint:
    if is_bundle(path):
        raise InputError(f"{path} is a bundle already", next_step="predict with it, or give a checkpoint_final.pth")
    content = load_torch_file(path, leave_out=_OPTIMISER)
    if not isinstance(content, dict) or not {"network_weights", "init_args", "trainer_name"} <= content.keys():
        is_old = isinstance(content, dict) and "state_dict" in content
        raise InputError(
            f"{path} is no checkpoint of nnU-Net 2 or U-Mamba: it holds no network_weights, init_args and trainer_name",
            next_step="models of nnU-Net 1 cannot be imported" if is_old else _GIVE_MODEL,
        )
    weights = content.pop("network_weights")
    require_tree({key: content[key] for key in _Checkpoint.model_fields if key in content}, str(path))
    plain = {key: to_plain(content[key]) for key in _Checkpoint.model_fields if key in content}
    return validated(_Checkpoint.model_validate, {**plain, "network_weights": weights}, source=str(path))


def _described(path: Path, checkpoint: _Checkpoint) -> tuple[RunRecord, Architecture]:
    """The training of a checkpoint, and the network that it trained.

    Raises:
        InputError: they are not there, or predictions would not be the same here; every reason is listed.
    """
    name = checkpoint.init_args.configuration
    written, source = _beside(path, "plans.json", checkpoint.init_args.plans)
    plans = validated(Plans.model_validate, plans_of(written, name, source), source=source)
    written, source = _beside(path, "dataset.json", checkpoint.init_args.dataset_json)
    dataset = validated(DatasetDescription.model_validate, written, source=source)
    configuration = plans.configuration(name)
    is_umamba = checkpoint.trainer_name in _UMAMBA
    problems = task_problems(plans, configuration, dataset)
    if not is_umamba:
        problems += network_problems(configuration)
        if any(key.endswith(".running_mean") for key in checkpoint.network_weights):
            problems.append(f"its network has batch norms ({checkpoint.trainer_name}), known are instance norms")
    if problems:
        raise InputError(
            f"{path} cannot be imported", details=problems, next_step="predict with the program that trained it"
        )
    if is_umamba:
        model = f"umamba-{_UMAMBA[checkpoint.trainer_name]}"
        architecture = _umamba(checkpoint.trainer_name, configuration, dataset)
    else:
        model = model_of(configuration)
        architecture = _nnunet(model, configuration, dataset)
    record = RunRecord(
        model=model,
        configuration=name,
        fold=_fold(path, checkpoint),
        architecture=architecture if is_umamba else None,
        settings={"epochs": checkpoint.current_epoch},
        train_cases=(),
        val_cases=(),
        mirror_axes=checkpoint.inference_allowed_mirroring_axes or (),
        versions=current_versions(),
        dataset=dataset,
        plans=plans,
    )
    return record, architecture


def _fold(path: Path, checkpoint: _Checkpoint) -> Fold:
    """0, 1, ... or `all`: by the folder, as nnU-Net has it, or else what the trainer was told."""
    match = re.fullmatch(r"fold_(\d+|all)", path.parent.name)
    name = match[1] if match else str(checkpoint.init_args.fold)
    if not re.fullmatch(r"\d{1,6}|all", name, re.ASCII):
        raise InputError(f"{path} is of fold {name!r:.40}", next_step="put it into a folder called fold_0")
    return name if name == "all" else int(name)


def _beside(path: Path, name: str, otherwise: object) -> tuple[Any, str]:
    """A JSON file of the model's folder, or what the checkpoint holds in its place; and what errors call it."""
    for folder in (path.parent.parent, path.parent):
        if (folder / name).is_file():
            return read_json(folder / name), str(folder / name)
    if otherwise is None:
        raise InputError(
            f"there is no {name} beside {path}, nor in it", next_step=f"bring the model's {name} beside its folds"
        )
    return otherwise, f"the {name.removesuffix('.json')} in {path}"


def _umamba(trainer: str, configuration: Configuration, dataset: DatasetDescription) -> Architecture:
    """The network that the released code builds, with all that sets it apart."""
    network = configuration.network
    return released_umamba(
        _UMAMBA[trainer],
        patch_size=configuration.patch_size,
        features_per_stage=network.features_per_stage,
        kernel_sizes=network.kernel_sizes,
        strides=network.strides,
        input_channels=dataset.num_channels,
        outputs=dataset.num_outputs,
        n_conv_per_stage=network.n_conv_per_stage or network.n_blocks_per_stage or (),
        n_conv_per_stage_decoder=network.n_conv_per_stage_decoder,
    )


def _nnunet(model: str, configuration: Configuration, dataset: DatasetDescription) -> Architecture:
    """The network that model and plans make."""
    with torch.device("meta"):  # of which no weights are needed
        network = new_network(model, configuration, dataset)
    assert isinstance(network, UNet)
    return network.architecture


def _weights(path: Path, checkpoint: _Checkpoint, model: str, architecture: Architecture) -> dict[str, Tensor]:
    """The weights by our names, in float32; they fit the network, and all are numbers.

    Raises:
        InputError: they do not.
    """
    renamed = umamba_weights if checkpoint.trainer_name in _UMAMBA else nnunet_weights
    try:
        weights = {name: tensor.float() for name, tensor in renamed(checkpoint.network_weights, architecture).items()}
    except InputError as error:
        raise InputError(
            f"{path} holds other weights than {model}'s, the network that its plans and its trainer "
            f"{checkpoint.trainer_name} mean: {error.problem}",
            details=error.details,
            next_step="predict with the program that trained it",
        ) from error
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise InputError(
            f"{len(broken)} of {len(weights)} weights of {path} are not finite numbers: the training ended in NaN",
            next_step="give an earlier checkpoint, such as checkpoint_best.pth",
        )
    return weights


def _require_same_training(path: Path, checkpoint: _Checkpoint, first_path: Path, first: _Checkpoint) -> None:
    for what, here, there in (
        ("trainer", checkpoint.trainer_name, first.trainer_name),
        ("configuration", checkpoint.init_args.configuration, first.init_args.configuration),
        ("mirror axes", checkpoint.inference_allowed_mirroring_axes, first.inference_allowed_mirroring_axes),
    ):
        if here != there:
            raise InputError(
                f"{path} was trained with the {what} {here}, {first_path} with {there}",
                next_step="choose folds of one training with -f",
            )


def _notes(checkpoint: _Checkpoint) -> tuple[str, ...]:
    name = checkpoint.trainer_name
    if name in _UMAMBA or _KNOWN_TRAINERS.fullmatch(name):
        return ()
    return (f"trainer {name} is none of nnU-Net's own; its weights fit the network of the plans, which was taken",)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

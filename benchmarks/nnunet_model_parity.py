"""Models that nnU-Net and the released U-Mamba trained: imported, they must predict what those predicted.

MODEL is a model's folder as nnU-Net writes it, with `predictions/` beside its folds: what nnUNetv2_predict gave, in
`mirroring/` and `plain/` with and without test-time mirroring, in `probabilities/` the softmax of some cases without
it. The model is imported as a bundle, the bundle predicts the same cases from DATA/imagesTr, and compared are

  labels          share of all voxels of all cases whose label differs
  Dice            of our labels against nnU-Net's, the lowest of all cases and labels
  probability     |ours - theirs|, the largest and the mean (no bar: nnU-Net adds tiles up in float16)

CHECKPOINTS holds folders of models of the released U-Mamba, each with `outputs.npz`: the outputs of all heads for an
image whose elements are sin(0.01234 i + 0.5) in row-major order. Compared is

  heads           |ours - theirs| / max |theirs|, the largest of all heads, in float32
"""

from __future__ import annotations

import math
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _report import Bar, Parser, finish, in_short, positive, run

from umamba_cli.pipeline.data.dataset import Case, open_dataset
from umamba_cli.pipeline.data.images import read_label_map
from umamba_cli.pipeline.data.inputs import InputCase
from umamba_cli.pipeline.devices import choose_compute, use_threads
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.metrics import overlap
from umamba_cli.pipeline.inference.export import Wanted
from umamba_cli.pipeline.inference.predict import predict_cases
from umamba_cli.pipeline.inference.predictor import Predictor, load_predictor
from umamba_cli.pipeline.interop.checkpoints import import_model
from umamba_cli.pipeline.runs.bundle import open_bundle
from umamba_cli.pipeline.runs.network import recorded_network

LIMITS = {"fp32": (1e-4, 0.998), "bf16": (5e-4, 0.99)}
"""By precision: the largest share of voxels that differ, and the lowest Dice."""

MOST_OF_HEADS = 1e-4
KINDS = {"mirroring": True, "plain": False}


@dataclass(frozen=True)
class Finding:
    """One figure."""

    model: str
    kind: str
    compared: str
    figure: float
    note: str = ""


def main() -> None:
    shared = Path(os.environ.get("UMAMBA_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    parser = Parser(__doc__)
    parser.add_argument("--model", type=Path, default=shared / "goldens" / "nnunet_model", help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=shared / "data" / "Dataset004_Hippocampus")
    parser.add_argument("--checkpoints", type=Path, default=shared / "goldens" / "umamba_checkpoints")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=positive, help="that compute on a CPU")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = [*model_findings(arguments, Path(folder)), *heads_findings(arguments.checkpoints, Path(folder))]
    finish(
        ("model", "kind", "compared", "figure", "note"),
        [(f.model, f.kind, f.compared, f"{f.figure:.4g}", f.note) for f in found],
        [bar for finding in found for bar in bars(finding)],
        as_json=arguments.json,
    )


def bars(finding: Finding) -> Iterator[Bar]:
    """What a figure is held against, where it is."""
    name = f"{finding.model} {finding.kind}: {finding.compared}"
    precision = finding.kind.split()[0]
    if finding.compared == "labels":
        yield Bar(name, finding.figure, LIMITS[precision][0], at_most=True)
    elif finding.compared == "lowest Dice":
        yield Bar(name, finding.figure, LIMITS[precision][1], at_most=False)
    elif finding.compared == "heads":
        yield Bar(name, finding.figure, MOST_OF_HEADS, at_most=True)


def model_findings(arguments: Namespace, folder: Path) -> Iterator[Finding]:
    """The model's predictions in both precisions, with and without mirroring.

    Raises:
        InputError: there is nothing to compare, or the model cannot be imported.
    """
    bundle = folder / "model.zip"
    import_model(arguments.model, bundle)
    ending = open_bundle(bundle).record.dataset.file_ending
    dataset = open_dataset(arguments.data)
    for precision in LIMITS:
        for kind, mirroring in KINDS.items():
            goldens = arguments.model / "predictions" / kind
            names = sorted(path.name.removesuffix(ending) for path in goldens.glob(f"*{ending}"))
            if not names:
                raise InputError(f"{goldens} holds no *{ending}", next_step="name another --model")
            predictor = load_predictor(bundle, (), choose_compute(arguments.device, precision), mirroring=mirroring)
            output = folder / f"{precision}_{kind}"
            probabilities = [] if mirroring else sorted((goldens.parent / "probabilities").glob("*.npz"))
            predict(predictor, dataset.select(names), output, {path.stem for path in probabilities})
            run_name = f"{precision} {kind}"
            yield from label_findings(arguments.model.name, run_name, predictor, goldens, output)
            for path in probabilities:
                yield probability_finding(arguments.model.name, run_name, path, output / path.name)


def predict(predictor: Predictor, cases: list[Case], output: Path, with_probabilities: set[str]) -> None:
    """Predict cases as `umamba predict` does, some of them with their probabilities."""
    for wanted in (True, False):
        some = [case for case in cases if (case.identifier in with_probabilities) is wanted]
        inputs = [InputCase(case.identifier, case.images, predictor.dataset.file_ending) for case in some]
        result = predict_cases(predictor, inputs, output, wanted=Wanted(probabilities=wanted))
        if result.failed:
            raise InputError(
                f"{len(result.failed)} cases could not be predicted",
                details=[f"{name}: {problem}" for name, problem in result.failed.items()],
                next_step="bring the dataset that the model was trained on",
            )


def label_findings(model: str, kind: str, predictor: Predictor, goldens: Path, output: Path) -> list[Finding]:
    """How much of the label maps is equal."""
    differing = total = 0
    lowest, where = math.inf, ""
    files = sorted(goldens.glob(f"*{predictor.record.dataset.file_ending}"))
    for path in files:
        theirs, ours = read_label_map(path), read_label_map(output / path.name)
        if differences := theirs.grid.differences(ours.grid):
            raise InputError(f"{path.name}: {'; '.join(differences)}", next_step="bring the images that were predicted")
        differing += int(np.count_nonzero(theirs.labels != ours.labels))
        total += theirs.labels.size
        for label, name in predictor.record.dataset.foreground.items():
            dice = overlap(ours.labels, theirs.labels, label, theirs.grid.spacing_mm).dice
            if dice < lowest:  # NaN, where neither has the label, is not
                lowest, where = dice, f"{name} of {path.name}"
    return [
        Finding(model, kind, "labels", differing / total, f"{differing} of {total} voxels, {len(files)} cases"),
        Finding(model, kind, "lowest Dice", lowest, where),
    ]


def probability_finding(model: str, kind: str, theirs_file: Path, ours_file: Path) -> Finding:
    """How far the probabilities of a case lie apart."""
    with np.load(theirs_file) as theirs, np.load(ours_file) as ours:
        difference = np.abs(ours["probabilities"] - theirs["probabilities"].astype(np.float32))
    note = f"mean {difference.mean():.1e}, {theirs_file.stem}"
    return Finding(model, kind, "largest probability difference", float(difference.max()), note)


def heads_findings(checkpoints: Path, folder: Path) -> Iterator[Finding]:
    """The outputs of all heads of each model that has goldens of them."""
    for golden in sorted(checkpoints.glob("*/outputs.npz")):
        name = golden.parent.name
        try:
            yield Finding(name, "fp32", "heads", *heads_difference(golden, folder / f"{name}.zip"))
        except Exception as error:  # whatever went wrong with one is a result of the comparison
            yield Finding(name, "fp32", "heads", math.inf, in_short(error))


def heads_difference(golden: Path, bundle_file: Path) -> tuple[float, str]:
    """The largest difference of all heads' outputs, by the largest magnitude of the golden."""
    import_model(golden.parent, bundle_file)
    bundle = open_bundle(bundle_file)
    network = recorded_network(bundle.record)
    network.load_state_dict(bundle.weights(bundle.folds[0]))
    network.train()  # in which all heads answer; no layer does otherwise than in evaluation
    shape = (1, bundle.record.dataset.num_channels, *bundle.record.network_configuration.patch_size)
    image = torch.sin(0.01234 * torch.arange(math.prod(shape), dtype=torch.float64) + 0.5).reshape(shape).float()
    with torch.inference_mode():
        ours = network(image)
    with np.load(golden) as theirs:
        expected = [torch.from_numpy(theirs[f"output_{index}"]) for index in range(len(theirs.files))]
    differences = [
        float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape else math.inf
        for a, b in zip(ours, expected, strict=True)
    ]
    return max(differences), f"{len(expected)} heads"


if __name__ == "__main__":
    run(main)

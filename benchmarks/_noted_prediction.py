"""A prediction that notes when its network works: run by `predict_memory.py`, in nnU-Net's Python and in ours.

Usage: `_noted_prediction.py FILE nnunet|umamba ARGUMENTS...`. The program is called as its own command calls it. FILE
takes JSON, moments on the clock of `time.monotonic`: the network's first call (`first`), the seconds in all its calls
(`inside`) and, of nnU-Net, the end of its sliding window (`window_ended`).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    file, program, *arguments = sys.argv[1:]
    sys.argv = [program, *arguments]
    notes = {"inside": 0.0}
    note_calls(notes)
    try:
        predict_theirs(notes) if program == "nnunet" else predict_ours()
    finally:
        Path(file).write_text(json.dumps(notes), encoding="utf-8")


def predict_ours() -> None:
    from umamba_cli.cli import main as umamba

    umamba()


def predict_theirs(notes: dict[str, float]) -> None:
    from nnunetv2.inference import predict_from_raw_data

    predictor = predict_from_raw_data.nnUNetPredictor
    window = predictor.predict_sliding_window_return_logits

    def noted(self: Any, image: Any) -> Any:
        logits = window(self, image)
        notes["window_ended"] = time.monotonic()
        return logits

    predictor.predict_sliding_window_return_logits = noted
    predict_from_raw_data.predict_entry_point_modelfolder()


def note_calls(notes: dict[str, float]) -> None:
    """Have the outermost calls of torch's modules noted: those of whole networks."""
    from torch.nn.modules import module

    depth, began = 0, 0.0

    def before(*_: Any) -> None:
        nonlocal depth, began
        if not depth:
            began = time.monotonic()
            notes.setdefault("first", began)
        depth += 1

    def after(*_: Any) -> None:
        nonlocal depth
        depth -= 1
        if not depth:
            notes["inside"] += time.monotonic() - began

    module.register_module_forward_pre_hook(before)
    module.register_module_forward_hook(after)


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Cross-validation: train the five folds of a workspace one after the other, then print each fold's mean Dice. Run it
# again after a stop: finished folds are left as they are, the one that was stopped goes on.
#
#   examples/five_folds.sh WORKSPACE [CONFIGURATION [MODEL [further options of umamba train...]]]
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 WORKSPACE [CONFIGURATION [MODEL [OPTIONS...]]]" >&2
    exit 2
fi
workspace="$1" configuration="${2:-3d_fullres}" model="${3:-umamba-bot}"
shift $(($# < 3 ? $# : 3))

for fold in 0 1 2 3 4; do
    umamba train "$workspace" -c "$configuration" -m "$model" -f "$fold" "$@"
done

run="$workspace/runs/${model}__${configuration}"
python - "$run" <<'PYTHON'
import json
import sys
from pathlib import Path

means = []
for summary in sorted(Path(sys.argv[1]).glob("fold_[0-9]*/validation/summary.json")):
    means.append(json.loads(summary.read_text())["foreground_mean"]["dice"])
    print(f"{summary.parent.parent.name}: mean Dice {means[-1]:.3f}")
print(f"mean of {len(means)} folds: {sum(means) / len(means):.3f}")
PYTHON
echo "predict new images with all five: umamba predict $run -i IMAGES -o predictions"

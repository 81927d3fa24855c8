#!/usr/bin/env bash
# The whole way on a tiny dataset that it draws itself, in under a minute on a CPU: for a CI job of your own that must
# know whether umamba works on its machine. Exit code 0: it does.
#
#   examples/ci_smoke.sh [FOLDER]        FOLDER is removed and made anew; a temporary one by default
set -euo pipefail

folder="${1:-$(mktemp -d)/smoke}"
rm -rf "$folder"
mkdir -p "$folder"

# Any dataset in nnU-Net raw layout will do; this one is drawn.
python - "$folder" <<'PYTHON'
import sys
from pathlib import Path

from umamba_cli.pipeline.workflows.phantom import draw_phantom_dataset

draw_phantom_dataset(Path(sys.argv[1]) / "Dataset001_Tiny", cases=4, test_cases=1, shape=(12, 32, 32))
PYTHON

dataset="$folder/Dataset001_Tiny"
run=(--quiet)
umamba check "$dataset" "${run[@]}"
umamba plan "$dataset" -w "$folder/work" --preset cpu "${run[@]}"
umamba preprocess "$folder/work" -c 3d_fullres "${run[@]}"
umamba train "$folder/work" -c 3d_fullres -m umamba-bot -f all --epochs 2 --iterations 5 --device cpu "${run[@]}"
umamba predict "$folder/work/runs/umamba-bot__3d_fullres" -i "$dataset/imagesTs" -o "$folder/predictions" \
    --device cpu "${run[@]}"
umamba evaluate "$folder/predictions" "$dataset/labelsTs" --dataset "$dataset/dataset.json" "${run[@]}"

# Ten steps teach a network nothing; what counts is that every stage left what it should.
test -s "$folder/predictions/summary.json"
echo "umamba works here: $folder/predictions/summary.json"

#!/usr/bin/env bash
# Cross-validation: train the five folds of a workspace one after the other, then show the table over all of them, which
# is kept in cross_validation.json too. Run it again after a stop: finished folds are left as they are, the one that was
# stopped goes on.
#
#   examples/five_folds.sh WORKSPACE [CONFIGURATION [MODEL [further options of umamba train...]]]
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 WORKSPACE [CONFIGURATION [MODEL [OPTIONS...]]]" >&2
    exit 2
fi
workspace="$1" configuration="${2:-3d_fullres}" model="${3:-umamba-bot}"
shift $(($# < 3 ? $# : 3))

umamba train "$workspace" -c "$configuration" -m "$model" -f 0-4 "$@"

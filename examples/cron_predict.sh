#!/usr/bin/env bash
# Predict at night what was put into a folder during the day. Made for cron: it prints nothing, never runs twice at a
# time, keeps a log, and its exit code tells (0 done or nothing to do, 1 a case failed, 2 wrong arguments, 75 still
# running). Images that have a prediction already are skipped, so it can run as often as you like.
#
#   0 2 * * *  /path/to/cron_predict.sh MODEL INBOX OUTBOX
#
# UMAMBA names the program where it is not on cron's short PATH, e.g. UMAMBA=/opt/umamba/bin/umamba.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: $0 MODEL INBOX OUTBOX" >&2
    exit 2
fi
model="$1" inbox="$2" outbox="$3"
mkdir -p "$outbox"
log="$outbox/cron_predict.log"
exec >> "$log" 2>&1

exec 9> "$outbox/.cron_predict.lock"
if ! flock --nonblock 9; then
    echo "$(date -Is) the run before is still going on"
    exit 75
fi

if [ -z "$(ls -A "$inbox")" ]; then
    echo "$(date -Is) nothing in $inbox"
    exit 0
fi
echo "$(date -Is) begin"
code=0
"${UMAMBA:-umamba}" predict "$model" -i "$inbox" -o "$outbox" --json 9>&- || code=$?
echo "$(date -Is) end, exit code $code"
exit "$code"

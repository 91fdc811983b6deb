#!/bin/bash
# Submit an array of jobs, one participant each, then the calibration of the sites, an array that
# harmonizes (seconds per scan), and the group level.
#
#   recipes/slurm/submit.sh BIDS_DIR OUTPUT_DIR [options of participant ...]
#
# Participants whose scans are all completed with these options are skipped (with ALL=1, none), so the
# same command submits failed scans again. Settings are in settings.sh or in the environment.
set -euo pipefail
(($# >= 2)) || { sed -n '2,8s/^# \?//p' "$0" >&2; exit 2; }
RECIPE=$(cd "$(dirname "$0")" && pwd)
source "$RECIPE/settings.sh"
mkdir -p "$2"
BIDS=$(realpath -m "$1") OUT=$(realpath "$2")
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

LOGS=$OUT/logs/slurm-$(date +%Y%m%d-%H%M%S)
mkdir -p "$LOGS"
set_command "$BIDS" "$OUT" "$work" "$@"
"${harmony[@]}" "$BIDS" "$OUT" participant --dry-run -w "$work" "${options[@]}" >"$LOGS/plan.txt"
# participants ALL: participants of the plan with unfinished scans, or all. A line of the plan begins
# with the name of a scan and ends with its notes.
participants() {
  awk -v all="$1" '/^sub-/ && (all || !/  completed, nothing to do(;.*)?$/) {
    sub(/^sub-/, "", $1); sub(/_.*/, "", $1); if (!seen[$1]++) print $1
  }' "$LOGS/plan.txt"
}
participants "${ALL:-}" >"$LOGS/participant.txt"

# Remove the participants from the options: each task has its own.
set -- "${options[@]}"
options=()
while (($#)); do
  case $1 in
    --participant[-_]label)
      while (($# > 1)) && [[ $2 != -* ]]; do shift; done ;;
    --participant[-_]label=*) ;;
    *) options+=("$1") ;;
  esac
  shift
done

# submit NAME OPTION...: submit a job that waits for the previous one. afterany: a failed scan must not
# stop the others.
after=()
submit() {
  local job
  job=$(sbatch --parsable --export=ALL --job-name="bids_harmony-$1" "${after[@]}" "${@:2}")
  after=(--dependency="afterany:${job%%;*}")
  echo "$1: job ${job%%;*}, logs in $LOGS"
}
# submit_array NAME: submit an array over the participants in NAME.txt.
submit_array() {
  local n per tasks
  n=$(wc -l <"$LOGS/$1.txt")
  per=${PER_TASK:-$(((n + 999) / 1000))}
  tasks=$(((n + per - 1) / per))
  echo "$1: $n participants in $tasks tasks"
  LIST="$LOGS/$1.txt" PER_TASK=$per submit "$1" --array="0-$((tasks - 1))%$AT_ONCE" --cpus-per-task="$CPUS" --mem="${MEM_GB}G" \
    --time="$TIME" --output="$LOGS/$1-%a.log" "$RECIPE/participant.sbatch" "${options[@]}"
}
# submit_level LEVEL OPTION...
submit_level() {
  LEVEL=$1 submit "$1" --output="$LOGS/$1.log" "$RECIPE/level.sbatch" "${@:2}"
}

export RECIPE BIDS OUT CONTAINER CPUS MEM_GB SCRATCH
if [[ -s $LOGS/participant.txt ]]; then
  submit_array participant
  # Given or disabled calibrations need no second pass.
  if [[ ! " ${options[*]} " =~ --(calibration[\ =][^\ ]*/|bundle[\ =]none\ ) ]]; then
    submit_level calibrate "${calibrate_options[@]}"
    participants 1 >"$LOGS/harmonize.txt"
    submit_array harmonize
  fi
else
  echo "participant: all scans are completed"
fi
submit_level group "${group_options[@]}"

#!/bin/bash
# Submit an array of jobs, one participant each, and the group level after them.
#
#   recipes/slurm/submit.sh BIDS_DIR OUTPUT_DIR [options of participant ...]
#
# Participants whose scans are completed, with these options, are left out, so the same command
# submits again what failed; with ALL=1 none is. Settings are in settings.sh, or in the environment.
set -euo pipefail
(($# >= 2)) || { sed -n '2,7s/^# \?//p' "$0" >&2; exit 2; }
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
# A line of the plan begins with a scan's name, and ends with its notes.
awk -v all="${ALL:-}" '/^sub-/ && (all || !/  completed, nothing to do(;.*)?$/) {
  sub(/^sub-/, "", $1); sub(/_.*/, "", $1); if (!seen[$1]++) print $1
}' "$LOGS/plan.txt" >"$LOGS/participants.txt"

# Of the options, the participants end here: each task names its own, and they would add up.
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

n=$(wc -l <"$LOGS/participants.txt")
group_after=()
if ((n)); then
  PER_TASK=${PER_TASK:-$(((n + 999) / 1000))}
  tasks=$(((n + PER_TASK - 1) / PER_TASK))
  export RECIPE BIDS OUT LOGS CONTAINER CPUS MEM_GB PER_TASK SCRATCH
  array=$(sbatch --parsable --export=ALL --array="0-$((tasks - 1))%$AT_ONCE" --cpus-per-task="$CPUS" \
    --mem="${MEM_GB}G" --time="$TIME" --output="$LOGS/participant-%a.log" \
    "$RECIPE/participant.sbatch" "${options[@]}")
  array=${array%%;*}
  echo "participant: job $array, $n participants in $tasks tasks, logs in $LOGS"
  # afterany: a bad scan must not keep the group report from the others.
  group_after=(--dependency="afterany:$array")
else
  echo "participant: all scans are done"
fi
export RECIPE BIDS OUT CONTAINER SCRATCH
group=$(sbatch --parsable --export=ALL "${group_after[@]}" --output="$LOGS/group.log" \
  "$RECIPE/group.sbatch" "${group_options[@]}")
echo "group: job ${group%%;*}"

# What differs between clusters. Each can be set in the environment instead of here.
# shellcheck shell=bash disable=SC2034
# sbatch itself reads SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS and the like.

CONTAINER=${CONTAINER:-$PWD/bids_harmony.sif} # "none": the bids_harmony that is on PATH
CPUS=${CPUS:-1}                               # of an array task: scans processed at once
MEM_GB=${MEM_GB:-3}                           # of an array task; 2 GB for each CPU and 1 more
TIME=${TIME:-01:00:00}                        # of an array task
PER_TASK=${PER_TASK:-}                        # participants of a task; empty: no more than 1000 tasks
AT_ONCE=${AT_ONCE:-100}                       # tasks that run at the same time
SCRATCH=${SCRATCH:-}                          # the node's own disk; empty: $SLURM_TMPDIR, $TMPDIR or /tmp

# harmony=(...): the command, with the folders given as arguments mounted in the container.
set_command() {
  if [[ $CONTAINER == none ]]; then
    harmony=(bids_harmony)
    return
  fi
  [[ -e $CONTAINER ]] || {
    echo "There is no container $CONTAINER. Set CONTAINER, to none for an installed bids_harmony." >&2
    exit 2
  }
  local folder
  # --contain keeps the home folder out; the variables that srun sets come in.
  harmony=(apptainer run --contain)
  [[ -n ${GPU:-} ]] && harmony+=(--nv)
  for folder in "$@"; do harmony+=(-B "$folder"); done
  harmony+=("$CONTAINER")
}

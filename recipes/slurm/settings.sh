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

# read_options OPTION...: sets options=(), the same with absolute paths; inputs=(), those paths; and
# group_options=() and calibrate_options=(), what these levels take too. A path is a value with a
# slash that exists.
read_options() {
  local word path option=''
  options=() inputs=() group_options=() calibrate_options=()
  for word in "$@"; do
    [[ $word != -* ]] || option=${word%%=*}
    path=$word
    # Of --option=PATH and of NAME=PATH.
    while [[ $path == *=* && ! -e $path ]]; do path=${path#*=}; done
    if [[ $path == */* && -e $path ]]; then
      word=${word%"$path"}$(realpath -s -- "$path")
      inputs+=("$(realpath -s -- "$path")")
    fi
    [[ ! $option =~ ^--(bundle|qc-ratings)$ ]] || group_options+=("$word")
    [[ ! $option =~ ^--(bundle|fit-filter|template)$ ]] || calibrate_options+=("$word")
    options+=("$word")
  done
}

# set_command BIDS OUT WORK [OPTION...]: sets harmony=(), the command, which in a container sees
# these folders and what the options name; and all that read_options sets.
set_command() {
  local path
  read_options "${@:4}"
  if [[ $CONTAINER == none ]]; then
    harmony=(bids_harmony)
    return
  fi
  [[ -e $CONTAINER ]] || {
    echo "There is no container $CONTAINER. Set CONTAINER, to none for an installed bids_harmony." >&2
    exit 2
  }
  # Nothing of the user's own environment and home, but which GPU is ours.
  harmony=(apptainer run --cleanenv --contain)
  if [[ ${GPU:-} ]]; then
    harmony+=(--nv)
    export APPTAINERENV_CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-}
  fi
  mkdir -p "$2" "$3"
  # What is absent the program names better than Apptainer.
  [[ ! -e $1 ]] || harmony+=(-B "$1:$1:ro")
  for path in "${inputs[@]}"; do harmony+=(-B "$path:$path:ro"); done
  # Last, since they may lie within the others.
  harmony+=(-B "$2:$2" -B "$3:$3" "$CONTAINER")
}

# scratch_folder: sets work, a folder on the node's own disk that goes with the job.
scratch_folder() {
  work=$(mktemp -d "${SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/bids_harmony.XXXXXX")
  trap 'rm -rf "$work"' EXIT
}

# run COMMAND...: with SIGTERM to this shell handed on to the command alone. Ends with its code, or
# 130 where the signal ended it.
run() {
  local code=0 told=''
  # A dying container may leave cores of some GB.
  ulimit -c 0
  # In the background, as the shell hears no signal while it waits for a command.
  "$@" &
  trap 'told=1; kill -TERM $! 2>/dev/null' TERM
  wait $! || code=$?
  # A signal ends the wait; the command still has to end.
  while [[ $told ]] && kill -0 $! 2>/dev/null; do
    code=0
    wait $! 2>/dev/null || code=$?
  done
  # scancel also ends the process that serves the container's file system; what still reads from
  # it dies of SIGBUS.
  [[ -z $told ]] || ((code <= 128)) || code=130
  return "$code"
}

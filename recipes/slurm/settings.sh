# Settings that differ between clusters. Each can also be set in the environment.
# shellcheck shell=bash disable=SC2034
# sbatch itself reads SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS and the like.

CONTAINER=${CONTAINER:-$PWD/bids_harmony.sif} # "none": the installed bids_harmony
CPUS=${CPUS:-1}                               # of an array task: scans processed in parallel
MEM_GB=${MEM_GB:-3}                           # of an array task: 2 GB per CPU, plus 1 GB
TIME=${TIME:-01:00:00}                        # of an array task
PER_TASK=${PER_TASK:-}                        # participants per task; empty: at most 1000 tasks
AT_ONCE=${AT_ONCE:-100}                       # tasks that run in parallel
SCRATCH=${SCRATCH:-}                          # the node's local disk; empty: $SLURM_TMPDIR, $TMPDIR or /tmp

# read_options OPTION...: set options=(), with absolute paths; inputs=(), these paths; and
# group_options=() and calibrate_options=(), the options that these levels accept. A path is an
# existing value with a slash.
read_options() {
  local word path option=''
  options=() inputs=() group_options=() calibrate_options=()
  for word in "$@"; do
    [[ $word != -* ]] || option=${word%%=*}
    path=$word
    # --option=PATH and NAME=PATH
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

# set_command BIDS OUT WORK [OPTION...]: set harmony=(), the command, with these folders and the paths
# in options mounted in the container; and everything that read_options sets.
set_command() {
  local path
  read_options "${@:4}"
  if [[ $CONTAINER == none ]]; then
    harmony=(bids_harmony)
    return
  fi
  [[ -e $CONTAINER ]] || {
    echo "The container $CONTAINER does not exist. Set CONTAINER to its path, or to none to use an" \
      "installed bids_harmony." >&2
    exit 2
  }
  # Without the environment and home of the user, except for the allocated GPU.
  harmony=(apptainer run --cleanenv --contain)
  if [[ ${GPU:-} ]]; then
    harmony+=(--nv)
    export APPTAINERENV_CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-}
  fi
  mkdir -p "$2" "$3"
  # bids_harmony reports a missing dataset better than Apptainer does.
  [[ ! -e $1 ]] || harmony+=(-B "$1:$1:ro")
  for path in "${inputs[@]}"; do harmony+=(-B "$path:$path:ro"); done
  # Last, since they may be inside the others.
  harmony+=(-B "$2:$2" -B "$3:$3" "$CONTAINER")
}

# scratch_folder: set work, a folder on the node's local disk that is deleted after the job.
scratch_folder() {
  work=$(mktemp -d "${SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/bids_harmony.XXXXXX")
  trap 'rm -rf "$work"' EXIT
}

# run COMMAND...: run it, and forward SIGTERM from this shell to it only. Return its exit code, or 130
# if the signal stopped it.
run() {
  local code=0 stopped=''
  # A core dump of a container may be several GB large.
  ulimit -c 0
  # In the background, since a shell handles no signals during a foreground command.
  "$@" &
  trap 'stopped=1; kill -TERM $! 2>/dev/null' TERM
  wait $! || code=$?
  # A signal interrupts `wait`; the command still has to stop.
  while [[ $stopped ]] && kill -0 $! 2>/dev/null; do
    code=0
    wait $! 2>/dev/null || code=$?
  done
  # scancel also stops the process that serves the container's file system; a process that still
  # reads from it gets SIGBUS.
  [[ -z $stopped ]] || ((code <= 128)) || code=130
  return "$code"
}

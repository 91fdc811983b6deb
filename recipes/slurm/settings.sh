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

# Options of bids_harmony whose values are paths, to read and to write; a test compares them with
# the program's own.
READ_PATHS="--atlas-dir --bids-filter-file --bundle --calibration --config-file --derivatives -d \
--nipype-plugin-file --qc-ratings --template --use-plugin"
WRITTEN_PATHS="--bids-database-dir --work-dir -w"

# read_options OPTION...: sets options=(), the same with absolute paths, inputs=() and folders=(),
# the paths that are read and written, and group_options=() and calibrate_options=(), what those
# levels take too.
read_options() {
  local word name prefix value named option='' kind=''
  options=() inputs=() folders=() group_options=() calibrate_options=()
  for word in "$@"; do
    name='' prefix=''
    case $word in
      --*=*) name=${word%%=*} prefix=${word%%=*}= ;;
      -[dw]=*) name=${word::2} prefix=${word::3} ;;
      -[dw]?*) name=${word::2} prefix=${word::2} ;;
      -*) name=$word prefix=$word ;;
    esac
    if [[ $name ]]; then
      option=${name//_/-} kind=''
      [[ " $READ_PATHS " != *" $option "* ]] || kind=input
      [[ " $WRITTEN_PATHS " != *" $option "* ]] || kind=folder
    fi
    value=${word#"$prefix"}
    [[ ! "$option $value" =~ ^--(bundle (default|none)|calibration auto)$ ]] || kind=''
    if [[ $kind && $value ]]; then
      if [[ $option =~ ^(-d|--derivatives)$ && ! -e $value && $value =~ ^([[:alnum:]_.+-]+=)(.+) ]]
      then
        prefix+=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
      fi
      # shellcheck disable=SC2088
      [[ ${value::2} != '~/' ]] || value=$HOME/${value:2}
      value=$(realpath -ms -- "$value")
      word=$prefix$value
      if [[ $kind == input ]]; then inputs+=("$value"); else folders+=("$value"); fi
      if [[ $option == --config-file && -r $value ]]; then
        # JSON, which names paths itself.
        while read -r named; do
          printf -v named %b "${named//\"/}"
          if [[ $named == bids_database_dir:* ]]; then
            folders+=("${named#*: }")
          else
            inputs+=("${named#*: }")
          fi
        done < <(grep -oE '"(bids_database_dir": ")?/[^"]*"' "$value")
      fi
    fi
    [[ ! $option =~ ^--(bundle|config-file|qc-ratings)$ ]] || group_options+=("$word")
    [[ ! $option =~ ^--(bundle|config-file|fit-filter|template)$ ]] || calibrate_options+=("$word")
    options+=("$word")
  done
}

# set_command BIDS OUT WORK [OPTION...]: sets harmony=(), the command, which in a container sees
# these folders and what the options name; and all that read_options sets.
set_command() {
  local path folder
  local -A mode=()
  read_options "${@:4}"
  if [[ $CONTAINER == none ]]; then
    harmony=(bids_harmony)
    return
  fi
  [[ -e $CONTAINER ]] || {
    echo "There is no container $CONTAINER. Set CONTAINER, to none for an installed bids_harmony." >&2
    exit 2
  }
  # Nothing of the user's own environment and home; what Slurm says to each process goes in.
  # shellcheck disable=SC2016
  harmony=(bash -c 'for name in "${!SLURM_@}" "${!CUDA_@}" "${!NCCL_@}" "${!GLOO_@}" "${!MASTER_@}"
    do export "APPTAINERENV_$name=${!name}"; done; exec "$@"' harmony
    apptainer run --cleanenv --contain)
  [[ -z ${GPU:-} ]] || harmony+=(--nv)
  folders+=("$2" "$3")
  mkdir -p "${folders[@]}"
  # What is absent the program names better than Apptainer.
  [[ ! -e $1 ]] || mode[$1]=:ro
  for path in "${inputs[@]}"; do
    for folder in "$1" "${folders[@]}"; do
      # Seen already, but where a link leads need not be.
      [[ $path/ != "$folder"/* ]] || path=$(realpath -m -- "$path")
    done
    for folder in "$1" "${folders[@]}"; do
      [[ $path/ != "$folder"/* ]] || continue 2
    done
    [[ ! -e $path ]] || mode[$path]=:ro
  done
  for folder in "${folders[@]}"; do mode[$folder]=''; done
  # Sorted, since a folder mounted later hides what was mounted inside it.
  while IFS= read -r path; do
    if [[ $path == *[:,\"]* ]]; then
      # Which -B reads as its own; --mount is a line of CSV.
      folder=${path//\"/\"\"}
      harmony+=(--mount "type=bind,\"src=$folder\",\"dst=$folder\"${mode[$path]/:/,}")
    else
      harmony+=(-B "$path:$path${mode[$path]}")
    fi
  done < <(printf '%s\n' "${!mode[@]}" | LC_ALL=C sort)
  harmony+=("$CONTAINER")
}

# run COMMAND...: with SIGTERM to this shell, or SIGURG, handed on as SIGTERM to the command alone.
# Ends with its code, or 130 where the signal ended it.
run() {
  local code=0 told=''
  # A dying container may leave cores of some GB.
  ulimit -c 0
  # In the background, as the shell hears no signal while it waits for a command.
  "$@" &
  trap 'told=1; kill -TERM $! 2>/dev/null' TERM URG
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

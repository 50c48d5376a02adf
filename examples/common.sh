#!/usr/bin/env bash
# What the scripts of this folder share; each sources it from the root of the repository, after it has set PROCESSES.
#
# --dry-run as a script's first word runs nothing: every command prints its resolved settings, what it takes in memory and
# hours, and which of its inputs are missing; the status is 1 where one is. PYTHON names the interpreter.
# UNTIL=NAME ends a script as soon as its result NAME is there.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

python() { command "${PYTHON:-python}" "$@"; }

# COMMAND...: PROCESSES ranks share the work and change nothing in the result
parallel() { python -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" "$@"; }

if [[ ${1:-} == --dry-run ]]; then
  shift
  DRY_RUN_MADE=$(mktemp) # the paths that the commands so far would have written
  export DRY_RUN_MADE
  dry_run_status=0
  trap 'rm -f "$DRY_RUN_MADE"; exit "$dry_run_status"' EXIT
  python() { command "${PYTHON:-python}" "$@" --dry-run || dry_run_status=1; }
  parallel() { WORLD_SIZE=$PROCESSES python "$@"; }
fi

# NUMBER ARGUMENT...: ends with the script's own description where fewer arguments are given
need() {
  if (($# - 1 < $1)); then
    sed -n -e '/^set -/q' -e '2,$s/^# \{0,1\}//p' "$0" >&2
    exit 2
  fi
}

# FOLDER COMMAND...: run the command unless the folder is there
once() {
  local folder=$1
  shift
  [[ -e $folder ]] || "$@"
}

# PATH: the file, or the compressed one that is there in its place
file() { if [[ ! -e $1 && -e $1.gz ]]; then echo "$1.gz"; else echo "$1"; fi; }

# NAME: this result is there
result() { if [[ ${UNTIL:-} == "$1" ]]; then exit 0; fi; }

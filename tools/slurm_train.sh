#!/usr/bin/env bash
# slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [train.py's options]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS come from the environment.
set -euo pipefail
usage='usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]'
partition=${1:?$usage} job_name=${2:?$usage} config=${3:?$usage} work_dir=${4:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086 # SRUN_ARGS is a list of words
exec srun -p "$partition" --job-name="$job_name" --gres="gpu:$per_node" \
  --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} python -u "$here/train.py" "$config" --work-dir "$work_dir" --launcher slurm "${@:5}"

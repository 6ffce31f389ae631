#!/usr/bin/env bash
# dist_train.sh CONFIG PROCESSES [train.py's options]: several processes on one or more machines, by torchrun.
set -euo pipefail
config=${1:?usage: dist_train.sh CONFIG PROCESSES [options of train.py]}
processes=${2:?usage: dist_train.sh CONFIG PROCESSES [options of train.py]}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
exec python -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$here/train.py" "$config" --launcher pytorch "${@:3}"

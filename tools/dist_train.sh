#!/usr/bin/env bash
# Trains on several GPUs, and on several machines if NNODES says so (then start this on
# each, with its own NODE_RANK and the first machine's MASTER_ADDR). With MAX_RESTARTS
# and --resume a run whose process dies begins again at its last checkpoint.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "Usage: [NNODES=1 NODE_RANK=0 PORT=29500 MASTER_ADDR=127.0.0.1" \
        "MAX_RESTARTS=0] $0 CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2

if [ "${MAX_RESTARTS:-0}" -gt 0 ]; then
    # Only this rendezvous meets anew (and it numbers the machines itself), and only
    # without a shared store, in which new processes find addresses of the dead.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    MEET=(
        --max_restarts="$MAX_RESTARTS"
        --rdzv_backend=c10d
        --rdzv_endpoint="${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
        --rdzv_id="${PORT:-29500}"
    )
else
    MEET=(
        --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}"
        --master_port="${PORT:-29500}"
    )
fi

# This is torchrun, but of the interpreter that runs train.py.
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --nproc_per_node="$GPUS" \
    "${MEET[@]}" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"

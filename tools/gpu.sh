#!/usr/bin/env bash
# experiments/gpu.yaml on a GPU that is there for minutes: tools/gpu.sh PARTS OUT [SECONDS [WORKERS [EXPERIMENT]]], in hssl's folder.
# PARTS is a store packed by tools/pack.py. OUT gets the log, both ledgers and the joint weights as they come, so that a
# run that is cut off goes on from them: put the ledgers back into runs/gpu, unpack joint.tar there, and call again. What
# had not finished starts again.
set -euo pipefail
parts=$1 out=$2 seconds=${3:-540} workers=${4:-8} experiment=${5:-experiments/gpu.yaml}
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python3 -c "import hssl.benchmark, hssl.training, nibabel" # what is missing shows now, not after the first run
mkdir -p "$out" runs/gpu
[ -e runs/packed ] || python3 tools/pack.py unpack "$parts" runs/packed

keep() { # copies are put in place whole: the machine may go at any time
    for file in runs/gpu/ledger.jsonl runs/gpu/pretraining.jsonl; do
        [ ! -e "$file" ] || { cp "$file" "$out/.part" && mv "$out/.part" "$out/${file##*/}"; }
    done
    for run in runs/gpu/pretrain/*/outcome.json; do # of the joint one alone: the others are soon made again
        [ -e "$run" ] && [ ! -e "$out/joint.tar" ] && [ "$(grep -c '"Task' "$run")" -gt 1 ] || continue
        tar -C runs/gpu -cf "$out/.part" "pretrain/$(basename "${run%/*}")" && mv "$out/.part" "$out/joint.tar"
    done
}
trap keep EXIT
(while sleep 10; do keep; done) > /dev/null &
keeper=$!
status=0
timeout --signal=INT --kill-after=20 "$seconds" \
    python3 -m hssl benchmark "$experiment" -o runs/gpu --workers "$workers" 2>&1 | tee "$out/log" || status=$?
kill "$keeper"
exit "$status"

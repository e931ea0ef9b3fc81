#!/usr/bin/env bash
# Everything that is to be measured on a machine with a GPU, in one call of less than ten minutes.
#
#     bash benchmarks/gpu.sh             on a GPU; writes results/benchmarks/gpu.json
#     bash benchmarks/gpu.sh --quick     tiny sizes, on the CPU where there is no GPU: does it run?
#
# JAXALIGN_GPU_DEVICE (default gpu; cpu with --quick) is the device, JAXALIGN_GPU_OUT where the JSON
# goes. Each step has its own timeout, so one that hangs loses itself alone; what a step has said is
# in the folder that the last line names. PyTorch is used where it is installed. After it:
# python -m benchmarks table
set -uo pipefail
cd "$(dirname "$0")/.."

quick=""
[ "${1:-}" = "--quick" ] && quick="--quick"
device=${JAXALIGN_GPU_DEVICE:-$([ -n "$quick" ] && echo cpu || echo gpu)}
out=${JAXALIGN_GPU_OUT:-results/benchmarks/gpu.json}
python=${PYTHON:-python}
work=$(mktemp -d "${TMPDIR:-/tmp}/jaxalign-gpu-XXXXXX")
export JAXALIGN_CACHE=""  # every step compiles what it needs, but for the command's own folder
[ "$device" = cpu ] || export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}

step() {  # step NAME SECONDS COMMAND...
    local name=$1 most=$2 began=$SECONDS
    shift 2
    timeout --kill-after=10 "$most" "$@" >"$work/$name.out" 2>"$work/$name.err"
    local code=$?
    echo "$name: exit $code after $((SECONDS - began)) s of $most"
    printf '{"step": "%s", "exit": %d, "seconds": %d, "limit": %d}\n' \
        "$name" "$code" "$((SECONDS - began))" "$most" >>"$work/steps.jsonl"
}

torch=none
"$python" -c "import torch, transformers" 2>/dev/null && torch=pytorch-one,pytorch-last,pytorch-edits
bench() { step "$1" "$2" "$python" -m benchmarks "${@:3}" --device "$device" $quick; }

# What decides most comes first, should the machine be taken away.
step tests 100 "$python" -m pytest tests/test_gpu.py -q -n 0 -m "" -p no:cacheprovider
bench command 100 command --runs 1
bench heads-70m 90 heads --baselines "$(echo "$torch,vmap" | sed "s|^none,||")" --no-account
bench products 75 products --prompts 26
bench blocks 75 blocks
bench heads-410m 75 heads --model 410m --memory-gb 40 --baselines "${torch##*,}" --no-account --runs 3
bench heads-1.4b 75 heads --model 1.4b --memory-gb 60 --baselines none --no-account --runs 2

"$python" -m benchmarks.gpu_json "$work" "$out" || exit 1
echo "$out, from $work"

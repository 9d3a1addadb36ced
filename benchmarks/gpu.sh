#!/usr/bin/env bash
# All benchmarks on one GPU in under 9 minutes, without TensorFlow or network:
#
#     bash benchmarks/gpu.sh OUT_FOLDER
#
# Where .gpu_packages is there (`make gpu-packages`: wheels for Python 3.12), they are installed
# first, beside the jax that the machine has. Every part has a limit of its own and writes its JSON
# as soon as it is done, so that what is late costs only itself.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: gpu.sh OUT_FOLDER}
mkdir -p "$out"
if [ -d .gpu_packages ]; then
    packages=$(mktemp -d)
    python3 -m pip install --quiet --no-index --no-deps --target "$packages" .gpu_packages/*.whl
    export PYTHONPATH=$packages
fi
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
part() { # seconds, name, module and arguments
    local limit=$1 name=$2
    shift 2
    echo "== $name"
    timeout "$limit" python3 -m "$@" --out "$out/$name.json" || {
        echo "$name: exit status $?" # 124: over its limit
        failed=1
    }
}
failed=0
part 230 step_gpu benchmarks.step --batch 64 --dtype bfloat16 --rounds 1 --steps 10
part 30 ceiling_gpu benchmarks.ceiling --step "$out/step_gpu.json"
part 80 scaling_gpu benchmarks.scaling --variant vit_b16 --batch 64 --dtype bfloat16 --rounds 2
part 40 evaluate_gpu benchmarks.evaluate --variant vit_b16 --dtype bfloat16 --images 4096
part 160 sweep_gpu benchmarks.sweep --dtype bfloat16 --epochs 10 --test_fraction 0.1
exit $failed

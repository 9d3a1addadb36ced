#!/usr/bin/env bash
# The benchmarks on one GPU, each call in under 9 minutes, without TensorFlow or network:
#
#     gpu=benchmarks/devices/gpu.sh
#     bash $gpu OUT_FOLDER          # numbers against the CPU's, then step, scaling and a short sweep
#     bash $gpu OUT_FOLDER more     # the bank of many tasks, and a part of the study
#     bash $gpu OUT_FOLDER check    # numbers against the CPU's alone, in a minute
#     bash $gpu OUT_FOLDER sweep    # the whole sweep, its wall time; takes more options of
#                                   # benchmarks.sweep, such as --attention cudnn
#     bash $gpu OUT_FOLDER study    # the study alone; takes more options of benchmarks.study, such as
#                                   # --part dinov2 --weights FILE
#
# RECORD=FILE: a record of the study that an earlier call has left, to go on from it.
# Where .gpu_packages is there (`make gpu-packages`: wheels for Python 3.12), they are installed
# first, beside the jax that the machine has. Every part has a limit of its own, so that what is late
# costs only itself; of a part that is cut off, what it had measured is kept (of scaling whole
# variables, of evaluate and ceiling nothing). SMOKE=1 tries the script on a tiny network.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: gpu.sh OUT_FOLDER [more|check|sweep [OPTIONS]|study [OPTIONS]]}
mode=${2:-all}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset JAX_PLATFORMS # check_device needs the CPU beside the GPU
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=$scratch/xla
failed=0
if [ -d .gpu_packages ]; then
    timeout 30 python3 -m pip install --quiet --no-compile --no-index --no-deps \
        --target "$scratch/packages" .gpu_packages/*.whl || failed=1
    export PYTHONPATH=$scratch/packages${PYTHONPATH:+:$PYTHONPATH}
    FACT_JAX_COMMIT=$(cat .gpu_packages/commit)
    export FACT_JAX_COMMIT
fi
part() { # seconds, name, module and arguments
    local limit=${SMOKE:+600} name=$2
    limit=${limit:-$1} # a GPU's limits are not a small CPU's
    shift 2
    echo "== $name"
    timeout -k 15 "$limit" python3 -m "$@" --out "$out/$name.json" || {
        echo "$name: exit status $?" # 124: over its limit
        failed=1
    }
}
network=(--variant vit_b16 --dtype bfloat16)
step=(--batch 64 --rounds 1 --steps 10)
ceiling=() check=(--variant vit_b16)
scaling=(--batch 64 --rounds 2 --only "trials;rank")
evaluate=(--images 1024 --rounds 1)
short=(--epochs 2 --test_fraction 0.05) whole=()
bank=(--batch 16 --stored 2000 --rounds 3 --methods "fact_tt,fact_tk,lora" --variant vit_b16)
study=(--workdir "$scratch/study")
if [ -n "${SMOKE:-}" ]; then
    network=(--variant vit_mini --image_size 32 --dtype float32)
    step=(--batch 2 --rounds 1 --steps 1 --only "ours: linear")
    ceiling=(--size 64 --rounds 1) check=(--variant vit_mini --image_size 32 --batch 2)
    scaling=(--batch 2 --rounds 1 --only split)
    evaluate=(--images 8 --batch 4 --rounds 1)
    short=(--epochs 1 --tasks "dtd,kitti" --train_limit 8 --batch 8 --test_fraction 0.001)
    whole=("${short[@]}")
    bank=(--variant vit_mini --image_size 32 --batch 2 --stored 20 --rounds 1 --methods fact_tt)
    study+=(--methods linear --tasks digits --seeds "0,1" --epochs 1)
fi
# The limits, with 30 seconds for pip: 535 seconds in all, 530 for `more`, and 520 for the study and
# for the whole sweep. Told to end, a program has 15 more to write what it has finished.
study_part() { # seconds, minutes after which no cell begins, and more options
    local limit=$1 minutes=$2
    shift 2
    if [ -n "${RECORD:-}" ]; then cp "$RECORD" "$out/study_gpu.json"; fi
    part "$limit" study_gpu benchmarks.study --minutes "$minutes" "${study[@]}" "$@"
}
case $mode in
check) part 90 check_device benchmarks.check_device "${check[@]}" ;;
more)
    part 170 bank_gpu benchmarks.bank "${bank[@]}"
    study_part 330 4 --part main
    ;;
study) study_part 490 6.5 "$@" ;;
sweep) part 490 sweep_gpu benchmarks.sweep "${network[@]}" "${whole[@]}" "$@" ;;
all)
    part 75 check_device benchmarks.check_device "${check[@]}"
    part 200 step_gpu benchmarks.step "${network[@]}" "${step[@]}"
    part 20 ceiling_gpu benchmarks.ceiling --step "$out/step_gpu.json" "${ceiling[@]}"
    part 70 scaling_gpu benchmarks.scaling "${network[@]}" "${scaling[@]}"
    part 40 evaluate_gpu benchmarks.evaluate "${network[@]}" "${evaluate[@]}"
    part 100 sweep_short_gpu benchmarks.sweep "${network[@]}" "${short[@]}"
    ;;
*)
    echo "unknown mode $mode: more, check, sweep, study, or nothing" >&2
    exit 2
    ;;
esac
exit $failed

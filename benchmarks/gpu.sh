#!/usr/bin/env bash
# Everything that wants a GPU, in under nine minutes: does it compute what the CPU does, how fast is it, and a slice of
# the record run, which goes on when the same folder is given again.
#
#   benchmarks/gpu.sh FOLDER                        results as files in FOLDER
#   CIFAR10_JPEG=IMAGES benchmarks/gpu.sh FOLDER    with CIFAR-10 as a folder of images in place of the download
#
# Each part has a time limit of its own and a log; one that fails or runs out of time does not end the others. BUDGET is
# a factor on all limits: BUDGET=0.2 for a rehearsal, which on a machine without GPU shows that the commands are right.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:?"usage: benchmarks/gpu.sh FOLDER"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} WANDB_MODE=offline PYTHONUNBUFFERED=1
python=$(command -v "${PYTHON:-python3}") || { echo "gpu.sh: PYTHON=$PYTHON: no such command" >&2; exit 2; }
python=$(realpath -s "$python") # each part runs in FOLDER; through a link, for a virtual environment's is one
data=()
[ -n "${CIFAR10_JPEG:-}" ] && data=(data=image_folder "data.root=$(realpath "$CIFAR10_JPEG")")

part() { # NAME SECONDS COMMAND…: its log in $out/NAME.log, a line about it here; SIGINT at the limit, so that a run saves
  local name=$1 seconds began=$SECONDS code
  seconds=$("$python" -c "print(max(5, round($2 * ${BUDGET:-1})))")
  shift 2
  (cd "$out" && timeout --signal=INT --kill-after=8 "$seconds" "$@") > "$out/$name.log" 2>&1
  code=$?
  case $code in
    0) verdict=done ;;
    124 | 130 | 137) verdict="stopped at its limit of $seconds s" ;;
    *) verdict="failed with exit code $code" ;;
  esac
  printf '%-12s %4d s  %s\n' "$name" $((SECONDS - began)) "$verdict" | tee -a "$out/parts.txt"
}

: > "$out/parts.txt"
bench=$root/benchmarks
part agree 65 "$python" "$bench/agree.py" --eager --out agree.txt
part augment 20 "$python" "$bench/augment.py" --batch 128 --seconds 0.5 --rounds 3 --alone basic trivial rand auto reference strong
rows=({ours,timm,torchvision}", compiled")  # ten processes at once are not ready in 110 s; what each kernel brings: kernels.py
part step 145 "$python" "$bench/step.py" --batch 2048 4096 --only "${rows[@]}" --wait 110 --json step.json
part pipeline 110 "$python" "$bench/pipeline.py" --batch 128 --images 10240 --rounds 2 --compile ours --json pipeline.json
part speedrun 140 "$python" "$bench/speedrun.py" --seeds 1 --out speedrun.json "${data[@]}"
part record 50 "$python" -m swinexp.run experiment=record name=record trainer.compile=graphs "${data[@]}"
while read -r name _; do
  echo "== $name"
  tail -n 12 "$out/$name.log"
done < "$out/parts.txt" > "$out/summary.txt"

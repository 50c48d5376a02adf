#!/usr/bin/env bash
# A job that SLURM stops before its time limit and puts back into the queue ends with the curve of an uninterrupted run:
# examples/slurm_train.sh under a real SLURM, two ranks of the Inverse Cloze Task on the generated encyclopedia.
#
#   benchmarks/slurm_requeue.sh OUTPUT [SBATCH-FLAG...]
#
# Needs sbatch, slurmctld and slurmd, and a partition whose node has two cores. ITERATIONS (default 900) have to take longer
# than three minutes, after which SLURM has sent USR1 (its clock is good to a minute).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$1
shift
iterations=${ITERATIONS:-900}

python tools/make_encyclopedia.py --output "$out/data"
python tools/build_corpus.py --input "$out/data/psgs_w100.tsv" --output "$out/corpus" --vocab-file "$out/data/vocab.txt"
flags=(pretrain_ict.py --config examples/quickstart.yaml --no-tensorboard --log-interval 1 --device cpu --train-iters "$iterations" \
  --data-path "$out/corpus" --valid-fraction 0)

torchrun --standalone --nproc-per-node 2 "${flags[@]}" --dtype auto --output-dir "$out/uninterrupted"

# five minutes less the two of --signal: the job is told to stop after two or three
job=$(sbatch --parsable --wait --nodes 1 --ntasks-per-node 2 --gpus-per-node 0 --time 5 --output "$out/slurm-%j.log" --open-mode append "$@" \
  examples/slurm_train.sh "$out/requeued" "${flags[@]}" | tail -n 1)
echo "job $job was restarted $(scontrol show job "$job" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p') times"

python - "$out" <<'END'
import json
import sys

losses = {}
for name in ("uninterrupted", "requeued"):
    with open(f"{sys.argv[1]}/{name}/metrics.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    losses[name] = {line["iteration"]: line["loss"] for line in lines if "loss" in line}
there, back = losses["uninterrupted"], losses["requeued"]
different = [step for step in there if there[step] != back.get(step)]
print(f"{len(there)} losses uninterrupted, {len(back)} requeued, {len(different)} of them different")
sys.exit(bool(different) or set(there) != set(back))
END

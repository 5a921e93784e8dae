#!/bin/bash
# Submits SCORE, DECIDE and WRITE, each after the one before it; prints the numbers of the jobs.
#
#   deploy/slurm/curate.sh TASKS OUT INPUT… [options of danqing score]
#   deploy/slurm/curate.sh 64 /data/out '/data/shards/*.tar' --recipe danqing
#
# Options of sbatch (partition, account, size of a node) come from its environment: SBATCH_PARTITION, SBATCH_ACCOUNT, …
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tasks=$1 out=$2
shift 2
score=$(sbatch --parsable --array="0-$((tasks - 1))" "$here/score.sbatch" "$@" -o "$out")
decide=$(sbatch --parsable --dependency="afterok:$score" "$here/decide.sbatch" "$out")
write=$(sbatch --parsable --dependency="afterok:$decide" --array="0-$((tasks - 1))" "$here/write.sbatch" "$out")
echo "score $score, decide $decide, write $write"

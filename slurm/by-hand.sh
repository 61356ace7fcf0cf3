#!/bin/bash
# A batch script for people who write their own: it goes on beyond its time limit, preemption and dying nodes.
# `hpcmr submit ... --print` makes one that does more: it stops when nothing moves, asks for notice by what was measured, and hears of preemption.
#SBATCH --job-name=stats
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# In the background, and waited for in a loop: bash runs a trap only when no program is in the foreground. A word for a run directory of your own.
python -m hpcmr launch job stats.py --run-dir run &
ranks=$!
trap 'kill -USR1 "$ranks"' USR1 TERM
wait "$ranks"; code=$?
while kill -0 "$ranks" 2>/dev/null; do wait "$ranks"; code=$?; done

# 75: a checkpoint is committed, and the same script goes on from it. Tasks of an array are named by two numbers.
if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
fi
exit "$code"

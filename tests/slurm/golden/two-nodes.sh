#!/bin/bash
#SBATCH --job-name=halos-1f00c2b1aa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=32
#SBATCH --time=2:00:00
#SBATCH --output=/scratch/ann/hpcmr-runs/halos-1f00c2b1aa/slurm/%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#
# Made by hpcmr 0.1.0 for halos.py.
# To change it, see `hpcmr submit --help`; what it does is explained in the README of hpcmr's folder slurm/.
set -u
python=/home/ann/venv/bin/python
script=/scratch/ann/hpcmr-runs/halos-1f00c2b1aa/slurm/batch.sh
run=/scratch/ann/hpcmr-runs/halos-1f00c2b1aa
job=$SLURM_JOB_ID
notice_s=120
cd -- /home/ann || exit 2

# One thread for each core that a rank has, for every library that would take the whole node.
threads=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads MKL_NUM_THREADS=$threads NUMBA_NUM_THREADS=$threads

words=(job /home/ann/halos.py --set=run=42 --run-dir "$run")

# May this attempt begin? Not if the run was cancelled, or if two attempts have brought no newer checkpoint. The answer is written down.
"$python" -m hpcmr attempt begin --run-dir "$run" --script "$script" --job "$job" || exit

# Slurm's notice comes to this script as USR1, but preemption and `scancel --signal` come to steps only: a step that listens passes them on.
notice=
ranks=
trap 'notice=USR1; [ -z "$ranks" ] || kill -USR1 "$ranks" 2>/dev/null' USR1
trap 'notice=TERM; [ -z "$ranks" ] || kill -USR1 "$ranks" 2>/dev/null' TERM
listen='trap "kill -USR1 $1" TERM USR1 USR2; while kill -0 "$1"; do sleep 60 & wait "$!"; done'
srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" --mem=0 bash -c "$listen" listen "$$" </dev/null >/dev/null 2>&1 &
listener=$!

# The ranks run in the background, and this script waits in a loop, so that a notice is taken at once. It is repeated until they have ended: the
# first one may come before they can take it.
(trap '' USR1 TERM; exec "$python" -m hpcmr launch -- "${words[@]}") &
ranks=$!
while kill -0 "$ranks" 2>/dev/null; do
    if [ -n "$notice" ]; then
        kill -USR1 "$ranks" 2>/dev/null
        sleep 2 &
        wait -n "$ranks" "$!"
    else
        wait "$ranks"
    fi
done
wait "$ranks"
code=$?
trap '' USR1 TERM
kill "$listener" 2>/dev/null

# Done or failed for good: this job ends. Checkpointed, or dead without a word: it goes on later, put back into the queue or submitted anew.
exec "$python" -m hpcmr attempt end --run-dir "$run" --script "$script" --job "$job" --code "$code" --notice-s "$notice_s" --max-restarts 50

#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
# One worker a node. Two minutes before its time is up the job saves, and asks to be run again.

worker() {
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/.*/"&:2222"/' | paste -sd,)
    export TF_CONFIG='{"cluster": {"worker": ['$hosts']},
        "task": {"type": "worker", "index": '$SLURM_PROCID'}}'
    exec transduce run g2p_transducer --strategy multi_worker --folder "$HOME/runs/g2p"
}
export -f worker

srun --kill-on-bad-exit=0 bash -c worker  # a worker that has ended lets the chief save
code=$?
case $code in
    75 | 137 | 143)
        if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then scontrol requeue "$SLURM_JOB_ID"; fi ;;
esac
exit $code

#!/usr/bin/env bash
# compare.py --slurm against a real SLURM of one machine, started here and ended again: not part of the suite.
#     sudo apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
#     sudo tests/slurm_check.sh
# Needs root on Linux and took 18 minutes on two busy cores. It touches no SLURM that is set up already: configuration,
# keys, sockets and state lie in a temporary folder. LAFTER_PYTHON is taken where it is set, as by the launchers.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup_env.sh"
for program in munged slurmctld slurmd sbatch squeue scancel; do
    PATH=$PATH:/usr/sbin command -v "$program" > /dev/null || {
        echo "error: no $program here: apt-get install slurmctld slurmd slurm-client munge" >&2
        exit 1
    }
done
PATH=$PATH:/usr/sbin
setup_env "$project/tests/requirements.txt"
work=$(mktemp -d)
export SLURM_CONF=$work/slurm.conf  # from here on no other SLURM is spoken to
stop_all() { # the jobs, what waits for them, then the daemons
    scancel --me 2> /dev/null || true
    for _ in $(seq 60); do squeue --me --noheader 2> /dev/null | grep -q . || break; sleep 0.5; done
    mapfile -t running < <(jobs -p)
    [ ${#running[@]} = 0 ] || kill "${running[@]}" 2> /dev/null || true
    wait || true
    [ -n "${KEEP:-}" ] && echo "kept $work" || rm -rf "$work"
}
trap stop_all EXIT

# --- a cluster of one node with two pretended GPUs ---------------------------------------------------------------------
mkdir -p "$work"/munge "$work"/state "$work"/spool
chmod 755 "$work"
head -c 128 /dev/urandom > "$work/munge/key"
chmod 700 "$work/munge"
chmod 600 "$work/munge/key"
cat > "$SLURM_CONF" << END
ClusterName=check
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$((20000 + RANDOM % 5000))
SlurmdPort=$((25000 + RANDOM % 5000))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
GresTypes=gpu
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 Gres=gpu:2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
END
ln -s /dev/null "$work/gpu0"
ln -s /dev/zero "$work/gpu1"
echo "Name=gpu File=$work/gpu[0-1]" > "$work/gres.conf"
munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge.socket" --pid-file="$work/munge.pid" \
    --log-file="$work/munge.log" --seed-file="$work/munge/seed" > "$work/munged.out" 2>&1 &
wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "FAILED: waited in vain for: $*" >&2; exit 1; }
        sleep 0.5
    done
}
wait_for 10 test -S "$work/munge.socket"
slurmctld -D > "$work/slurmctld.out" 2>&1 &
wait_for 20 sinfo
slurmd -D > "$work/slurmd.out" 2>&1 &
node_is() { sinfo --noheader --format %T | grep -qx "$1"; }
wait_for 30 node_is idle

# --- the checks --------------------------------------------------------------------------------------------------------
cd "$work"
PYTHONPATH=$project:${PYTHONPATH:-} OMP_NUM_THREADS=1 "$python" - << 'END'
"""The tests' tiny CLIP and images, and an experiment of two runs of 4 epochs, long ones and one that fails."""
import json
from pathlib import Path

from tests import tiny_run

tiny_run.make_inputs(Path())
words = tiny_run.arguments(Path().resolve(), "x")
for flag in ("--output-dir", "--exp-name", "--trainer", "--epochs"):
    del words[words.index(flag):words.index(flag) + 2]
for name, epochs, levels in (("short", 4, {"LaFTer": [], "staged": ["--multi_layer_prompt"]}),
                             ("long", 40, {"long": []}), ("preempted", 40, {"preempted": []}),
                             ("several", 4, {"several": []}),
                             ("broken", 4, {"broken": ["--dual_task"]})):
    Path(f"{name}.yaml").write_text(json.dumps({"output": f"runs/{name}", "options": [*words, "--epochs", str(epochs)],
                                                "axes": {"method": levels}}), encoding="utf-8")
END
later() { exec "$python" "$project/scripts/compare.py" "$1.yaml" --slurm --slurm-cpus 1 "${@:2}"; }  # with &
compare() { (later "$@"); }
right() { echo "ok: $*"; }
wrong() { echo "FAILED: $*" >&2; tail -n 20 "$work"/*.out "$work"/runs/*/slurm/*.err >&2 || true; exit 1; }
queued() { squeue --me --array --noheader --format "%i %T"; }
is_queued() { queued | grep -q "$1"; }
epochs() { find "runs/$1" -name metrics.jsonl -exec cat {} + | grep -o '^{"epoch": [0-9]*' | grep -o '[0-9]*$'; }
in_order() { [ "$(epochs "$1")" = "$(seq 0 "$2")" ]; }
starts() { find "runs/$1" -name "*.log" -exec grep -c '^\$ ' {} +; }

scontrol update nodename="$(hostname -s)" state=drain reason="two calls are to find it busy"
later short --slurm-gpus 0 > first.txt 2>&1 & first=$!
wait_for 400 is_queued _1
later short --slurm-gpus 0 > second.txt 2>&1 & second=$!
wait_for 400 grep handed second.txt
scontrol update nodename="$(hostname -s)" state=resume
wait $first || wrong "$(cat first.txt)"
wait $second || wrong "$(cat second.txt)"
grep -q "runs: 2 handed to SLURM, 0 already" first.txt && grep -q "runs: 0 handed to SLURM, 2 already" second.txt ||
    wrong "$(cat first.txt second.txt)"
in_order short/data/LaFTer 4 && in_order short/data/MultiLayerLaFTer 4 && test -f runs/short/report.html ||
    wrong "two runs: $(epochs short | tr '\n' ' ')"
compare short --slurm-gpus 0 > third.txt 2>&1 && ! grep -q handed third.txt || wrong "$(cat third.txt)"
right "two runs as one array; a second call waits for them, a third finds them finished"

compare several --slurm-gpus 2 > several.txt 2>&1 && in_order several 4 &&
    find runs/several -name "*.log" -exec grep -q -- "--nproc-per-node 2" {} + || wrong "$(cat several.txt)"
right "one run on two (pretended) GPUs"

if compare broken --slurm-gpus 0 > broken.txt 2>&1; then wrong "a broken run passes for a whole one"; fi
grep -q "failed: .*broken.*error: a dual task generates distributions on an emotion circle" broken.txt ||
    wrong "$(cat broken.txt)"
right "a run that fails is told: $(grep '^failed: .*job' broken.txt)"

later long --slurm-gpus 0 --slurm-time 5 > long.txt 2>&1 & long=$!
later preempted --slurm-gpus 0 --slurm-cpus 2 > preempted.txt 2>&1 & preempted=$!
has_rows() { [ "$(epochs "$1" | wc -l)" -gt 3 ]; }
wait_for 400 has_rows long
scancel --signal USR2 "$(cat runs/long/data/LaFTer/clip/*.job)"  # as SLURM does 90 seconds before the end
wait_for 400 has_rows preempted
kill -TERM $preempted
wait $preempted && wrong "what was interrupted passes for finished"
grep -q "the jobs stay in the queue" preempted.txt || wrong "$(cat preempted.txt)"
sbatch --partition high --cpus-per-task 3 --output /dev/null --wrap "sleep 5" > /dev/null
compare preempted --slurm-gpus 0 > preempted2.txt 2>&1 || wrong "$(cat preempted2.txt)"
grep -q "runs: 0 handed to SLURM, 1 already" preempted2.txt && in_order preempted 40 ||
    wrong "$(cat preempted2.txt; epochs preempted | tail -n 3)"
[ "$(starts preempted)" -gt 1 ] && grep -rq "saved epoch" runs/preempted && grep -rq "resumed after" runs/preempted ||
    wrong "the preempted run did not save and go on: $(starts preempted) starts"
right "a preempted run saves and goes on, also when compare.py was interrupted: $(starts preempted) starts"
wait $long || wrong "$(cat long.txt)"
in_order long 40 && [ "$(starts long)" -gt 1 ] && grep -rq "resumed after" runs/long ||
    wrong "the long run: $(starts long) starts"
right "a run that needs longer than its job's time goes on: $(starts long) starts"

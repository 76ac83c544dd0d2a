#!/usr/bin/env bash
# Where the CPU time of a running release binary goes: perf record, then a flame graph.
#
#   perf/profile.sh build              the release binary with frame pointers, in target/profiling/release
#   perf/profile.sh PID [SECONDS]      samples process PID (20 s) while you load it, with perf/load.sh say
#
# Writes perf.data, stacks.folded and flame.svg to target/profiling/PID and prints the functions and the kinds of
# thread with the most samples. The clock is sampled (cpu-clock), not a hardware counter: virtual machines often
# have none. Frame pointers, not DWARF: unwinding copies of the stack costs the server more than what is measured;
# a binary built without them still profiles, with short user stacks.
#
# Needs perf (Debian: linux-perf) and python3; kernel.perf_event_paranoid at most 1, or root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'profile: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' perf/profile.sh; }

case "${1-}" in
    build)
        RUSTFLAGS="${RUSTFLAGS-} -Cforce-frame-pointers=yes" \
            exec cargo build --release --locked --workspace --bins --target-dir target/profiling
        ;;
    '' | -h | --help) usage; exit 0 ;;
    *[!0-9]*) usage >&2; exit 2 ;;
esac
pid=$1 seconds=${2:-20}
[[ $seconds =~ ^[1-9][0-9]{0,3}$ ]] || fail "not a number of seconds between 1 and 9999: $seconds"
[ -d "/proc/$pid" ] || fail "there is no process $pid"
command -v perf > /dev/null || fail 'perf is missing: apt-get install linux-perf'
command -v python3 > /dev/null || fail 'python3 is missing: apt-get install python3-minimal'
paranoid=$(cat /proc/sys/kernel/perf_event_paranoid)
if [ "$(id -u)" -ne 0 ] && [ "$paranoid" -gt 1 ]; then
    fail "kernel.perf_event_paranoid is $paranoid: run as root, or \`sysctl kernel.perf_event_paranoid=1\`"
fi

out=target/profiling/$pid
mkdir -p "$out"
printf 'sampling process %s for %s s\n' "$pid" "$seconds"
# An odd frequency, so that samples do not beat with timers.
perf record --quiet --event cpu-clock --freq 997 --call-graph fp --pid "$pid" --output "$out/perf.data" \
    -- sleep "$seconds" || fail 'perf record failed; its words are above'
perf script --input "$out/perf.data" --fields comm,ip,sym --no-inline 2> "$out/perf-script.log" \
    | python3 perf/flamegraph.py "$out/stacks.folded" "$out/flame.svg" || fail "no flame graph; see $out/perf-script.log"
printf '\nflame graph: %s (open in a browser; click to zoom)\n' "$out/flame.svg"

#!/usr/bin/env bash
# Load with wrk (Debian package `wrk`): single events over keep-alive connections, closed loop, no pipelining.
#
#   MILLRACE_API_KEY=mr_… perf/load.sh [CONNECTIONS [SECONDS [THREADS]]]      (64, 30, one a core)
#
# MILLRACE_URL   where the server listens (http://127.0.0.1:3000)
# PAYLOAD_BYTES  size of each payload (200)
#
# Prints wrk's own report and one line RESULT {…} with rate and percentiles; exits 1 where any request failed or
# was refused. Use a key of an organisation without rate limit: `millrace org create bench --rate-limit 0`.
set -euo pipefail

case "${1-}" in -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;; esac
connections=${1:-64} seconds=${2:-30} threads=${3:-$(nproc)}
for number in "$connections" "$seconds" "$threads"; do
    [[ $number =~ ^[1-9][0-9]{0,5}$ ]] || { echo "load: not a positive number: $number (see --help)" >&2; exit 2; }
done
command -v wrk > /dev/null || { echo 'load: wrk is missing: apt-get install wrk' >&2; exit 1; }
: "${MILLRACE_API_KEY:?load: set MILLRACE_API_KEY to a key of an organisation without rate limit}"
export MILLRACE_API_KEY
if [ "$threads" -gt "$connections" ]; then threads=$connections; fi
ulimit -n "$(ulimit -Hn)" 2> /dev/null || true

report=$(wrk --threads "$threads" --connections "$connections" --duration "${seconds}s" --timeout 10s --latency \
    --script "$(dirname "${BASH_SOURCE[0]}")/event.lua" "${MILLRACE_URL:-http://127.0.0.1:3000}/api/events")
printf '%s\n' "$report"
grep -q '"accepted":[1-9]' <<< "$report" || { echo 'load: no event was accepted' >&2; exit 1; }
grep -q '"refused":0,.*"connect_errors":0,"read_errors":0,"write_errors":0,"timeouts":0}' <<< "$report" || {
    echo 'load: some requests were refused or failed' >&2
    exit 1
}

"""The axum + sqlx baseline of `perf/compare`: builds it, finds its best pool, measures it.

It gets the same requests from the same generator as Millrace, and stores in the same table of the same Postgres.
"""

import os

import harness
from harness import BUILD_SECONDS, ROOT, Failed, micros, process, run, say, table, thread_seconds, wrk

MANIFEST = ROOT / "perf/axum_sqlx/Cargo.toml"
POOL_SIZES = [10, 20, 50, 80]  # at most what tuning/postgresql.conf leaves


def build(args):
    """A crate of its own, with a target directory of its own under Millrace's."""
    target = harness.target_directory() / "axum_sqlx"
    if not args.no_build:
        say("building the axum + sqlx baseline")
        run(["cargo", "build", "--release", "--locked", "--manifest-path", MANIFEST, "--target-dir", target], BUILD_SECONDS)
    return target / "release/axum_sqlx"


def best_pool(args, binary, postgres, key, work):
    """The number of connections with which it stores most: every machine has its own."""
    rates = {}
    for size in POOL_SIZES:
        rates[size] = measure(args, binary, postgres, key, work, max(args.connections), {"size": size}, args.yardstick_duration)
    best = max(rates, key=lambda size: rates[size]["stored_per_second"])
    return {"size": best, "tried": {size: result["stored_per_second"] for size, result in rates.items()}}


def measure(args, binary, postgres, key, work, connections, pool, seconds=None):
    """One run on an empty table. What was answered 202 is committed, so there is nothing to drain."""
    postgres.fresh()
    port, log = harness.free_port(), work / "axum_sqlx.log"
    env = os.environ | {"DATABASE_URL": postgres.url, "POOL_SIZE": str(pool["size"])}
    with process([binary, f"127.0.0.1:{port}"], log, env=env) as child:
        harness.wait_for("the baseline", lambda: "ready" in log.read_text(), child, log)
        wrk(args, f"http://127.0.0.1:{port}", connections, 1, key)
        rows = int(postgres.sql("SELECT count(*) FROM events"))
        server, backend = sum(thread_seconds(child.pid).values()), harness.postgres_seconds(postgres.pid)
        result = wrk(args, f"http://127.0.0.1:{port}", connections, seconds or args.duration, key)
        result["server_cpu_seconds"] = round(sum(thread_seconds(child.pid).values()) - server, 2)
        result["postgres_cpu_seconds"] = round(harness.postgres_seconds(postgres.pid) - backend, 2)
        if child.poll() is not None:
            raise Failed(f"the baseline ended by itself:\n{log.read_text()[-2000:]}")
    log.unlink()
    result["stored"] = int(postgres.sql("SELECT count(*) FROM events")) - rows
    result["stored_per_second"] = round(result["stored"] / result["seconds"])
    # wrk counts the answers it read; up to one a connection was on its way when it stopped, at either run's end.
    result["is_stored"] = abs(result["stored"] - result["accepted"]) <= 2 * connections
    say(f"axum + sqlx, pool of {pool['size']}, {connections} connections: {result['stored_per_second']:,} stored/s, p99 {result['p99_ms']} ms")
    return result | {"pool": pool["size"]}


def lines(facts):
    if not facts.get("baseline"):
        return []
    tried = ", ".join(f"{size}: {rate:,}/s" for size, rate in facts["baseline_pool"]["tried"].items())
    header = ["connections", "stored/s", "p50 ms", "p99 ms", "not 2xx", "server CPU µs", "Postgres CPU µs", "wrk CPU µs"]
    rows = [
        [r["connections"], f"{r['stored_per_second']:,}", r["p50_ms"], r["p99_ms"], r["refused"]]
        + [micros(r[f"{who}_cpu_seconds"], r["stored"]) for who in ("server", "postgres", "wrk")]
        for r in facts["baseline"]
    ]
    return [f"## (e) axum + sqlx, an insert a request (pool sizes tried: {tried})", "", table(header, rows), ""]

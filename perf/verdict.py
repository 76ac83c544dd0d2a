"""What a run of `perf/compare` says: the bound that its parts put together allow, and each aim against what was measured.

Everything is computed from one run's facts, medians over its rounds, at the largest number of connections. An aim whose
parts were not measured is left out.
"""

import os
import statistics

import plot
from harness import table

MEMORY_AIM = 160_000


def lines(facts):
    """The sections that a report opens with."""
    out = []
    parts, bounds = bound(facts)
    if bounds:
        out += ["## The bound", ""]
        out += ["What an event costs at least, in µs of CPU, each part measured alone in this run:", ""]
        out += [table(["part", "measured as", "µs"], [[name, how, f"{cost:.2f}"] for name, how, cost in parts]), ""]
        cores = os.cpu_count()
        for durability, limit in bounds.items():
            stored = rate(facts, durability)
            made_of = "all four" if durability == "fsync" else "all but the journal"
            out += [f"- `{durability}`: {cores} cores / ({made_of}) = {limit:,.0f} events/s; stored {stored:,.0f}/s = **{stored / limit:.0%} of the bound**"]
        out += [
            "",
            "It is a bound on this machine with this load generator, not on the server: the cores are all there is, and each event "
            "needs these parts. What Millrace itself adds (keys, validation, queue, batches, ids) and what the parts cost each other "
            "in caches and context switches is not in it, so it cannot be reached, only approached. The journal's part is the CPU of its "
            "own threads; the kernel's block layer is not in it.",
            "",
        ]
    judged = aims(facts)
    if judged:
        rows = [[aim, measured, "met" if is_met else "**missed**"] for aim, measured, is_met in judged]
        out += ["## The aims", "", table(["aim", "measured", ""], rows), ""]
    return out


# ---- figures out of the facts ---------------------------------------------------------------------------------


def most_connections(facts):
    return max((r["connections"] for name in ("millrace", "baseline", "responder") for r in facts.get(name) or []), default=0)


def median(results, figure):
    found = [figure(r) for r in results]
    return statistics.median(found) if found else None


def of_millrace(facts, durability, is_sustained=False):
    wanted = (durability, most_connections(facts), is_sustained)
    return [r for r in facts.get("millrace") or [] if (r["durability"], r["connections"], r["is_sustained"]) == wanted]


def rate(facts, durability):
    return median(of_millrace(facts, durability), lambda r: r["stored_per_second"])


def responders(facts, party):
    return [r for r in facts.get("responder") or [] if r["party"] == party and r["connections"] == most_connections(facts)]


def micros(seconds, events):
    return seconds / max(1, events) * 1e6


def shard_micros(facts, durability):
    return median(of_millrace(facts, durability), lambda r: micros(r["cpu_seconds"]["server"].get("shard", 0.0), r["ingested"]))


def journal_micros(facts):
    def spent(result):
        threads = result["cpu_seconds"]["server"].items()
        return micros(sum(seconds for kind, seconds in threads if kind.startswith("journal")), result["stored"])

    return median(of_millrace(facts, "fsync"), spent)


def bound(facts):
    """([(part, how it was measured, µs)], {durability: events/s}); empty where a part is missing."""
    bare = responders(facts, "may_minihttp")
    rows = {}
    for r in facts.get("ceiling") or []:
        rows.setdefault(r["way"], []).append(micros(r["postgres_cpu_seconds"], r["rows"]))
    journal = journal_micros(facts)
    if not bare or not rows or rate(facts, "memory") is None or journal is None:
        return [], {}
    way, inserting = min(((way, statistics.median(costs)) for way, costs in rows.items()), key=lambda found: found[1])
    parts = [
        ("load generator", "wrk's CPU a request against bare may_minihttp", median(bare, lambda r: micros(r["wrk_cpu_seconds"], r["accepted"]))),
        ("HTTP", "bare may_minihttp's CPU a request", median(bare, lambda r: micros(r["server_cpu_seconds"], r["accepted"]))),
        ("Postgres", f"its CPU a row, raw inserts into the real table by {way}, the cheapest way", inserting),
        ("journal", "its threads' CPU an event in the `fsync` runs", journal),
    ]
    costs = [cost for _, _, cost in parts]
    cores = os.cpu_count()
    return parts, {"memory": cores * 1e6 / sum(costs[:3]), "fsync": cores * 1e6 / sum(costs)}


def aims(facts):
    """[(aim, what was measured, whether it is met)], those of which every part was measured."""
    out = []
    _, bounds = bound(facts)
    memory, fsync = rate(facts, "memory"), rate(facts, "fsync")
    connections = most_connections(facts)
    sustained = {d: median(of_millrace(facts, d, True), lambda r: r["stored_per_second"]) for d in ("memory", "fsync")}
    if memory:
        best = sustained["memory"] or memory
        said = f"{memory:,.0f}/s" + (f"; {sustained['memory']:,.0f}/s for {of_millrace(facts, 'memory', True)[0]['duration']} s" if sustained["memory"] else "")
        share = f", {best / bounds['memory']:.0%} of the bound" if bounds else ""
        is_met = best >= MEMORY_AIM or bool(bounds) and best >= 0.9 * bounds["memory"]
        out.append((f"`memory` stores ≥ {MEMORY_AIM:,}/s, or ≥ 90 % of the bound, {connections} connections", said + share, is_met))
    if memory and fsync:
        shares = [fsync / memory]
        said = f"{shares[0]:.0%}"
        if all(sustained.values()):
            shares.append(sustained["fsync"] / sustained["memory"])
            said += f"; {shares[1]:.0%} sustained"
        share = f"; {(sustained['fsync'] or fsync) / bounds['fsync']:.0%} of the bound" if bounds else ""
        is_met = min(shares) >= 0.9 or bool(bounds) and (sustained["fsync"] or fsync) >= 0.9 * bounds["fsync"]
        out.append((f"`fsync` ≥ 90 % of `memory`, or of the bound, {connections} connections", said + share, is_met))
    bare = median(responders(facts, "may_minihttp"), lambda r: micros(r["server_cpu_seconds"], r["accepted"]))
    for durability in ("memory", "fsync"):
        ours = shard_micros(facts, durability)
        if bare and ours:
            said = f"{ours:.2f} / {bare:.2f} µs = {ours / bare:.2f}"
            out.append((f"a shard's CPU an event ≤ 1.35 × a bare may_minihttp request, `{durability}`", said, ours <= 1.35 * bare))
    theirs = median([r for r in facts.get("baseline") or [] if r["connections"] == connections], lambda r: r["stored_per_second"])
    if fsync and theirs:
        out.append(("`fsync` stores ≥ 10 × axum + sqlx", f"{fsync:,.0f} / {theirs:,.0f} = {fsync / theirs:.1f} ×", fsync >= 10 * theirs))
    p99 = {}
    for r in facts.get("latency") or []:
        p99.setdefault(r["party"], []).append(r["p99_ms"])
    if {"may_minihttp", "fsync"} <= p99.keys():
        durable, answered = statistics.median(p99["fsync"]), statistics.median(p99["may_minihttp"])
        said = f"{durable:.3f} / {answered:.3f} ms = {durable / answered:.1f} ×"
        aim = f"p99 at {facts['latency'][0]['rate']:,}/s, `fsync` ≤ 3 × the bare may_minihttp responder"
        out.append((aim, said, durable <= 3 * answered))
    return out


# ---- the plot -------------------------------------------------------------------------------------------------


def plots(facts):
    connections = most_connections(facts)
    rows = []
    for party in ("may_minihttp", "monoio"):
        answered = median(responders(facts, party), lambda r: r["accepted_per_second"])
        if answered:
            rows.append((f"bare 202, {party}", answered, f"{answered:,.0f}/s, nothing stored", 5))
    for way in ("copy", "unnest"):
        inserted = median([r for r in facts.get("ceiling") or [] if r["way"] == way], lambda r: r["rows_per_second"])
        if inserted:
            rows.append((f"raw inserts, {way}", inserted, f"{inserted:,.0f}/s, no HTTP", 5))
    for durability, limit in bound(facts)[1].items():
        rows.append((f"bound, {durability}", limit, f"{limit:,.0f}/s, computed", 4))
    for durability in ("memory", "os", "fsync"):
        stored = rate(facts, durability)
        if stored:
            rows.append((f"Millrace, {durability}", stored, f"{stored:,.0f}/s", 0))
    theirs = median([r for r in facts.get("baseline") or [] if r["connections"] == connections], lambda r: r["stored_per_second"])
    if theirs:
        rows.append(("axum + sqlx", theirs, f"{theirs:,.0f}/s", 1))
    if not rows:
        return {}
    cpu = facts["machine"]["cpu"]
    note = f"{connections} connections, {facts['payload_bytes']} B, load generator and Postgres on the same cores: {cpu}"
    return {"": plot.bars("Events stored a second", rows, note)}

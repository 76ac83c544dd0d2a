"""What the measurements share: a throwaway Postgres, a server, CPU accounting, scrapes, the facts of the machine.

Used by the commands beside it, from the same directory. Every step has a deadline; whatever was started is stopped by
its pid, also on an error or Ctrl-C. Needs Debian's postgresql (programs only, no running cluster). As root, Postgres
runs as the user postgres.
"""

import contextlib
import datetime
import glob
import json
import os
import pathlib
import platform
import re
import resource
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 60
DRAIN_SECONDS = 60
STOP_SECONDS = 45  # longer than the server's shutdown_grace
BUILD_SECONDS = 1800
GROWING_TABLES = ["events", "deliveries", "delivery_queue", "failed_deliveries", "delivery_attempts"]


class Failed(Exception):
    """The run cannot go on; the text says what to do."""


# ---- processes ------------------------------------------------------------------------------------------------


def run(args, timeout=60, **options):
    """Runs a program to its end and returns its standard output."""
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=timeout, **options)
    if done.returncode != 0:
        raise Failed(f"{args[0]} exited with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


@contextlib.contextmanager
def process(args, log, stop_signal=signal.SIGTERM, **options):
    """A child of ours: stopped by its pid when the block ends, however it ends."""
    with open(log, "ab") as out:
        child = subprocess.Popen([str(a) for a in args], stdin=subprocess.DEVNULL, stdout=out, stderr=out, **options)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(stop_signal)
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait_for(what, check, child, log, seconds=READY_SECONDS):
    """Polls `check` until it returns something true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        if child.poll() is not None:
            break
        time.sleep(0.02)
    tail = pathlib.Path(log).read_text(errors="replace")[-3000:]
    raise Failed(f"{what}: not within {seconds} s (exit code {child.poll()})\n{tail}")


def until(what, check, seconds, every=0.05):
    """Polls `check` until it returns something true; returns that."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(every)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- CPU time -------------------------------------------------------------------------------------------------


def stat_fields(path):
    """(name, fields from the state on) of a stat file in /proc, or None where the task is gone."""
    try:
        text = pathlib.Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    return name, text[text.rindex(")") + 2 :].split()


def thread_seconds(pid):
    """CPU seconds of a process by kind of thread (`shard-0` is a `shard`); `other` is what is left of the whole."""
    whole = stat_fields(f"/proc/{pid}/stat")
    if whole is None:
        raise Failed(f"process {pid} is gone")
    kinds = {}
    for path in glob.glob(f"/proc/{pid}/task/*/stat"):
        found = stat_fields(path)
        if found:
            kind = re.sub(r"-?\d+$", "", found[0])
            kinds[kind] = kinds.get(kind, 0.0) + (int(found[1][11]) + int(found[1][12])) / TICK
    total = (int(whole[1][11]) + int(whole[1][12])) / TICK
    kinds["ended threads"] = max(0.0, total - sum(kinds.values()))
    return kinds


def thread_halves(pid):
    """CPU seconds of a process by kind of thread, as [user, system]. Threads that have ended are in none."""
    kinds = {}
    for path in glob.glob(f"/proc/{pid}/task/*/stat"):
        found = stat_fields(path)
        if found:
            halves = kinds.setdefault(re.sub(r"-?\d+$", "", found[0]), [0.0, 0.0])
            halves[0] += int(found[1][11]) / TICK
            halves[1] += int(found[1][12]) / TICK
    return kinds


def process_halves(pid):
    """CPU seconds of a whole process, as [user, system]."""
    found = stat_fields(f"/proc/{pid}/stat")
    if found is None:
        raise Failed(f"process {pid} is gone")
    return [int(found[1][11]) / TICK, int(found[1][12]) / TICK]


def thread_switches(pid):
    """Context switches by kind of thread, as [voluntary, involuntary]."""
    kinds = {}
    for path in glob.glob(f"/proc/{pid}/task/*/status"):
        try:
            fields = dict(re.findall(r"^(\w+):\s+(.*)$", pathlib.Path(path).read_text(), re.MULTILINE))
        except (FileNotFoundError, ProcessLookupError):
            continue
        counts = kinds.setdefault(re.sub(r"-?\d+$", "", fields["Name"]), [0, 0])
        counts[0] += int(fields["voluntary_ctxt_switches"])
        counts[1] += int(fields["nonvoluntary_ctxt_switches"])
    return kinds


def postgres_seconds(postmaster):
    """CPU seconds of a Postgres: the postmaster, its ended children, and the living ones."""
    name_fields = stat_fields(f"/proc/{postmaster}/stat")
    total = sum(int(ticks) for ticks in name_fields[1][11:15])
    for path in glob.glob("/proc/[0-9]*/stat"):
        found = stat_fields(path)
        if found and int(found[1][1]) == postmaster:
            total += int(found[1][11]) + int(found[1][12])
    return total / TICK


def machine_seconds():
    """(busy, stolen) CPU seconds of the whole machine since boot."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, open("/proc/stat").readline().split()[1:9])
    return (user + nice + system + irq + softirq) / TICK, steal / TICK


def memory_mib(pid, name="VmRSS"):
    """What a process occupies now, or with `VmHWM` the most it ever did."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return round(int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024)


def difference(after, before):
    return {key: round(after[key] - before.get(key, 0.0), 2) for key in after if after[key] - before.get(key, 0.0) >= 0.01}


# ---- Postgres -------------------------------------------------------------------------------------------------


class Postgres:
    """A cluster of our own in a temporary directory, on loopback, with a random password."""

    def __init__(self, stack, args):
        bins = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
        if not bins:
            raise Failed("Postgres is missing: apt-get install postgresql (only its programs are used)")
        self.bin = pathlib.Path(bins[-1])
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="millrace-perf-", dir=args.postgres_dir))
        stack.callback(shutil.rmtree, self.home, ignore_errors=True)
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(self.home, "postgres", "postgres")
        self.port, self.password = free_port(), secrets.token_hex(16)
        password_file = self.home / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o600)
        if self.user:
            shutil.chown(password_file, "postgres", "postgres")
        data = self.home / "data"
        initdb = [self.bin / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password_file}"]
        run([*initdb, "-E", "UTF8", "--locale=C.UTF-8"], cwd=self.home, **self.user)
        conf = "" if args.postgres_conf == "none" else pathlib.Path(args.postgres_conf).read_text()
        with open(data / "postgresql.conf", "a") as out:
            out.write(f"{conf}\nlisten_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n")
        self.url = f"postgres://postgres:{self.password}@127.0.0.1:{self.port}/postgres"
        self.env = os.environ | {"PGPASSWORD": self.password}
        self.running = stack.enter_context(contextlib.ExitStack())
        self.start()
        self.settings = {
            name: self.sql(f"SHOW {name}")
            for name in ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")
        }

    def start(self):
        log = self.home / "log"
        command = [self.bin / "postgres", "-D", self.home / "data"]
        child = self.running.enter_context(process(command, log, signal.SIGINT, cwd=self.home, **self.user))
        self.pid = child.pid
        wait_for("Postgres", self.answers, child, log)

    def stop(self):
        self.running.close()

    def processes(self):
        """The postmaster and its children."""
        pids = [self.pid]
        for path in glob.glob("/proc/[0-9]*/stat"):
            found = stat_fields(path)
            if found and int(found[1][1]) == self.pid:
                pids.append(int(path.split("/")[2]))
        return pids

    def signal(self, number):
        """To all of its processes: stopped, it is a database that does not answer."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def answers(self):
        try:
            return self.sql("SELECT 1", timeout=5) == "1"
        except (Failed, subprocess.TimeoutExpired):
            return False

    def sql(self, text, timeout=120):
        psql = [self.bin / "psql", "-XqAt", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-d", "postgres"]
        return run([*psql, "-v", "ON_ERROR_STOP=1", "-c", text], timeout, env=self.env).strip()

    def fresh(self):
        """Every measurement starts with empty tables and no checkpoint due."""
        names = ", ".join(f"('public.{name}')" for name in GROWING_TABLES)
        found = self.sql(f"SELECT string_agg(name, ', ') FROM (VALUES {names}) AS growing (name) WHERE to_regclass(name) IS NOT NULL")
        if found:
            self.sql(f"TRUNCATE {found}")
        self.sql("CHECKPOINT")


# ---- the server and its load ----------------------------------------------------------------------------------


@contextlib.contextmanager
def server(args, binaries, postgres, durability, work, more=(), prefix=()):
    """A server that is ready: the child, where it listens, where its ops listener is.

    `more` are arguments for `serve`; `prefix` is put before the command, as `taskset -c 0`.
    """
    log = work / "millrace.log"
    env = os.environ | {
        "DATABASE_URL": postgres.url,
        "MILLRACE_LISTEN": "127.0.0.1:0",
        "MILLRACE_OPS_LISTEN": "127.0.0.1:0",
        "MILLRACE_DATA_DIR": str(work / "millrace-data"),
        "MILLRACE_DURABILITY": durability,
    }
    with process([*prefix, binaries / "millrace", "serve", *args.serve_args, *more], log, env=env, cwd=work) as child:
        listen, ops = wait_for("millrace", lambda: ready_line(log), child, log)
        yield child, listen, ops
    log.unlink()


def ready_line(log):
    """(listen, ops) once the server has said it is ready."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    found = re.search(r"^.*\bready\b.*\blisten=\"?([\d.]+:\d+)\"?.*\bops=\"?([\d.]+:\d+)", text, re.MULTILINE)
    return found.groups() if found else None


class Metrics:
    """One scrape: sums by name, histogram buckets aside, and each series by name and labels."""

    def __init__(self, ops):
        with urllib.request.urlopen(f"http://{ops}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        self.values, self.series = {}, {}
        for line in text.splitlines():
            found = re.match(r"([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)", line)
            if found and not found[1].endswith("_bucket"):
                self.values[found[1]] = self.values.get(found[1], 0.0) + float(found[3])
                self.series[found[1] + (found[2] or "")] = float(found[3])

    def __getitem__(self, name):
        if name not in self.values:
            raise Failed(f"/metrics has no {name}")
        return self.values[name]


def buckets(ops, name):
    """A histogram by now: how many were at most each edge and above the one before, by edge; summed over its series."""
    with urllib.request.urlopen(f"http://{ops}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    total = {}
    for edge, count in re.findall(rf'^{name}_bucket\{{.*?le="([^"]+)".*?\}} (\S+)', text, re.MULTILINE):
        total[float(edge)] = total.get(float(edge), 0.0) + float(count)
    edges = sorted(total)
    return {edge: total[edge] - (total[edges[i - 1]] if i else 0.0) for i, edge in enumerate(edges)}


class Wakefulness:
    """How late a thread of ours that sleeps and wakes up all the time was, at most, while the block ran."""

    def __enter__(self):
        self.worst, self.is_over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        began = time.monotonic()
        while not self.is_over.wait(0.02):
            now = time.monotonic()
            self.worst, began = max(self.worst, now - began - 0.02), now

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()

    def late_ms(self):
        return round(self.worst * 1e3, 1)


def wrk(args, url, connections, duration, key="", script="event.lua", more_env=None):
    """Runs the load; returns its RESULT, with the CPU seconds it took itself."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["wrk", "-t", min(args.wrk_threads, connections), "-c", connections, "-d", f"{duration}s", "--timeout", "10s"]
    command += ["--latency", "-s", ROOT / "perf" / script, f"{url}/api/events"]
    env = os.environ | {"MILLRACE_API_KEY": key, "PAYLOAD_BYTES": str(args.payload_bytes)} | (more_env or {})
    output = run(command, duration + 60, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise Failed(f"wrk printed no result:\n{output}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(lines[0].removeprefix("RESULT ")) | {"connections": connections, "wrk_cpu_seconds": round(cpu, 2)}


def bench(binaries, listen, key, rate, seconds, connections=64, prefix=(), more=()):
    """Offers `rate` events a second with `millrace bench`, or as many as are answered (`max`); returns its figures."""
    command = [*prefix, *bench_command(binaries, listen, rate, seconds, connections), *more]
    return bench_figures(run(command, seconds + 60, env=os.environ | {"MILLRACE_API_KEY": key}))


def bench_command(binaries, listen, rate, seconds, connections=64):
    """The command for so many seconds after one of warming up. `listen`: an address, or a URL; rate 0 is `max`."""
    url = listen if "://" in listen else f"http://{listen}"
    command = [binaries / "millrace", "bench", url, "--json", "--rate", rate or "max", "--duration", f"{seconds}s"]
    return [*command, "--warmup", "1s", "--connections", connections]


def bench_figures(output):
    """Latencies in milliseconds from when each request was due, `goodput` in events a second, and `sent_accepted`, every
    event that was accepted, those of the warming up included."""
    found = json.loads(output)["runs"][0]
    result = {f"{name}_ms": value for name, value in found["latency_ms"].items()}
    result |= {name: found[name] for name in ("rate", "seconds", "accepted", "refused", "unsent", "errors", "cpu_us_per_request")}
    result["goodput"] = round(found["accepted_per_second"])
    result["answered_per_second"] = round(found["requests"] / found["seconds"])
    result["sent_accepted"] = found["accepted"] + found["warmup_accepted"]
    return result


@contextlib.contextmanager
def responder(binary, work, prefix=()):
    """A bare responder that is ready: the child and where it listens."""
    port, log = free_port(), work / "responder.log"
    with process([*prefix, binary, f"127.0.0.1:{port}"], log) as child:
        wait_for("the responder", lambda: "ready" in log.read_text(), child, log)
        yield child, f"127.0.0.1:{port}"
    log.unlink()


def drained(ops):
    """Waits until the server has committed whatever it accepted; returns how long that took."""
    began = time.monotonic()
    while True:
        now = Metrics(ops)
        settled = now["store_events_stored_total"] + now["store_events_quarantined_total"]
        if now["event_queue_size"] == 0 and settled >= now["events_ingested_total"]:
            return time.monotonic() - began
        if time.monotonic() - began > DRAIN_SECONDS:
            raise Failed(f"accepted events were not stored {DRAIN_SECONDS} s after the load ended")
        time.sleep(0.01)


# ---- the report -----------------------------------------------------------------------------------------------


def machine(args, postgres):
    lscpu = dict(re.findall(r"^([^:\n]+):\s+(.*)$", run(["lscpu"], env=os.environ | {"LC_ALL": "C"}), re.MULTILINE))
    facts = {
        "cpu": f"{lscpu.get('Model name', '?')}, {os.cpu_count()} cores online",
        "virtualization": lscpu.get("Hypervisor vendor", "none seen"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "rustc": run(["rustc", "--version"]).strip(),
        "load_before": os.getloadavg()[0],
        "lscpu": lscpu,
    }
    if postgres:
        facts["postgres"] = postgres.settings | {"conf": os.path.relpath(args.postgres_conf, ROOT) if args.postgres_conf != "none" else "none"}
        facts["postgres_filesystem"] = run(["stat", "-f", "-c", "%T", postgres.home]).strip()
    return facts


def machine_lines(facts):
    """The same as the first lines of a report."""
    out = [f"- {facts['cpu']}; {facts['memory_gib']} GiB; virtualization: {facts['virtualization']}; Linux {facts['kernel']}"]
    out += [f"- {facts['rustc']}; load average before the run {facts['load_before']:.2f}"]
    if "postgres" in facts:
        settings = ", ".join(f"{name} {value}" for name, value in facts["postgres"].items())
        out += [f"- Postgres on {facts['postgres_filesystem']}: {settings}"]
    return out


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def micros(seconds, events):
    return f"{seconds / max(1, events) * 1e6:.2f}"


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- the run --------------------------------------------------------------------------------------------------


def shared_arguments(parser):
    """What every measurement can be told."""
    parser.add_argument("--wrk-threads", type=int, default=os.cpu_count())
    parser.add_argument("--payload-bytes", type=int, default=200)
    parser.add_argument("--postgres-conf", default=str(ROOT / "tuning/postgresql.conf"), help="a file, or none")
    parser.add_argument("--postgres-dir", default="/var/tmp", help="where its data and the journal go; not a tmpfs, where fsync costs nothing")
    parser.add_argument("--serve-args", type=str.split, default=[], help="more arguments for `millrace serve`")
    parser.add_argument("--no-build", action="store_true", help="use the release binaries as they are")
    parser.add_argument("--no-write", action="store_true", help="print the report only")


def build(args, programs=()):
    """Builds the server and these programs of `src/bin`; returns the directory of the binaries."""
    if not args.no_build:
        say("building the release profile")
        # Two commands: in one, features that only the programs need would be built into the server.
        run(["cargo", "build", "--release", "--locked", "--package", "millrace"], BUILD_SECONDS, cwd=ROOT)
        if programs:
            command = ["cargo", "build", "--release", "--locked", "--package", "millrace-perf"]
            run([*command, *(f"--bin={program}" for program in programs)], BUILD_SECONDS, cwd=ROOT)
    return target_directory() / "release"


def target_directory():
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def work_directory(stack, args):
    """A directory of the run's own, on the disk that is measured."""
    return pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-perf-", dir=args.postgres_dir)))


def store_environment(postgres, work):
    """Where commands of the binary find the store."""
    return os.environ | {"DATABASE_URL": postgres.url, "MILLRACE_DATA_DIR": str(work / "millrace-data")}


def ratio(figure, pairs):
    """After by before, for (before, after) pairs: the median and in brackets the least and the most."""
    ratios = sorted(figure(after) / figure(before) for before, after in pairs)
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"


def run_facts(name, args):
    """What a run is known by."""
    facts = {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"), "commit": commit()}
    return facts | {"command": " ".join([f"perf/{name}", *sys.argv[1:]]), "payload_bytes": args.payload_bytes}


def commit():
    head = run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT).strip()
    return head + ("-dirty" if run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT) else "")


def warn_where_busy(facts):
    if facts["load_before"] > 0.5:
        say(f"warning: load average {facts['load_before']:.2f}; other work will show in the figures")


def keep(args, name, facts, text, plots=None):
    """Prints the report, and writes it, the raw data and the plots ({suffix: SVG}) to `perf` in the target directory."""
    stem = f"{facts['date'][:10]}-{facts['commit']}-{name}"
    plots = {f"{stem}-{suffix}.svg" if suffix else f"{stem}.svg": drawing for suffix, drawing in (plots or {}).items()}
    text += "".join(f"\n![{suffix}]({suffix})\n" for suffix in plots)
    print(text)
    if args.no_write:
        return
    directory = target_directory() / "perf"
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in {f"{stem}.md": text, f"{stem}.json": json.dumps(facts, indent=1) + "\n", **plots}.items():
        (directory / file).write_text(content)
        say(f"written: {directory / file}")


def main(name, measure):
    """Calls `measure` with a stack that everything started is on, and turns its failure into one line."""
    def stop(number, _frame):
        say(f"{name}: stopped by {signal.Signals(number).name}")
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with contextlib.ExitStack() as stack:
            measure(stack)
    except (Failed, subprocess.TimeoutExpired, OSError) as why:
        sys.exit(f"{name}: {why}")
    except KeyboardInterrupt:
        sys.exit(130)

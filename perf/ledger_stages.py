"""Which stage of an event's way a sample belongs to. The rules of `perf/ledger`; stdlib, addr2line.

A rule is a stage and a pattern. User code is asked from the innermost inlined function outwards, each as
`file:function`; the first that any rule knows decides, so that what the standard library does inside the parser is the
parser's. Of the kernel the whole way in is looked at, and the rules are tried in their order: a wake-up inside a send
is part of what sending costs.
"""

import collections
import re
import subprocess

USER = [
    ("allocator", r"/mimalloc[^:]*:|^[^:]*:(_?mi_|__rust_(re|de)?alloc)"),
    ("wiping", r"ingest/wipe\.rs|/zeroize-"),
    ("HTTP: head", r"wire/http\.rs|wire/http/|/httparse-|wire/routes\.rs"),
    ("auth", r"tenant/auth_cache\.rs|/siphasher-|/quick_cache-|ingest/lib\.rs:.*(identify|verify)|ingest/client_identity\.rs"),
    ("rate limit", r"tenant/rate_window\.rs|ingest/lib\.rs:.*admit"),
    ("validate: JSON, event, id", r"ingest/envelope\.rs|wire/json_syntax\.rs|/simd-json-|/value-trait-|/uuid-|/rand[_-]|/sha2-|/(chacha|rand_chacha)|base/event\.rs|ingest/lib\.rs:.*parse"),
    ("journal: frame, pending acks", r"journal/(append|lane|record)\.rs|ingest/pending_acks\.rs|/crc32|crc32c::"),
    ("journal: commit", r"src/journal/(?!queue|shares)"),
    ("hand-off: queue", r"journal/(queue|shares)\.rs|/crossbeam-|ingest/lib\.rs:.*accept"),
    ("answer", r"wire/response\.rs|ingest/connection/answer\.rs|/itoa-|connection\.rs:.*write_answer"),
    ("metrics, clock", r"src/metrics/|base/clock\.rs|time/(unix|mod)\.rs|std/src/time\.rs"),
    ("connection: state", r"ingest/(accept_loop|connection|connection_table|lib|shard|stream|work_budget)\.rs|ingest/connection/"),
    ("runtime: monoio", r"/monoio-|/io-uring-|/flume-|/futures-|/mio-"),
    ("batch: gather, plan", r"src/write/|store/(lib|model|pool|traits)\.rs|src/webhooks/"),
    ("batch: encode, protocol", r"store/|/tokio|/postgres|/bytes-|/r2d2|/mio-"),
]

KERNEL = [
    ("kernel: socket, send (with the peer's receive)", r"io_send$|io_sendmsg|__sys_sendto|__sys_sendmsg|tcp_sendmsg|sock_write_iter"),
    ("kernel: socket, receive", r"io_recv$|io_recvmsg|__sys_recvfrom|__sys_recvmsg|tcp_recvmsg|sock_read_iter"),
    ("kernel: poll, accept, close", r"io_poll|__io_arm_poll|tcp_poll|sock_poll|io_accept|ep_|epoll|inet_release"),
    ("kernel: flush", r"fsync|fdatasync|ext4_sync|vfs_fsync"),
    ("kernel: file write", r"vfs_write|ksys_(p)?write|ext4_file_write"),
    ("kernel: futex", r"futex"),
    ("kernel: eventfd", r"eventfd"),
    ("kernel: sleep", r"nanosleep|hrtimer_nano"),
    ("kernel: scheduler", r"schedule|finish_task_switch|ttwu|try_to_wake_up|sched_yield"),
    ("kernel: memory", r"page_fault|do_user_addr|handle_mm|madvise|mmap|munmap|mprotect"),
    ("kernel: io_uring itself", r"io_uring|io_submit|io_issue|io_cqring|io_run|io_req|tctx_task_work|io_|task_work"),
    ("kernel: interrupts", r"irq|sysvec|apic"),
    ("kernel: entry and exit", r"entry_SYSCALL|syscall|do_syscall|exit_to_user|ret_from_fork|srso|retbleed|swapgs|pv_native|paravirt"),
]

USER = [(stage, re.compile(pattern)) for stage, pattern in USER]
KERNEL = [(stage, re.compile(pattern)) for stage, pattern in KERNEL]
UNCLASSIFIED = "unclassified"


def kind_of(thread):
    """`shard-0` and `shard-1` are shards."""
    return re.sub(r"-?\d+$", "", thread)


def user_stage(frames):
    """The stage of the innermost function that a rule knows."""
    return next((stage for frame in frames for stage, pattern in USER if pattern.search(frame)), None)


def kernel_stage(names):
    """The first rule that knows any function of the way into the kernel."""
    return next((stage for stage, pattern in KERNEL if any(pattern.search(name) for name in names)), None)


def classify(script, binary):
    """Samples by kind of thread, stage and half (user, system), from `perf script`'s text, and the names of the rest."""
    stacks = list(parsed(script))
    places = inlined(binary, {ip for _, frames in stacks for ip, _, dso in frames[:1] if dso.endswith(binary.name)})
    counted = collections.Counter()
    rest = collections.Counter()
    for thread, frames in stacks:
        ip, symbol, dso = frames[0]
        half = "system" if is_kernel(dso) else "user"
        if half == "system":
            stage = kernel_stage([name for _, name, dso in frames if is_kernel(dso)])
        elif "vdso" in dso:
            stage = "metrics, clock"
        elif dso.endswith(binary.name):
            stage = user_stage([*places.get(ip, []), f":{symbol}"])
        else:
            stage = library(symbol)
        if stage is None:
            stage = UNCLASSIFIED
            rest[f"{kind_of(thread)}: {symbol or hex(ip)} ({dso.rsplit('/', 1)[-1]})"] += 1
        counted[kind_of(thread), stage, half] += 1
    rows = [{"thread": kind, "stage": stage, "half": half, "samples": n} for (kind, stage, half), n in counted.items()]
    return {"rows": rows, "unclassified": dict(rest.most_common(40))}


def library(symbol):
    """What a shared library's function is about."""
    if re.search(r"mem(cpy|move|set|cmp)|memchr", symbol):
        return "copying (memcpy, memset, memcmp)"
    if re.search(r"pthread|futex|lock|cond|sem_", symbol):
        return "locks, parking"
    if re.search(r"clock_gettime", symbol):
        return "metrics, clock"
    if re.search(r"syscall|write|send|recv|read|sync|sleep|epoll", symbol):
        return "system call stubs"
    return None


def is_kernel(dso):
    return dso.startswith("[") and "vdso" not in dso


def parsed(script):
    """(thread, frames from the innermost on) of each sample; a frame is (address, symbol, object)."""
    thread, frames = None, []
    for line in [*script.splitlines(), ""]:
        if not line.strip():
            if thread is not None and frames:
                yield thread, frames
            thread, frames = None, []
        elif thread is None:
            thread = line.strip()
        else:
            found = re.match(r"\s*([0-9a-f]+) (.*?)(?:\+0x[0-9a-f]+)? \((.*)\)$", line)
            if found:
                frames.append((int(found[1], 16), found[2], found[3].removesuffix(" (deleted)")))


def inlined(binary, offsets):
    """`file:function` of each place in the program's file, from the innermost inlined function outwards."""
    headers = subprocess.run(["readelf", "-lW", str(binary)], capture_output=True, text=True, timeout=60, check=True).stdout
    offset, address = (int(n, 16) for n in re.search(r"LOAD +(0x[0-9a-f]+) (0x[0-9a-f]+) .* R E ", headers).groups())
    text = "".join(f"{place - offset + address:x}\n" for place in sorted(offsets))
    done = subprocess.run(
        ["addr2line", "-e", str(binary), "-f", "-i", "-C", "-a"], input=text, capture_output=True, text=True, timeout=300, check=True
    )
    places, lines = {}, iter(done.stdout.splitlines())
    current = []
    for line in lines:
        if line.startswith("0x"):
            current = places.setdefault(int(line, 16) - address + offset, [])
        else:
            file = re.sub(r":[0-9?]+( \(discriminator \d+\))?$", "", next(lines))
            current.append(f"{file}:{line}")
    return places

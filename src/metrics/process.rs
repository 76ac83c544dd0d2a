//! The values of the standard `process_*` metrics, read from the kernel at each scrape: four small reads of `/proc`, none
//! of which grows with the process. A value that the kernel does not give is left out of the scrape, never shown as 0.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The kernel's figures about this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProcessSample {
    pub resident_memory_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    /// `None` where there is no limit.
    pub max_fds: Option<u64>,
    pub cpu_seconds: f64,
}

impl ProcessSample {
    pub(super) fn take() -> Self {
        Self {
            resident_memory_bytes: resident_memory_bytes(),
            open_fds: open_fds(),
            max_fds: getrlimit(Resource::Nofile).current,
            cpu_seconds: seconds(ClockId::ProcessCPUTime),
        }
    }
}

fn resident_memory_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open_fds() -> Option<u64> {
    // Since Linux 6.2 the size of the directory is the number of descriptors; before, it is 0 and they are counted.
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        open => Some(open),
    }
}

/// When the process started, in seconds since the Unix epoch, to 10 ms. It reads only files of this process, so that it
/// works in a service that sees no others (`ProcSubset=pid`).
pub(super) fn start_time_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may hold anything, so count from its end:
    // the start time, since boot, is the 22nd field, the 20th after the name.
    let ticks: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let [now, since_boot] = [ClockId::Realtime, ClockId::Boottime].map(seconds);
    Some(now - since_boot + ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_kernel_tells_everything_on_linux() {
        let before = ProcessSample::take();
        let files: Vec<_> = (0..10).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        let after = ProcessSample::take();
        assert!(after.open_fds.unwrap() >= files.len() as u64 + 3);
        assert!(after.cpu_seconds >= before.cpu_seconds && after.cpu_seconds > 0.0);
        assert!((1 << 20..1 << 40).contains(&after.resident_memory_bytes.unwrap()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - start_time_seconds().unwrap();
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }
}

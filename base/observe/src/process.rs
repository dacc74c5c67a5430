use std::io;

use crate::metrics::{family, sample};

/// What the kernel says of this process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessStats {
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    /// User and system time since the start.
    pub cpu_seconds: f64,
    pub open_fds: u64,
    pub max_fds: u64,
    pub threads: u64,
    /// Seconds since the Unix epoch.
    pub start_seconds: f64,
}

impl ProcessStats {
    /// Reads `/proc/self`.
    pub fn read() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let kernel = std::fs::read_to_string("/proc/stat")?;
        let open_fds = std::fs::read_dir("/proc/self/fd")?.count() as u64;
        let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let mut stats =
            parse(&stat, &kernel, rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as u64)
                .ok_or_else(|| io::Error::other("/proc/self/stat has an unknown form"))?;
        stats.open_fds = open_fds;
        stats.max_fds = limits.current.unwrap_or(u64::MAX);
        Ok(stats)
    }

    /// Appends the metrics with Prometheus' usual names.
    pub fn render(&self, page: &mut String) {
        let mut gauge = |name, help, value| {
            family(page, name, "gauge", help);
            sample(page, name, &[], value);
        };
        gauge("process_resident_memory_bytes", "Resident memory size in bytes", self.resident_bytes as f64);
        gauge("process_virtual_memory_bytes", "Virtual memory size in bytes", self.virtual_bytes as f64);
        gauge("process_open_fds", "Number of open file descriptors", self.open_fds as f64);
        gauge("process_max_fds", "Maximum number of open file descriptors", self.max_fds as f64);
        gauge("process_threads", "Number of threads", self.threads as f64);
        gauge("process_start_time_seconds", "Start time since the Unix epoch in seconds", self.start_seconds);
        family(page, "process_cpu_seconds_total", "counter", "User and system CPU time in seconds");
        sample(page, "process_cpu_seconds_total", &[], self.cpu_seconds);
    }
}

/// Reads proc(5)'s `stat` of a process and of the kernel.
fn parse(stat: &str, kernel: &str, ticks_per_second: f64, page_bytes: u64) -> Option<ProcessStats> {
    // The name, in parentheses, may contain anything; the fields after it begin with the third.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let boot_seconds: f64 = kernel.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(ProcessStats {
        resident_bytes: field(24)? * page_bytes,
        virtual_bytes: field(23)?,
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks_per_second,
        open_fds: 0,
        max_fds: 0,
        threads: field(20)?,
        start_seconds: boot_seconds + field(22)? as f64 / ticks_per_second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_itself_and_odd_names() {
        let stats = ProcessStats::read().unwrap();
        assert!(stats.resident_bytes > 100_000 && stats.open_fds > 2 && stats.threads > 0, "{stats:?}");
        let stat = "7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 9 0 300 4096 25 0";
        let stats = parse(stat, "cpu 1\nbtime 1000\n", 100.0, 4096).unwrap();
        assert_eq!((stats.cpu_seconds, stats.threads, stats.start_seconds), (2.0, 9, 1003.0));
        assert_eq!((stats.virtual_bytes, stats.resident_bytes), (4096, 25 * 4096));
        assert!(parse("7 (x) S 1", "btime 1", 100.0, 4096).is_none());
    }
}

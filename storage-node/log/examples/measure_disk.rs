//! Measures the ways in which a log can make bytes durable on this disk; the figures in docs/formats.md come from here.
//!
//! `cargo run --release -p geminga-log --example measure_disk -- FOLDER [seconds per case]`

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags};

const FILE_BYTES: u64 = 512 << 20;
const BLOCK_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Preparation {
    Grows,
    Fallocated,
    Written,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sync {
    /// `write`, then `fdatasync`.
    Fdatasync,
    /// The file is opened with `O_DSYNC`: the write itself is durable (and uses FUA where the device can).
    Dsync,
    /// As that, but each eighth of the write is handed to the disk as soon as it is in the page cache (`sync_file_range`), so that
    /// little is left to do for `fdatasync`.
    Paced,
    /// `fdatasync` after each 8 MiB only.
    Rarely,
    Never,
}

struct Case {
    direct: bool,
    preparation: Preparation,
    sync: Sync,
    write_bytes: usize,
    threads: usize,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("the folder to measure in"));
    let seconds: f64 = arguments.next().map_or(2.0, |text| text.parse().expect("seconds"));
    println!(
        "{:58} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9}",
        "case", "p50 us", "p99 us", "p99.9 us", "max us", "MB/s", "cpu us/op"
    );
    for case in cases() {
        measure(&folder, &case, Duration::from_secs_f64(seconds));
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for write_bytes in [4 << 10, 64 << 10] {
        for direct in [false, true] {
            for preparation in [Preparation::Grows, Preparation::Fallocated, Preparation::Written] {
                cases.push(Case { direct, preparation, sync: Sync::Fdatasync, write_bytes, threads: 1 });
            }
        }
        cases.push(Case {
            direct: true,
            preparation: Preparation::Fallocated,
            sync: Sync::Dsync,
            write_bytes,
            threads: 1,
        });
        cases.push(Case {
            direct: true,
            preparation: Preparation::Written,
            sync: Sync::Dsync,
            write_bytes,
            threads: 1,
        });
    }
    for preparation in [Preparation::Fallocated, Preparation::Written] {
        for write_bytes in [256 << 10, 1 << 20, 4 << 20] {
            for threads in [1, 2, 4] {
                cases.push(Case { direct: true, preparation, sync: Sync::Fdatasync, write_bytes, threads });
                if write_bytes == 1 << 20 {
                    cases.push(Case { direct: true, preparation, sync: Sync::Dsync, write_bytes, threads });
                    cases.push(Case { direct: true, preparation, sync: Sync::Rarely, write_bytes, threads });
                    cases.push(Case { direct: true, preparation, sync: Sync::Never, write_bytes, threads });
                }
            }
        }
    }
    for write_bytes in [1 << 20, 4 << 20] {
        for threads in [1, 2] {
            for sync in [Sync::Fdatasync, Sync::Paced] {
                for preparation in [Preparation::Fallocated, Preparation::Written] {
                    cases.push(Case { direct: false, preparation, sync, write_bytes, threads });
                }
            }
        }
    }
    cases
}

fn measure(folder: &Path, case: &Case, time: Duration) {
    let path = folder.join("measure-disk");
    prepare(&path, case.preparation);
    let name = format!(
        "{} {:?} {:?} {} KiB x{}",
        if case.direct { "direct" } else { "buffered" },
        case.preparation,
        case.sync,
        case.write_bytes >> 10,
        case.threads
    );
    let cpu_before = cpu_time();
    let begin = Instant::now();
    let files: Vec<File> = (0..case.threads).map(|_| open(&path, case)).collect();
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            files.iter().enumerate().map(|(index, file)| scope.spawn(move || write(file, case, index, time))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a writer panicked")).collect()
    });
    let elapsed = begin.elapsed();
    let cpu = cpu_time() - cpu_before;
    latencies.sort();
    let at = |quantile: f64| latencies[((latencies.len() - 1) as f64 * quantile) as usize].as_micros();
    let bytes = (latencies.len() * case.write_bytes) as f64;
    println!(
        "{name:58} {:9} {:9} {:9} {:9} {:8.0} {:9.1}",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        bytes / elapsed.as_secs_f64() / 1e6,
        cpu.as_secs_f64() * 1e6 / latencies.len() as f64
    );
    std::fs::remove_file(&path).expect("remove the file");
}

fn prepare(path: &Path, preparation: Preparation) {
    let file = File::create(path).expect("create a file to measure with");
    match preparation {
        Preparation::Grows => (),
        Preparation::Fallocated => {
            rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 0, FILE_BYTES).expect("fallocate");
        }
        Preparation::Written => {
            let zeros = vec![0; 1 << 20];
            (0..FILE_BYTES >> 20).for_each(|mebibyte| file.write_all_at(&zeros, mebibyte << 20).expect("write zeros"));
        }
    }
    file.sync_all().expect("sync");
}

fn open(path: &Path, case: &Case) -> File {
    let mut flags = OFlags::empty();
    flags.set(OFlags::DIRECT, case.direct);
    flags.set(OFlags::DSYNC, case.sync == Sync::Dsync);
    OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path).expect("open")
}

/// Each thread writes its own stripes, so that together they are one sequential stream with several writes in flight.
fn write(file: &File, case: &Case, index: usize, time: Duration) -> Vec<Duration> {
    let buffer = vec![0x5a_u8; case.write_bytes + BLOCK_BYTES];
    let skip = buffer.as_ptr().align_offset(BLOCK_BYTES);
    let block = &buffer[skip..skip + case.write_bytes];
    let mut latencies = Vec::new();
    let mut offset = (index * case.write_bytes) as u64;
    let begin = Instant::now();
    let mut unsynced = 0;
    while begin.elapsed() < time {
        let start = Instant::now();
        if case.sync == Sync::Paced {
            write_paced(file, block, offset);
        } else {
            file.write_all_at(block, offset).expect("write");
        }
        unsynced += block.len();
        if matches!(case.sync, Sync::Fdatasync | Sync::Paced) || (case.sync == Sync::Rarely && unsynced >= 8 << 20) {
            file.sync_data().expect("fdatasync");
            unsynced = 0;
        }
        latencies.push(start.elapsed());
        offset += (case.threads * case.write_bytes) as u64;
        if offset + case.write_bytes as u64 > FILE_BYTES {
            if case.preparation != Preparation::Written {
                break;
            }
            offset = (index * case.write_bytes) as u64;
        }
    }
    latencies
}

fn write_paced(file: &File, block: &[u8], offset: u64) {
    for (piece, at) in block.chunks(block.len() / 8).zip((offset..).step_by(block.len() / 8)) {
        file.write_all_at(piece, at).expect("write");
        let (at, bytes) = (at as i64, piece.len() as i64);
        // SAFETY: the descriptor is open; the call reads and writes no memory of this process.
        let code = unsafe { libc::sync_file_range(file.as_raw_fd(), at, bytes, libc::SYNC_FILE_RANGE_WRITE) };
        assert_eq!(code, 0, "sync_file_range: {}", std::io::Error::last_os_error());
    }
}

fn cpu_time() -> Duration {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(usage.tv_sec as u64, usage.tv_nsec as u32)
}

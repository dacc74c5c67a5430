//! Real PostgreSQL servers for tests: each in a folder of its own, on a free port of the loopback interface.
//!
//! Everything panics when it fails, with what the server said: a test without its server has failed. The servers come
//! from Debian's package `postgresql` (or any other, when `postgres` and `psql` are in the path). PostgreSQL does not run
//! as root, so root runs it as the user `postgres`.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

/// After a kill the server first syncs each of its thousand files, which takes a busy disk a while.
const START_TIME_MAX: Duration = Duration::from_secs(120);
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// What the server is told on top of its defaults. It must not need `synchronous_commit` to be on by itself: that is
/// for those who commit to ask for.
const SETTINGS: [&str; 5] = [
    "listen_addresses=127.0.0.1",
    "max_connections=300",
    "shared_buffers=32MB",
    "synchronous_commit=off",
    // In its folder, where a kill leaves nothing behind.
    "dynamic_shared_memory_type=mmap",
];

/// A running server with a user `postgres` who needs no password. Ends with the value.
pub struct Server {
    folder: TempDir,
    programs: PathBuf,
    port: u16,
    settings: &'static [&'static str],
    process: Mutex<Child>,
    databases: AtomicUsize,
}

impl Server {
    /// A server that all tests of this process share as long as one of them has it. It does not wait for its disk: tests
    /// that kill it, or measure it, start their own.
    pub fn shared() -> Arc<Server> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::with_settings(&["fsync=off"]));
            *shared = Arc::downgrade(&server);
            server
        })
    }

    pub fn start() -> Server {
        Server::with_settings(&[])
    }

    fn with_settings(settings: &'static [&'static str]) -> Server {
        let programs = programs();
        let folder = tempfile::tempdir().expect("a temporary folder");
        if geteuid().is_root() {
            run(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        let data = folder.path().join("data");
        let mut initdb = as_user(&programs.join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--pgdata"]);
        run(initdb.arg(&data));
        let port = free_port();
        let process = Mutex::new(spawn(&programs, folder.path(), port, settings));
        let server = Server { folder, programs, port, settings, process, databases: AtomicUsize::new(0) };
        server.wait_until_ready();
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new, empty database. Answers its name.
    pub fn create_database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.query("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What `psql` prints about a statement: a line per row, columns separated by `|`.
    pub fn query(&self, database: &str, statement: &str) -> String {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command", statement]);
        run(psql.arg(self.url(database))).trim_end().to_owned()
    }

    /// Ends every process of the server at once, as a loss of power does.
    pub fn kill(&self) {
        let mut process = self.process.lock();
        signal_all(&process, Signal::KILL);
        process.wait().expect("the server is a child of this process");
    }

    /// Starts the server again after [`Server::kill`]: it recovers.
    pub fn start_again(&self) {
        *self.process.lock() = spawn(&self.programs, self.folder.path(), self.port, self.settings);
        self.wait_until_ready();
    }

    /// Stops every process of the server where it stands: connections stay open and nobody answers.
    pub fn freeze(&self) {
        signal_all(&self.process.lock(), Signal::STOP);
    }

    pub fn thaw(&self) {
        signal_all(&self.process.lock(), Signal::CONT);
    }

    fn wait_until_ready(&self) {
        let started = Instant::now();
        loop {
            let mut process = self.process.lock();
            if self.is_ready(process.id()) {
                return;
            }
            let ended = process.try_wait().expect("the server is a child of this process").is_some();
            if started.elapsed() > START_TIME_MAX {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                panic!("PostgreSQL does not start:\n{log}");
            }
            if ended {
                // What is left of a killed server may still hold its memory or its port.
                *process = spawn(&self.programs, self.folder.path(), self.port, self.settings);
            }
            drop(process);
            thread::sleep(POLL_PAUSE);
        }
    }

    /// The server notes its process id in the first line of a file, and its state in the eighth.
    fn is_ready(&self, process: u32) -> bool {
        let note = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = note.lines().map(str::trim).collect();
        lines.first() == Some(&&*process.to_string()) && lines.get(7) == Some(&"ready")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn programs() -> PathBuf {
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |folder: &PathBuf| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = debian.map(|entry| entry.path()).filter(|folder| folder.join("bin/postgres").exists());
    if let Some(folder) = newest.max_by_key(version) {
        return folder.join("bin");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|folder| folder.join("postgres").exists() && folder.join("psql").exists())
        .expect("there is no PostgreSQL to test with: install Debian's package 'postgresql', as ./dev test rust does")
}

/// A command that does not run as root.
fn as_user(program: &Path) -> Command {
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
    command
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
    String::from_utf8(output.stdout).expect("programs of PostgreSQL print UTF-8")
}

/// Below those that the kernel gives to outgoing connections, so that it stays free while the server is down.
fn free_port() -> u16 {
    let first = RandomState::new().build_hasher().finish() as u16 % 12_000;
    let mut ports = (0..12_000).map(|n| 20_000 + (first + n) % 12_000);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

fn spawn(programs: &Path, folder: &Path, port: u16, settings: &[&str]) -> Child {
    let log = File::options().create(true).append(true).open(folder.join("log")).expect("a log file");
    let mut command = as_user(&programs.join("postgres"));
    command.arg("-D").arg(folder.join("data")).arg("-k").arg(folder).args(["-p", &port.to_string()]);
    command.args(SETTINGS.iter().chain(settings).flat_map(|setting| ["-c", setting]));
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// To the server's first process and its children. It is stopped first, so that it starts none in the meantime; and the
/// children are looked for while it is their parent.
fn signal_all(server: &Child, signal: Signal) {
    let first = Pid::from_child(server);
    // One that has just ended needs no signal.
    let _ = kill_process(first, Signal::STOP);
    for process in children(first).into_iter().chain([first]) {
        let _ = kill_process(process, signal);
    }
}

fn children(of: Pid) -> Vec<Pid> {
    let parent_of = |id: i32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name, in parentheses, may have spaces; the parent is the second field after it.
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|id| parent_of(*id) == Some(of.as_raw_nonzero().get())).filter_map(Pid::from_raw).collect()
}

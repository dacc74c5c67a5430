//! Runs the binary: start, stop, settings, and each way to fail at the start.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use bytes::BytesMut;
use geminga_wire_pulsar::{SendHeader, proto};
use tempfile::TempDir;

fn geminga() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_geminga"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GEMINGA_")) {
        command.env_remove(name);
    }
    command
}

fn standalone(data_dir: &Path) -> Command {
    let mut command = geminga();
    command.arg("standalone").arg("--data-dir").arg(data_dir);
    command.args(["--pulsar-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]);
    command
}

/// A server that is killed at the latest when the test ends.
struct Server {
    child: Child,
    pulsar: SocketAddr,
    http: SocketAddr,
}

impl Server {
    fn start(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut addresses = line.split_ascii_whitespace().filter_map(|word| word.split_once("://"));
        let Some((pulsar, http)) = addresses.next().zip(addresses.next()) else {
            let mut complaint = String::new();
            child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
            panic!("it did not start: '{line}' {complaint}");
        };
        Server { pulsar: pulsar.1.parse().unwrap(), http: http.1.parse().unwrap(), child }
    }

    fn terminate(&self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }

    /// Ends it with SIGTERM and answers whether it succeeded, with what it wrote to stderr.
    fn stop(self) -> (bool, String) {
        self.terminate();
        self.ended()
    }

    fn ended(mut self) -> (bool, String) {
        let success = self.child.wait().unwrap().success();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (success, log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Expects a failure with exactly one line on stderr, and answers the line.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("geminga: error: "), "{text}");
    text
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn serves_and_stops_and_starts_again() {
    let folder = folder();
    let data = folder.path().join("deep/data");
    let ready = folder.path().join("ready.json");
    for _ in 0..2 {
        let server = Server::start(standalone(&data).arg("--ready-file").arg(&ready));
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
        assert_eq!(json["pid"], server.child.id());
        assert_eq!(json["pulsar"], server.pulsar.to_string());
        assert_eq!(json["http"], server.http.to_string());
        TcpStream::connect(server.pulsar).unwrap();
        TcpStream::connect(server.http).unwrap();
        for probe in ["/healthz", "/readyz"] {
            let answer = http(&server, &format!("GET {probe}"));
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{probe}: {answer}");
        }
        let (success, log) = server.stop();
        assert!(success, "{log}");
        assert!(log.contains("stopped") && !log.contains("WARN") && !log.contains("ERROR"), "{log}");
        assert!(!ready.exists(), "the ready file says that it serves");
    }
}

#[test]
fn a_request_that_is_never_finished_does_not_hold_up_the_end() {
    let folder = folder();
    let server = Server::start(&mut standalone(folder.path()));
    let mut stream = TcpStream::connect(server.http).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    // Only when the one behind it was answered has it been seen.
    assert!(http(&server, "GET /healthz").ends_with("ok"));
    let begin = std::time::Instant::now();
    let (success, log) = server.stop();
    assert!(success && log.contains("stopped"), "{log}");
    assert!(begin.elapsed() < std::time::Duration::from_secs(15), "it took {:?}", begin.elapsed());
}

#[test]
fn a_consumer_that_never_reads_does_not_hold_up_the_end() {
    const MESSAGES: u64 = 50;
    let folder = folder();
    let mut server = Server::start(&mut standalone(folder.path()));
    let topic = "persistent://public/default/t".to_owned();
    let mut consumer = Client::connect(&server);
    consumer.ask(proto::CommandSubscribe {
        topic: topic.clone(),
        subscription: "s".into(),
        consumer_id: 1,
        request_id: 1,
        ..Default::default()
    });
    consumer.send(&proto::CommandFlow { consumer_id: 1, message_permits: 1000 }.into());
    let mut producer = Client::connect(&server);
    producer.ask(proto::CommandProducer { topic, producer_id: 1, request_id: 1, ..Default::default() });
    for sequence_id in 0..MESSAGES {
        producer.stream.write_all(&message(sequence_id, 1 << 20)).unwrap();
        assert!(matches!(producer.answer(), geminga_wire_pulsar::Command::SendReceipt(_)));
    }
    let begin = std::time::Instant::now();
    server.terminate();
    // What the consumer does not take keeps it for a second; nobody else is let in meanwhile.
    for address in [server.pulsar, server.http] {
        while TcpStream::connect(address).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    let refused_after = begin.elapsed();
    assert!(server.child.try_wait().unwrap().is_none(), "it was not seen to refuse while it finishes");
    assert!(refused_after < std::time::Duration::from_millis(900), "it let others in for {refused_after:?}");
    let (success, log) = server.ended();
    assert!(success && log.contains("stopped") && !log.contains("gave up"), "{log}");
    assert!(begin.elapsed() < std::time::Duration::from_secs(10), "it took {:?}", begin.elapsed());
}

#[test]
fn what_is_in_flight_is_finished_before_the_end() {
    use geminga_wire_pulsar::Command;
    const MESSAGES: u64 = 1000;
    let folder = folder();
    let server = Server::start(&mut standalone(folder.path()));
    let mut producer = Client::connect(&server);
    let topic = "persistent://public/default/t".to_owned();
    producer.ask(proto::CommandProducer { topic, producer_id: 1, request_id: 1, ..Default::default() });
    let frames: Vec<u8> = (0..MESSAGES).flat_map(|sequence_id| message(sequence_id, 1024)).collect();
    let mut stream = producer.stream.try_clone().unwrap();
    // What the server does not take any more cannot be written.
    let writing = std::thread::spawn(move || drop(stream.write_all(&frames)));
    let mut receipts = Vec::new();
    while let Some(answer) = producer.next_answer() {
        let Command::SendReceipt(receipt) = answer else { continue };
        if receipts.is_empty() {
            server.terminate();
        }
        let id = receipt.message_id.expect("a receipt has an id");
        receipts.push((receipt.sequence_id, id.entry_id));
    }
    writing.join().unwrap();
    let (success, log) = server.ended();
    assert!(success && log.contains("stopped") && !log.contains("gave up"), "{log}");
    let answered = receipts.len() as u64;
    assert!(answered > 0 && receipts.into_iter().eq((0..answered).map(|n| (n, n))), "receipts have gaps");
    let server = Server::start(&mut standalone(folder.path()));
    let stats = http(&server, "GET /admin/v2/persistent/public/default/t/internalStats");
    let (_, stats) = stats.split_once("\r\n\r\n").unwrap();
    let stored = serde_json::from_str::<serde_json::Value>(stats).unwrap()["numberOfEntries"].as_u64().unwrap();
    println!("{answered} of {MESSAGES} answered, {stored} stored");
    assert_eq!(stored, answered, "what was taken is answered, and what was answered is stored");
}

/// A SEND.
fn message(sequence_id: u64, bytes: usize) -> BytesMut {
    let metadata = proto::MessageMetadata { producer_name: "p".into(), sequence_id, ..Default::default() };
    let payload = geminga_wire_pulsar::frame_payload(&metadata, &vec![7; bytes]);
    let mut frame = BytesMut::new();
    let header = SendHeader { producer_id: 1, sequence_id, num_messages: 1, ..Default::default() };
    geminga_wire_pulsar::encode_send_header(&header, payload.len(), &mut frame);
    frame.extend_from_slice(&payload);
    frame
}

/// A client of the Pulsar protocol.
struct Client {
    stream: TcpStream,
    received: BytesMut,
}

impl Client {
    fn connect(server: &Server) -> Client {
        let mut client = Client { stream: TcpStream::connect(server.pulsar).unwrap(), received: BytesMut::new() };
        client.ask(proto::CommandConnect { client_version: "test".into(), ..Default::default() });
        client
    }

    fn send(&mut self, command: &geminga_wire_pulsar::Command) {
        let mut frame = BytesMut::new();
        geminga_wire_pulsar::encode_simple(command, &mut frame);
        self.stream.write_all(&frame).unwrap();
    }

    fn ask(&mut self, command: impl Into<geminga_wire_pulsar::Command>) {
        self.send(&command.into());
        let answer = self.answer();
        assert!(!matches!(answer, geminga_wire_pulsar::Command::Error(_)), "{answer:?}");
    }

    fn answer(&mut self) -> geminga_wire_pulsar::Command {
        self.next_answer().expect("the connection goes on")
    }

    /// None when the connection has ended.
    fn next_answer(&mut self) -> Option<geminga_wire_pulsar::Command> {
        let mut chunk = [0; 4096];
        loop {
            let max = geminga_wire_pulsar::DEFAULT_MAX_FRAME_SIZE;
            if let Some(frame) = geminga_wire_pulsar::decode_frame(&mut self.received, max).unwrap() {
                return Some(frame.command);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.received.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_subscription_is_explained() {
    let folder = folder();
    let server = Server::start(&mut standalone(folder.path()));
    let mut consumer = Client::connect(&server);
    consumer.ask(proto::CommandSubscribe {
        topic: "persistent://public/default/t".into(),
        subscription: "s/1".into(),
        consumer_name: Some("c".into()),
        consumer_id: 1,
        request_id: 1,
        ..Default::default()
    });
    consumer.send(&proto::CommandFlow { consumer_id: 1, message_permits: 7 }.into());
    consumer.ask(proto::CommandPing {});
    let url = format!("http://{}", server.http);
    let explain =
        |subscription| geminga().args(["admin", "explain", "t", subscription, "--url", &url]).output().unwrap();
    let answer = explain("s/1");
    assert!(answer.status.success(), "{answer:?}");
    let explanation: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(explanation["summary"], "everything is acknowledged");
    assert_eq!(
        (&explanation["consumers"][0]["name"], &explanation["consumers"][0]["permits"]),
        (&"c".into(), &7.into())
    );
    assert!(complaint(&explain("none")).contains("none"));
}

/// Sends a request without a body; what comes back.
fn http(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.http).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn clients_are_told_the_address_of_their_listener() {
    let folder = folder();
    let mut command = standalone(folder.path());
    let server = Server::start(command.args(["--advertised-listeners", "outside:pulsar://example.org:1234"]));
    let topic = "/lookup/v2/topic/persistent/public/default/t";
    let found = |listener: &str| http(&server, &format!("GET {topic}?listenerName={listener}"));
    http(&server, "PUT /admin/v2/persistent/public/default/t");
    assert!(found("outside").contains(r#""brokerUrl":"pulsar://example.org:1234""#), "{}", found("outside"));
    assert!(found("").contains(&server.pulsar.to_string()), "{}", found(""));
    assert!(found("nowhere").starts_with("HTTP/1.1 500 "), "{}", found("nowhere"));
}

#[test]
fn a_killed_server_leaves_no_lock() {
    let folder = folder();
    drop(Server::start(&mut standalone(folder.path())));
    let (success, log) = Server::start(&mut standalone(folder.path())).stop();
    assert!(success, "{log}");
}

#[test]
fn a_second_process_on_a_folder_is_refused() {
    let folder = folder();
    let server = Server::start(&mut standalone(folder.path()));
    let complaint = complaint(&standalone(folder.path()).output().unwrap());
    assert!(complaint.contains("in use by another process"), "{complaint}");
    assert!(complaint.contains(&format!("pid {}", server.child.id())), "{complaint}");
}

#[test]
fn a_port_in_use_is_named() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = geminga();
    command.arg("standalone").arg("--data-dir").arg(folder.path()).args(["--http-addr", &address]);
    let complaint = complaint(&command.env("GEMINGA_PULSAR_ADDR", "127.0.0.1:0").output().unwrap());
    assert!(complaint.contains(&address) && complaint.contains("--http-addr"), "{complaint}");
    assert!(complaint.contains("in use"), "{complaint}");
}

#[test]
fn folders_that_cannot_be_used_are_named() {
    let folder = folder();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let complaint = complaint(&standalone(&path).output().unwrap());
        assert!(complaint.contains("data folder") && complaint.contains("file"), "{complaint}");
    }
}

/// As somebody who may not read it; root may read everything.
#[test]
fn a_folder_that_may_not_be_read_is_named() {
    let folder = folder();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o0)).unwrap();
    // By a descriptor, as the path to it may be closed to others, too.
    let binary = std::fs::File::open(env!("CARGO_BIN_EXE_geminga")).unwrap();
    let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534).current_dir("/");
    }
    command.env_clear().arg("standalone").arg("--data-dir").arg(&data);
    command.args(["--pulsar-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]);
    let complaint = complaint(&command.output().unwrap());
    assert!(complaint.contains(data.to_str().unwrap()) && complaint.contains("denied"), "{complaint}");
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap(); // to be removed
}

#[test]
fn damaged_metadata_is_refused() {
    let folder = folder();
    std::fs::write(folder.path().join("metadata.db"), [0x5a; 4096]).unwrap();
    let complaint = complaint(&standalone(folder.path()).output().unwrap());
    assert!(complaint.contains("metadata.db"), "{complaint}");
}

#[test]
fn too_little_memory_is_refused() {
    let folder = folder();
    let complaint = complaint(&standalone(folder.path()).args(["--memory-limit", "1MiB"]).output().unwrap());
    assert!(complaint.contains("1MiB") && complaint.contains("64MiB"), "{complaint}");
}

#[test]
fn damaged_config_is_refused() {
    let folder = folder();
    let config = folder.path().join("geminga.toml");
    for (text, expected) in [
        ("data_dir = \"x\"\nmemory_limit = = 3\n", "line 2"),
        ("memory_limit = \"lots\"\n", "memory_limit"),
        ("log_format = 7\n", "log_format"),
    ] {
        std::fs::write(&config, text).unwrap();
        let complaint = complaint(&standalone(folder.path()).arg("--config").arg(&config).output().unwrap());
        assert!(complaint.contains("geminga.toml") && complaint.contains(expected), "{complaint}");
    }
    let complaint = complaint(&geminga().args(["config", "--config", "/nowhere/geminga.toml"]).output().unwrap());
    assert!(complaint.contains("/nowhere/geminga.toml"), "{complaint}");
}

#[test]
fn layers_and_their_sources() {
    let folder = folder();
    let config = folder.path().join("geminga.toml");
    let text = "memory_limit = \"1GB\"\nhttp_addr = \"127.0.0.1:1\"\ncluster = \"file\"\nfrom_the_future = 1\n\
                inactive_topics_after = \"2h\"\nauto_create_topics = false\n";
    std::fs::write(&config, text).unwrap();
    let output = geminga()
        .args(["config", "--cluster", "argument", "--deduplication", "true", "--max-ledger-age", "5m"])
        .env("GEMINGA_CONFIG", &config)
        .env("GEMINGA_HTTP_ADDR", "127.0.0.1:2")
        .env("GEMINGA_CLUSTER", "environment")
        .output()
        .unwrap();
    let (shown, complaints) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{complaints}");
    for line in [
        "data_dir = \"geminga-data\" # default".to_owned(),
        format!("memory_limit = \"1GB\" # config file {}", config.display()),
        "http_addr = \"127.0.0.1:2\" # environment variable GEMINGA_HTTP_ADDR".to_owned(),
        "cluster = \"argument\" # argument --cluster".to_owned(),
        "# ready_file is not set".to_owned(),
        "deduplication = true # argument --deduplication".to_owned(),
        "max_ledger_age = \"5m\" # argument --max-ledger-age".to_owned(),
        format!("inactive_topics_after = \"2h\" # config file {}", config.display()),
        format!("auto_create_topics = false # config file {}", config.display()),
        "max_ledger_size = \"1GiB\" # default".to_owned(),
    ] {
        assert!(shown.lines().any(|have| have == line), "no line '{line}' in\n{shown}");
    }
    assert!(complaints.contains("from_the_future"), "{complaints}");
}

/// The options that every caller relies on, from each layer, and what they are when nobody says anything.
#[test]
fn each_option_of_the_contract_comes_from_each_layer() {
    let options = [
        ("data_dir", "x", "data_dir = \"geminga-data\""),
        ("pulsar_addr", "127.0.0.1:7", "pulsar_addr = \"127.0.0.1:6650\""),
        ("http_addr", "127.0.0.1:8", "http_addr = \"127.0.0.1:8080\""),
        ("memory_limit", "99MiB", "memory_limit = \"512MiB\""),
        ("ready_file", "x.json", "# ready_file is not set"),
    ];
    let folder = folder();
    let config = folder.path().join("geminga.toml");
    let shown = |command: &mut Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
    for (key, value, default) in options {
        let (variable, argument) = (format!("GEMINGA_{}", key.to_uppercase()), format!("--{}", key.replace('_', "-")));
        std::fs::write(&config, format!("{key} = \"{value}\"\n")).unwrap();
        let layers = [
            (shown(geminga().arg("config").env(&variable, value)), format!("environment variable {variable}")),
            (shown(geminga().arg("config").arg("--config").arg(&config)), format!("config file {}", config.display())),
            (shown(geminga().arg("config").arg(&argument).arg(value)), format!("argument {argument}")),
        ];
        for (shown, source) in layers {
            let line = format!("{key} = \"{value}\" # {source}");
            assert!(shown.lines().any(|have| have == line), "no line '{line}' in\n{shown}");
        }
        let defaults = shown(geminga().arg("config"));
        assert!(defaults.lines().any(|have| have.starts_with(default)), "no line '{default}' in\n{defaults}");
    }
}

/// The last line is an object with what scripts read, and there is a line for each second on stderr.
#[test]
fn perf_prints_progress_and_a_last_line_as_json() {
    let folder = folder();
    let server = Server::start(&mut standalone(folder.path()));
    let perf = |arguments: &[&str]| {
        let mut command = geminga();
        command.arg("perf").arg(arguments[0]).args(["--url", &format!("pulsar://{}", server.pulsar)]);
        command.args(["--topic", "t", "--json"]).args(&arguments[1..]).output().unwrap()
    };
    let produced = perf(&["produce", "--rate", "1000", "--duration", "2500ms"]);
    let consumed = perf(&["consume", "--initial", "earliest", "--idle-timeout", "1500ms"]);
    for (output, seconds) in [(&produced, 2), (&consumed, 1)] {
        assert!(output.status.success(), "{output:?}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let report: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        for name in ["messages", "msg_s", "mb_s", "p50_ms", "p99_ms", "p999_ms", "max_ms"] {
            assert!(report[name].as_f64().is_some_and(|value| value > 0.0), "{name} in {report}");
        }
        assert_eq!(report["messages"], 2500, "{report}");
        let progress = String::from_utf8_lossy(&output.stderr);
        let lines = progress.lines().filter(|line| line.contains("msg/s, ") && line.contains("s ")).count();
        assert!((seconds..=seconds + 2).contains(&lines), "{progress}");
    }
}

#[test]
fn wide_listening_warns_and_unknown_keys_warn() {
    let folder = folder();
    let config = folder.path().join("geminga.toml");
    std::fs::write(&config, "from_the_future = 1\n").unwrap();
    let mut command = geminga();
    command.arg("standalone").arg("--data-dir").arg(folder.path().join("data")).arg("--config").arg(&config);
    command.args(["--pulsar-addr", "0.0.0.0:0", "--http-addr", "127.0.0.1:0", "--log-format", "json"]);
    let (success, log) = Server::start(&mut command).stop();
    assert!(success, "{log}");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let warnings: Vec<&str> =
        lines.iter().filter(|line| line["level"] == "WARN").filter_map(|line| line["message"].as_str()).collect();
    assert_eq!(warnings.len(), 2, "{log}");
    assert!(warnings[0].contains("from_the_future") && warnings[1].contains("without authentication"), "{log}");
}

#[test]
fn help_and_completions_exist() {
    for command in ["standalone", "config", "perf", "admin", "completions"] {
        let output = geminga().args([command, "--help"]).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 100, "{command}");
    }
    let output = geminga().args(["completions", "bash"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("--memory-limit"));
    assert_eq!(geminga().arg("--nonsense").output().unwrap().status.code(), Some(2));
}

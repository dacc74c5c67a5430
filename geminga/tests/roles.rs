//! The roles of a cluster, each with all that it is told from one layer: the environment, or a file.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// From where a role has its settings.
#[derive(Clone, Copy)]
enum Layer {
    Environment,
    File,
}

impl Layer {
    /// A role and its settings, as a config file has them.
    fn command(self, folder: &Path, role: &[&str], settings: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_geminga"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GEMINGA_")) {
            command.env_remove(name);
        }
        command.args(role).current_dir(folder);
        match self {
            Layer::Environment => {
                for (key, value) in settings.lines().filter_map(|line| line.trim().split_once(" = ")) {
                    command.env(format!("GEMINGA_{}", key.to_uppercase()), value.trim_matches('"'));
                }
            }
            Layer::File => {
                let file = format!("{}.toml", role.join("-"));
                std::fs::write(folder.join(&file), settings).unwrap();
                command.args(["--config", &file]);
            }
        }
        command
    }
}

/// A role that serves, which is killed when the test ends.
struct Role {
    child: Child,
    addresses: Vec<String>,
}

impl Role {
    fn start(layer: Layer, folder: &Path, role: &str, settings: &str) -> Role {
        let ready = format!("{role}.json");
        let settings = format!("{settings}\nready_file = \"{ready}\"\n");
        let mut command = layer.command(folder, &[role], &settings);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words = line.split_ascii_whitespace().filter_map(|word| word.split_once("://"));
        let addresses: Vec<String> = words.map(|(_, address)| address.to_owned()).collect();
        if addresses.len() != 2 {
            let mut complaint = String::new();
            child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
            panic!("{role} did not start: '{line}' {complaint}");
        }
        let ready: Value = serde_json::from_slice(&std::fs::read(folder.join(ready)).unwrap()).unwrap();
        assert_eq!((&ready["pid"], &ready["http"]), (&Value::from(child.id()), &Value::from(&*addresses[1])));
        Role { child, addresses }
    }

    /// The body of what it answers by HTTP.
    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.addresses[1]).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(answer)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn a_cluster_of(layer: Layer) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let metadata = "metadata_url = \"sqlite:metadata.db\"";
    let ports = "pulsar_addr = \"127.0.0.1:0\"\nhttp_addr = \"127.0.0.1:0\"";
    let init = format!("{metadata}\ncluster = \"east\"\n");
    let output = layer.command(folder, &["metadata", "init"], &init).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let of_node = "addr = \"127.0.0.1:0\"\nhttp_addr = \"127.0.0.1:0\"\nzone = \"a\"\nregion = \"north\"";
    let node = Role::start(layer, folder, "storage-node", &format!("{metadata}\ndata_dir = \"disk\"\n{of_node}"));
    let quorum = "ensemble_size = 1\nwrite_quorum = 1\nack_quorum = 1";
    let of_broker = format!("{metadata}\ncluster = \"east\"\n{ports}\n{quorum}");
    let broker = Role::start(layer, folder, "broker", &of_broker);
    let brokers = format!("brokers = \"{}\"\nbroker_http = \"http://{}\"", broker.addresses[0], broker.addresses[1]);
    let proxy = Role::start(layer, folder, "proxy", &format!("{ports}\n{brokers}"));

    let url = format!("pulsar://{}", broker.addresses[0]);
    let produce = ["perf", "produce", "--url", &url, "--topic", "t", "--num-messages", "10"];
    let output = Command::new(env!("CARGO_BIN_EXE_geminga")).args(produce).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let nodes: Value = serde_json::from_str(&proxy.get("/admin/geminga/storage-nodes")).unwrap();
    let shown = ["address", "zone", "region"].map(|name| nodes[0][name].as_str().unwrap_or_default().to_owned());
    assert_eq!(shown, [&*node.addresses[0], "a", "north"], "{nodes}");
    assert!(folder.join("disk").is_dir());
    assert_eq!(proxy.get("/admin/v2/clusters"), r#"["east"]"#);
}

#[test]
fn roles_take_their_settings_from_the_environment() {
    a_cluster_of(Layer::Environment);
}

#[test]
fn roles_take_their_settings_from_a_file() {
    a_cluster_of(Layer::File);
}

#[test]
fn metadata_init_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    for (settings, missing) in [("", "--metadata-url"), ("metadata_url = \"sqlite:metadata.db\"\n", "--cluster")] {
        let output = Layer::File.command(folder.path(), &["metadata", "init"], settings).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && complaint.lines().count() == 1 && complaint.contains(missing),
            "{complaint}"
        );
    }
}

//! `geminga admin`: questions to a running server over its HTTP port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use geminga_model::TopicName;

/// Paths that are not Pulsar's.
const OWN: &str = "/admin/geminga";
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

#[derive(Subcommand)]
pub enum AdminCommand {
    /// Say for each consumer of a subscription what it waits for, since when, and what would release it
    Explain {
        /// Like persistent://public/default/orders, or orders
        topic: String,
        /// Name of the subscription
        subscription: String,
        #[command(flatten)]
        server: Server,
    },
    /// List a cluster's storage nodes, and empty them
    #[command(subcommand)]
    StorageNodes(StorageNodesCommand),
    /// Say which ledgers have too few copies, who repairs them, and what stands in the way
    Recovery {
        #[command(flatten)]
        server: Server,
    },
    /// Print what a path of the admin REST API answers
    Get {
        /// Like /admin/v2/tenants
        path: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Subcommand)]
pub enum StorageNodesCommand {
    /// List every node with its place, whether it is alive, and how far emptying it is
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Empty a node: nothing new goes to it, and what it has is copied to others
    ///
    /// Leave the node running until 'list' says that it is done; then stop it, and 'forget' it.
    Decommission {
        /// The node's id, as 'list' shows it
        node: String,
        #[command(flatten)]
        server: Server,
    },
    /// Use a node again that was to be emptied
    Recommission {
        /// The node's id, as 'list' shows it
        node: String,
        #[command(flatten)]
        server: Server,
    },
    /// Take a node out of the list that was emptied and is stopped
    Forget {
        /// The node's id, as 'list' shows it
        node: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Args)]
pub struct Server {
    /// Where the server's HTTP port is
    #[arg(long, env = "GEMINGA_ADMIN_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

pub fn run(command: &AdminCommand) -> anyhow::Result<()> {
    let answer = match command {
        AdminCommand::Explain { topic, subscription, server } => {
            let topic = TopicName::parse(topic)?;
            let path = format!(
                "/admin/v2/{}/{}/{}/subscription/{}/explain",
                topic.domain(),
                topic.namespace(),
                topic.encoded_local_name(),
                // Names of subscriptions are decoded twice, as in Pulsar.
                encode(&encode(subscription))
            );
            ask("GET", &server.url, &path)?
        }
        AdminCommand::StorageNodes(command) => storage_nodes(command)?,
        AdminCommand::Recovery { server } => ask("GET", &server.url, &format!("{OWN}/recovery"))?,
        AdminCommand::Get { path, server } => ask("GET", &server.url, path)?,
    };
    if answer.is_empty() {
        return Ok(());
    }
    let shown = match serde_json::from_str::<serde_json::Value>(&answer) {
        Ok(json) => serde_json::to_string_pretty(&json)? + "\n",
        Err(_) => answer,
    };
    crate::print(&shown);
    Ok(())
}

fn storage_nodes(command: &StorageNodesCommand) -> anyhow::Result<String> {
    let path = |node: &str, rest: &str| format!("{OWN}/storage-nodes/{}{rest}", encode(node));
    match command {
        StorageNodesCommand::List { server } => ask("GET", &server.url, &format!("{OWN}/storage-nodes")),
        StorageNodesCommand::Decommission { node, server } => ask("PUT", &server.url, &path(node, "/decommission")),
        StorageNodesCommand::Recommission { node, server } => ask("DELETE", &server.url, &path(node, "/decommission")),
        StorageNodesCommand::Forget { node, server } => ask("DELETE", &server.url, &path(node, "")),
    }
}

/// One segment of a path.
fn encode(segment: &str) -> String {
    let mut encoded = String::new();
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Asks with HTTP/1.0, so that the answer comes in one piece and ends with the connection.
fn ask(method: &str, url: &str, path: &str) -> anyhow::Result<String> {
    let Some(address) = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')) else {
        bail!("'{url}' is not a URL like http://127.0.0.1:8080");
    };
    if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        bail!("'{path}' is not a path like /admin/v2/tenants");
    }
    let address = if address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        address.to_owned()
    } else {
        format!("{address}:80")
    };
    let context = || format!("cannot ask the server at {url}");
    let mut stream = TcpStream::connect(&address).with_context(context)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(context)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).with_context(context)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(context)?;
    let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    if !status.starts_with('2') {
        let reason = serde_json::from_str::<serde_json::Value>(body).ok();
        let reason = reason.as_ref().and_then(|json| json["reason"].as_str()).unwrap_or(body);
        bail!("the server answers {status}: {reason}");
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers one request with `answer`, and gives back its first line.
    fn serve(answer: &'static str) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
        });
        (url, server)
    }

    #[test]
    fn asks_and_reads() {
        let (url, server) = serve("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"a\":1}");
        assert_eq!(ask("GET", &url, "/admin/v2/x%2Fy").unwrap(), "{\"a\":1}");
        assert_eq!(server.join().unwrap(), "GET /admin/v2/x%2Fy HTTP/1.0");
        let (url, server) = serve("HTTP/1.0 404 Not Found\r\n\r\n{\"reason\":\"no such topic\"}");
        assert_eq!(ask("PUT", &url, "/x").unwrap_err().to_string(), "the server answers 404: no such topic");
        server.join().unwrap();
        assert!(ask("GET", "ftp://x", "/x").is_err());
        assert!(ask("GET", "http://x", "/x y").is_err());
        assert_eq!(encode("a/b c"), "a%2Fb%20c");
    }
}

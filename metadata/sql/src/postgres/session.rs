//! Connections to the server, with the settings that our promises need.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::MetadataError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;

/// Schema of the database that has our tables.
pub(super) const SCHEMA: &str = "geminga";

/// How long a connection may take to be made.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);

/// What every session sets. They win over settings of the server, the database, the role and the URL.
///
/// `on` is the weakest value of `synchronous_commit` with which a commit that returned survives a crash of the server.
/// Every statement of ours is meant to walk an index, also while the planner's statistics lag behind a growing table:
/// with other scans, a page of a million fresh records takes half a second instead of a millisecond, and with other joins than
/// nested loops looking up a key reads them all. So there is one plan for each, whatever it is given: planning it anew takes as
/// long as running it. Nor is any of them worth compiling.
const EVERY_SESSION: [(&str, &str); 9] = [
    ("search_path", SCHEMA),
    ("synchronous_commit", "on"),
    ("client_min_messages", "warning"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
];

/// A statement that runs into its time while COMMIT waits for a standby would end as a success without the standby:
/// so a writer's statements have no limit on the server. A writer that stops in a transaction must not keep the others
/// from theirs for long; nor must the server collect sessions that wait for a lock on behalf of nobody.
const WRITER: [(&str, &str); 3] =
    [("statement_timeout", "0"), ("lock_timeout", "4s"), ("idle_in_transaction_session_timeout", "10s")];
const STATEMENTS: [(&str, &str); 1] = [("statement_timeout", "10s")];
/// A migration takes as long as it takes, and others wait for it.
const MIGRATOR: [(&str, &str); 2] = [("statement_timeout", "0"), ("lock_timeout", "0")];

/// What a session is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    /// For single statements that may be given again.
    Statements,
    Writer,
    Migrator,
}

/// Makes sessions. Clones share nothing but settings.
#[derive(Clone)]
pub(super) struct Server {
    options: PgConnectOptions,
    /// The database for people: without a password.
    pub subject: Arc<str>,
}

impl Server {
    /// What the URL leaves open comes from libpq's environment variables and password file.
    pub fn parse(url: &str) -> Result<Self, MetadataError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| MetadataError::Invalid(format!("the metadata URL is not one of PostgreSQL: {error}")))?;
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("geminga"),
        };
        let options = options.options(EVERY_SESSION).disable_statement_logging();
        let place = match options.get_socket() {
            Some(folder) => folder.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let database = options.get_database().unwrap_or(options.get_username());
        let subject = format!("metadata in PostgreSQL database '{database}' at {place}").into();
        Ok(Server { options, subject })
    }

    pub fn options(&self, role: Role) -> PgConnectOptions {
        let options = self.options.clone();
        match role {
            Role::Statements => options.options(STATEMENTS),
            Role::Writer => options.options(WRITER),
            Role::Migrator => options.options(MIGRATOR),
        }
    }

    /// Connects, and refuses a standby: what it shows may be old.
    pub async fn connect(&self, role: Role) -> Result<PgConnection, sqlx::Error> {
        let connect = async {
            let mut connection = PgConnection::connect_with(&self.options(role)).await?;
            let standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut connection).await?;
            match standby {
                true => Err(sqlx::Error::Io(std::io::Error::other("the server is a standby"))),
                false => Ok(connection),
            }
        };
        timeout(CONNECT_TIME_MAX, connect).await.unwrap_or_else(|_| Err(timed_out("connecting")))
    }
}

/// `what` did not get its answer in time.
pub(super) fn timed_out(what: &str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{what} took too long")))
}

#[cfg(test)]
mod tests {
    use geminga_test_postgres::Server as TestServer;

    use super::*;

    /// Whatever the server, the database, the role and the URL say.
    #[tokio::test]
    async fn sessions_have_the_settings_that_promises_need() {
        let server = TestServer::shared();
        let database = server.create_database();
        server.query(&database, &format!("ALTER DATABASE {database} SET synchronous_commit = off"));
        server.query(&database, &format!("ALTER ROLE postgres IN DATABASE {database} SET statement_timeout = '1s'"));
        let url = server.url(&database) + "?options=-csynchronous_commit%3Doff";
        let mut connection = Server::parse(&url).unwrap().connect(Role::Writer).await.unwrap();
        for (setting, expected) in EVERY_SESSION.iter().chain(&WRITER) {
            let show = sqlx::query_scalar("SELECT current_setting($1)").bind(setting);
            let value: String = show.fetch_one(&mut connection).await.unwrap();
            assert_eq!(value, *expected, "{setting}");
        }
    }

    #[test]
    fn a_subject_names_the_place_and_no_password() {
        let subject = |url: &str| Server::parse(url).unwrap().subject.to_string();
        let tcp = subject("postgres://user:secret@db.example.org:6432/meta?sslmode=require");
        assert_eq!(tcp, "metadata in PostgreSQL database 'meta' at db.example.org:6432");
        let socket = subject("postgresql:///meta?host=/run/postgresql&user=user");
        assert_eq!(socket, "metadata in PostgreSQL database 'meta' at /run/postgresql");
        assert!(matches!(Server::parse("postgres://h:port/x"), Err(MetadataError::Invalid(_))));
    }
}

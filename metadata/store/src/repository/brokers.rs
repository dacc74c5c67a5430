//! Brokers: `brokers/<id>`. A broker that is alive renews the lease `broker/<id>`, whose epoch is its incarnation.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::{Expect, LeaseOutcome, MetadataError, Op, Watch, codec, lease};

const PREFIX: &str = "brokers/";
const LEASES: &str = "broker/";
const LOAD_REPORTS: &str = "load-reports/";

/// Of a broker's session.
pub(super) fn session_key(id: &str) -> String {
    lease::key(&format!("{LEASES}{id}"))
}

/// Where a broker is reached, and how busy it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BrokerRecord {
    /// `pulsar://HOST:PORT`.
    pub pulsar_url: String,
    /// `http://HOST:PORT`.
    pub http_url: String,
    /// URLs by listener name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub listeners: BTreeMap<String, String>,
    pub version: String,
    /// Milliseconds since the Unix epoch.
    pub started_at: u64,
    /// It keeps what it has and takes no more bundles.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// A broker's lease as it stands, expired or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerSession {
    pub broker: String,
    pub incarnation: u64,
    /// By the store's clock, in milliseconds since the Unix epoch. None: given up by its holder.
    pub expires_at_ms: Option<u64>,
    /// Of its record: every renewal changes it.
    pub version: u64,
}

/// A session by its broker's id, as it was when it was found to be over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverSession {
    pub broker: String,
    pub version: u64,
}

impl Metadata {
    pub async fn put_broker(&self, id: &str, record: &BrokerRecord) -> Result<(), MetadataError> {
        let put = Op::put(format!("{PREFIX}{id}"), codec::encode(record)?, Expect::Any);
        self.store.commit(vec![put]).await.map(drop)
    }

    pub async fn forget_broker(&self, id: &str) -> Result<(), MetadataError> {
        let gone = [PREFIX, LOAD_REPORTS].map(|prefix| Op::delete(format!("{prefix}{id}"), Expect::Any));
        self.store.commit(gone.into()).await.map(drop)
    }

    /// Tells of brokers that come, change and are forgotten.
    pub async fn watch_brokers(&self) -> Result<Watch, MetadataError> {
        self.store.watch(PREFIX).await
    }

    /// Every broker that was ever registered and has not been forgotten.
    pub async fn list_brokers(&self) -> Result<Vec<(String, BrokerRecord)>, MetadataError> {
        let records = self.list(PREFIX).await?;
        Ok(records.into_iter().map(|(id, record)| (id, record.value)).collect())
    }

    /// What a broker reports of its load; the form is the affair of whoever balances it. Watches are not told.
    pub async fn put_load_report<T: Serialize>(&self, broker: &str, report: &T) -> Result<(), MetadataError> {
        let put = Op::put_quietly(format!("{LOAD_REPORTS}{broker}"), codec::encode(report)?, Expect::Any);
        self.store.commit(vec![put]).await.map(drop)
    }

    pub async fn list_load_reports<T: DeserializeOwned>(&self) -> Result<Vec<T>, MetadataError> {
        Ok(self.list(LOAD_REPORTS).await?.into_iter().map(|(_, report)| report.value).collect())
    }

    /// Begins a broker's session for `ttl` from now on. Another process that holds it is answered.
    pub async fn acquire_broker(&self, id: &str, owner: &str, ttl: Duration) -> Result<LeaseOutcome, MetadataError> {
        self.store.acquire_lease(&format!("{LEASES}{id}"), owner, ttl).await
    }

    /// The sessions of all brokers as they stand. Whether one is over is for who watches them to say: a lease that is not
    /// renewed because metadata are away is not a broker that is.
    pub async fn broker_sessions(&self) -> Result<Vec<BrokerSession>, MetadataError> {
        let sessions = lease::all(&*self.store, LEASES).await?.into_iter().map(|standing| BrokerSession {
            broker: standing.name[LEASES.len()..].to_owned(),
            incarnation: standing.epoch,
            expires_at_ms: standing.is_held.then_some(standing.expires_at_ms),
            version: standing.version,
        });
        Ok(sessions.collect())
    }
}

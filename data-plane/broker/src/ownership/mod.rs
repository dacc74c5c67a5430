//! Whose bundles are whose.
//!
//! A server that is alone owns every bundle and writes nothing about it ([`Ownership::alone`]). Brokers that share metadata
//! keep a session there ([`session`]), follow each other's and the records of bundles (`data-plane/ownership`), and take
//! bundles that nobody owns when they are asked for them ([`member`]). A lease only says who should try: what keeps a deposed
//! owner from doing harm is the fencing of ledgers, and that its metadata are written only while its record stands.

mod member;
mod session;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{BrokerRecord, BundleRecord, Metadata, MovedFor, Wanted};
use geminga_model::BundleName;
pub(crate) use geminga_ownership::Change;
pub use geminga_ownership::{BrokerState, BundleState, Located};
use tokio::sync::mpsc;

use crate::error::{BrokerError, Result};

use member::Member;

/// How this broker shares bundles with others.
pub struct Ownership {
    member: Option<Arc<Member>>,
}

/// How a broker takes part in a cluster.
#[derive(Debug, Clone)]
pub struct MemberOptions {
    /// Unique among the brokers of the cluster: `host:port` of its HTTP address, as in Pulsar.
    pub id: String,
    pub record: BrokerRecord,
    /// How long a session lasts that is not renewed. A broker that dies is missed after that.
    pub session_timeout: Duration,
}

/// The answer to who serves a bundle.
#[derive(Debug, Clone, PartialEq)]
pub enum Owner {
    /// This broker.
    Me(Tenure),
    Other(Box<Located>),
}

/// By what this broker owns a bundle: the version of the bundle's record. None when there is no other broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    pub version: Option<u64>,
}

/// Where a bundle goes that is given up.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Target<'a> {
    /// None: to whichever broker suits.
    pub broker: Option<&'a str>,
    pub reason: MovedFor,
}

impl Ownership {
    /// There is no other broker.
    pub fn alone() -> Arc<Self> {
        Arc::new(Self { member: None })
    }

    /// Begins a session and reads who owns what.
    pub async fn join(metadata: Metadata, options: MemberOptions) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { member: Some(Member::join(metadata, options).await?) }))
    }

    /// Who serves the bundle. A bundle that nobody owns is given to one of the brokers that are alive.
    ///
    /// # Errors
    /// [`BrokerError::ServiceNotReady`]: nobody could be found in time.
    pub async fn find(&self, bundle: &BundleName) -> Result<Owner> {
        match &self.member {
            None => Ok(Owner::Me(Tenure { version: None })),
            Some(member) => member.find(bundle).await,
        }
    }

    /// The same, by what metadata say now rather than by what was heard from them last: for who was told that it is this
    /// broker's.
    pub(crate) async fn find_anew(&self, bundle: &BundleName) -> Result<Owner> {
        if let Some(member) = &self.member {
            member.read_again(bundle).await?;
        }
        self.find(bundle).await
    }

    /// Asks something of the owner of a bundle, and waits until it is done. Nothing happens when nobody owns it.
    pub async fn ask(&self, bundle: &BundleName, wanted: Wanted) -> Result<()> {
        match &self.member {
            None => Ok(()),
            Some(member) => member.ask(bundle, wanted).await,
        }
    }

    /// The record that a bundle of this broker has which is new. None when there are no other brokers.
    pub(crate) fn me(&self) -> Option<BundleRecord> {
        self.member.as_ref().map(|member| member.me())
    }

    /// Gives a bundle of this broker up. Answers who has it now.
    pub(crate) async fn give_up(
        &self,
        bundle: &BundleName,
        tenure: Tenure,
        target: Target<'_>,
    ) -> Result<Option<Located>> {
        match (&self.member, tenure.version) {
            (Some(member), Some(version)) => member.give_up(bundle, version, target).await,
            _ => Ok(None),
        }
    }

    /// Whether nobody else can have the bundle. False, as when metadata are away: perhaps somebody has it.
    pub(crate) fn has_surely(&self, bundle: &BundleName, tenure: Tenure) -> bool {
        match (&self.member, tenure.version) {
            (Some(member), Some(version)) => member.has_surely(bundle, version),
            _ => true,
        }
    }

    /// Whether the bundle is this broker's by that record, as far as is known.
    pub(crate) fn holds(&self, bundle: &BundleName, tenure: Tenure) -> bool {
        match (&self.member, tenure.version) {
            (Some(member), Some(version)) => member.holds(bundle, version),
            _ => true,
        }
    }

    /// The same, by what metadata say now.
    pub(crate) async fn holds_now(&self, bundle: &BundleName, tenure: Tenure) -> Result<bool> {
        if let Some(member) = &self.member {
            member.read_again(bundle).await?;
        }
        Ok(self.holds(bundle, tenure))
    }

    /// The broker's name among others, its session and whether it takes bundles. None when it is alone.
    pub(crate) fn standing(&self) -> Option<(&str, u64, bool)> {
        self.member.as_ref().map(|member| member.standing())
    }

    /// Whether the broker shares bundles with others.
    pub fn is_shared(&self) -> bool {
        self.member.is_some()
    }

    /// Takes the changes of this broker's bundles; who asks first gets them all.
    pub(crate) fn changes(&self) -> Option<mpsc::UnboundedReceiver<Change>> {
        self.member.as_ref()?.take_changes()
    }

    /// The brokers that are alive, sorted by id; none when this one is alone.
    pub fn brokers(&self) -> Vec<BrokerState> {
        self.member.as_ref().map(|member| member.brokers()).unwrap_or_default()
    }

    /// Every bundle with an owner that is alive.
    pub fn bundles(&self) -> Vec<BundleState> {
        self.member.as_ref().map(|member| member.bundles()).unwrap_or_default()
    }

    /// Who has the bundle now, if it is a broker that is known to be alive. Asks nobody and places nothing.
    pub fn owner_known(&self, bundle: &BundleName) -> Option<Located> {
        self.member.as_ref()?.owner_known(bundle)
    }

    /// Where a broker is that is alive.
    pub fn broker(&self, id: &str) -> Option<Located> {
        self.member.as_ref()?.located(id)
    }

    /// Renews nothing and hears nothing any more, as when the process sleeps or dies: for tests.
    #[doc(hidden)]
    pub fn abandon(&self) {
        if let Some(member) = &self.member {
            member.stop();
        }
    }

    /// Takes no more bundles from now on.
    pub(crate) async fn drain(&self) -> Result<()> {
        match &self.member {
            None => Ok(()),
            Some(member) => member.drain().await,
        }
    }

    /// Ends the session: what this broker still owns is free for others at once.
    pub(crate) async fn leave(&self) {
        if let Some(member) = &self.member {
            member.leave().await;
        }
    }
}

/// A client came to a broker that does not serve what it wants.
pub(crate) fn not_served_here(bundle: &BundleName) -> BrokerError {
    BrokerError::ServiceNotReady(format!(
        "Namespace bundle for topic not served by this instance. Please redo the lookup. Bundle: {bundle}"
    ))
}

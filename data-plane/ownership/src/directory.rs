//! What this broker knows of all bundles and brokers, and what follows from a change of it.

use std::sync::Arc;

use geminga_metadata::{
    Balanced, BrokerRecord, BrokerSession, BundleRecord, BundleRequest, OverSession, Versioned, Wanted,
};
use geminga_model::{BundleName, topic_hash};
use rustc_hash::FxHashMap;

use crate::sessions::{SessionState, Sessions};

/// Another broker.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    pub broker: String,
    pub record: BrokerRecord,
}

/// What has become of a bundle of this broker.
#[derive(Debug)]
pub enum Change {
    /// Somebody has given the bundle to this broker.
    Gained(BundleName),
    /// It has another owner, or none.
    Lost(BundleName),
    /// Something is asked of this broker as its owner.
    Asked(BundleName, Wanted),
}

/// A broker that is alive.
#[derive(Debug, Clone, PartialEq)]
pub struct BrokerState {
    pub id: String,
    pub incarnation: u64,
    pub record: BrokerRecord,
    /// Bundles that it owns.
    pub bundles: usize,
}

/// A bundle with its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleState {
    pub bundle: BundleName,
    pub owner: String,
    pub epoch: u64,
    pub balanced: Balanced,
}

/// Records as they were last heard of, and the sessions of brokers.
#[derive(Debug)]
pub struct Directory {
    me: Arc<str>,
    /// Of this broker's session, which begins with 1; 0: it is over.
    incarnation: u64,
    bundles: FxHashMap<BundleName, Versioned<BundleRecord>>,
    /// How many of them each session of a broker owns.
    owned: FxHashMap<String, FxHashMap<u64, usize>>,
    /// By which version of its record a bundle was given up by a commit of which it is not known whether it came to pass, or will.
    given_up: FxHashMap<BundleName, u64>,
    brokers: FxHashMap<String, BrokerRecord>,
    sessions: Sessions,
}

/// Who owns a bundle, as far as is known.
#[derive(Debug, PartialEq)]
pub enum Known {
    Mine(u64),
    /// This broker has given it up by a commit that may still come to pass: what it writes to the record with that version makes the
    /// bundle its own again, or finds that it is not.
    GivenUp(Versioned<BundleRecord>),
    Of(Located),
    /// Its owner has missed a renewal of its session.
    Unsure,
    Free,
}

impl Directory {
    pub fn new(me: &str, incarnation: u64, ttl_ms: u64) -> Self {
        Self {
            me: me.into(),
            incarnation,
            bundles: FxHashMap::default(),
            owned: FxHashMap::default(),
            given_up: FxHashMap::default(),
            brokers: FxHashMap::default(),
            sessions: Sessions::new(ttl_ms),
        }
    }

    /// The session is over: what it had is lost, and nothing is this broker's any more.
    pub fn end_session(&mut self, changes: &mut Vec<Change>) {
        let lost = self.bundles.iter().filter(|(_, record)| self.is_mine(&record.value));
        changes.extend(lost.map(|(bundle, _)| Change::Lost(bundle.clone())));
        self.incarnation = 0;
    }

    fn is_mine(&self, record: &BundleRecord) -> bool {
        record.owner.as_deref() == Some(&*self.me) && record.incarnation == self.incarnation
    }

    /// Takes a record in, unless a newer one is known.
    pub fn learn(&mut self, bundle: &BundleName, record: Versioned<BundleRecord>, changes: &mut Vec<Change>) {
        let before = self.bundles.get(bundle);
        if before.is_some_and(|before| before.version >= record.version) {
            return;
        }
        let was_mine = before.is_some_and(|before| self.is_mine(&before.value));
        match self.is_mine(&record.value) {
            true if !was_mine => changes.push(Change::Gained(bundle.clone())),
            false if was_mine => changes.push(Change::Lost(bundle.clone())),
            _ => {}
        }
        self.given_up.remove(bundle);
        self.count(&record.value);
        if let Some(before) = self.bundles.insert(bundle.clone(), record) {
            self.discount(&before.value);
        }
    }

    fn count(&mut self, record: &BundleRecord) {
        if let Some(owner) = &record.owner {
            *self.owned.entry(owner.clone()).or_default().entry(record.incarnation).or_default() += 1;
        }
    }

    fn discount(&mut self, record: &BundleRecord) {
        let Some(owner) = &record.owner else { return };
        let Some(sessions) = self.owned.get_mut(owner) else { return };
        if let Some(bundles) = sessions.get_mut(&record.incarnation) {
            *bundles -= 1;
        }
        sessions.retain(|_, bundles| *bundles > 0);
        if sessions.is_empty() {
            self.owned.remove(owner);
        }
    }

    /// Whether a commit that gives a bundle up came to pass, or will, is not known. It was to find that version of the record.
    pub fn may_be_given_up(&mut self, bundle: &BundleName, version: u64) {
        self.given_up.insert(bundle.clone(), version);
    }

    /// The bundle is this broker's by that version of its record, unless somebody else's commit has not been heard of yet.
    pub fn has(&self, bundle: &BundleName, version: u64) -> bool {
        self.version(bundle) == Some(version) && self.given_up.get(bundle) != Some(&version)
    }

    /// The session of a bundle's last owner, for who takes the bundle because that is over.
    pub fn over_session(&self, bundle: &BundleName) -> Option<OverSession> {
        let record = &self.bundles.get(bundle)?.value;
        self.sessions.over(record.owner.as_deref()?, record.incarnation)
    }

    /// Somebody asks something of a bundle's owner; concerns this broker only as long as it is the one that is meant.
    pub fn asked(&self, bundle: &BundleName, request: BundleRequest, changes: &mut Vec<Change>) {
        let concerned = self.bundles.get(bundle).filter(|record| self.is_mine(&record.value));
        if concerned.is_some_and(|record| record.value.epoch == request.epoch) {
            changes.push(Change::Asked(bundle.clone(), request.wanted));
        }
    }

    /// A bundle's record is gone; `version` is what was known of it before that was found out.
    pub fn forget(&mut self, bundle: &BundleName, version: Option<u64>, changes: &mut Vec<Change>) {
        if self.version(bundle) != version {
            return;
        }
        self.given_up.remove(bundle);
        let Some(record) = self.bundles.remove(bundle) else { return };
        self.discount(&record.value);
        if self.is_mine(&record.value) {
            changes.push(Change::Lost(bundle.clone()));
        }
    }

    pub fn version(&self, bundle: &BundleName) -> Option<u64> {
        self.bundles.get(bundle).map(|record| record.version)
    }

    pub fn record(&self, bundle: &BundleName) -> Option<&Versioned<BundleRecord>> {
        self.bundles.get(bundle)
    }

    pub fn known_bundles(&self) -> Vec<BundleName> {
        self.bundles.keys().cloned().collect()
    }

    pub fn set_brokers(&mut self, brokers: Vec<(String, BrokerRecord)>) {
        self.brokers = brokers.into_iter().collect();
    }

    /// What metadata say of sessions, see [`Sessions::look`].
    pub fn look(&mut self, now_ms: u64, sessions: Vec<BrokerSession>, renewed_ms: u64) {
        self.sessions.look(now_ms, sessions, (self.incarnation != 0).then_some(renewed_ms));
    }

    pub fn owner(&self, now_ms: u64, bundle: &BundleName) -> Known {
        let Some(known @ Versioned { value: record, version }) = self.bundles.get(bundle) else { return Known::Free };
        if self.is_mine(record) {
            return match self.has(bundle, *version) {
                true => Known::Mine(*version),
                false => Known::GivenUp(known.clone()),
            };
        }
        let Some(owner) = &record.owner else { return Known::Free };
        match self.sessions.state(now_ms, owner, record.incarnation) {
            SessionState::Over => Known::Free,
            SessionState::Suspect => Known::Unsure,
            // A broker whose addresses have not been heard of yet.
            SessionState::Alive => self.located(owner).map_or(Known::Unsure, Known::Of),
        }
    }

    pub fn located(&self, id: &str) -> Option<Located> {
        self.brokers.get(id).map(|record| Located { broker: id.to_owned(), record: record.clone() })
    }

    /// The brokers that are alive, by id.
    pub fn alive(&self, now_ms: u64) -> Vec<BrokerState> {
        let owned = |id: &str, incarnation| self.owned.get(id)?.get(&incarnation).copied();
        let mut alive: Vec<BrokerState> = self
            .sessions
            .alive(now_ms)
            .filter_map(|(id, incarnation)| {
                let bundles = owned(id, incarnation).unwrap_or(0);
                let record = self.brokers.get(id)?.clone();
                Some(BrokerState { id: id.to_owned(), incarnation, record, bundles })
            })
            .collect();
        alive.sort_by(|a, b| a.id.cmp(&b.id));
        alive
    }

    /// Every bundle whose owner is alive, by name.
    pub fn owned(&self, now_ms: u64) -> Vec<BundleState> {
        let is_alive = |owner: &str, incarnation| {
            (owner == &*self.me && incarnation == self.incarnation)
                || self.sessions.state(now_ms, owner, incarnation) != SessionState::Over
        };
        let mut owned: Vec<BundleState> = self
            .bundles
            .iter()
            .filter_map(|(bundle, Versioned { value, .. })| {
                let owner = value.owner.clone().filter(|owner| is_alive(owner, value.incarnation))?;
                Some(BundleState { bundle: bundle.clone(), owner, epoch: value.epoch, balanced: value.balanced })
            })
            .collect();
        owned.sort_by(|a, b| a.bundle.cmp(&b.bundle));
        owned
    }
}

/// The broker with the fewest bundles among those that take any; `not` only when there is no other. Brokers with as many are
/// told apart by a hash, so that different bundles go to different ones.
pub fn choose(bundle: &BundleName, alive: &[BrokerState], not: Option<&str>) -> Option<(String, u64)> {
    let takes = |broker: &&BrokerState| !broker.record.draining && Some(&*broker.id) != not;
    let rank = |broker: &&BrokerState| (broker.bundles, topic_hash(&format!("{bundle}@{}", broker.id)));
    let best = alive.iter().filter(takes).min_by_key(rank);
    best.map(|broker| (broker.id.clone(), broker.incarnation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> BundleName {
        "public/default/0x00000000_0x40000000".parse().unwrap()
    }

    fn record(owner: &str, incarnation: u64, version: u64) -> Versioned<BundleRecord> {
        let value = BundleRecord { owner: Some(owner.into()), incarnation, epoch: 1, balanced: Balanced::default() };
        Versioned { value, version }
    }

    fn directory() -> Directory {
        let mut directory = Directory::new("me", 3, 1000);
        let session = |broker: &str, incarnation| BrokerSession {
            broker: broker.to_owned(),
            incarnation,
            expires_at_ms: Some(1),
            version: incarnation,
        };
        directory.look(0, vec![session("me", 3), session("other", 5)], 0);
        directory.set_brokers(vec![("me".into(), BrokerRecord::default()), ("other".into(), BrokerRecord::default())]);
        directory
    }

    #[test]
    fn a_bundle_that_may_be_given_up_is_this_brokers_once_its_record_is_written_anew() {
        let mut directory = directory();
        let mut changes = Vec::new();
        directory.learn(&bundle(), record("me", 3, 1), &mut changes);
        assert!(directory.has(&bundle(), 1) && directory.owner(0, &bundle()) == Known::Mine(1));
        directory.may_be_given_up(&bundle(), 1);
        assert!(!directory.has(&bundle(), 1));
        assert_eq!(directory.owner(0, &bundle()), Known::GivenUp(record("me", 3, 1)));
        directory.learn(&bundle(), record("me", 3, 2), &mut changes);
        assert_eq!(directory.owner(0, &bundle()), Known::Mine(2));
        assert!(matches!(changes[..], [Change::Gained(_)]), "it was this broker's all the time");
    }

    #[test]
    fn who_takes_a_bundle_depends_on_the_session_that_is_over() {
        let mut directory = directory();
        let mut changes = Vec::new();
        assert_eq!(directory.over_session(&bundle()), None);
        directory.learn(&bundle(), record("other", 5, 1), &mut changes);
        let over = OverSession { broker: "other".into(), version: 5 };
        assert_eq!(directory.over_session(&bundle()), Some(over));
        directory.learn(&bundle(), record("other", 4, 2), &mut changes);
        assert_eq!(directory.over_session(&bundle()), None, "an incarnation that is no more renews nothing");
    }

    #[test]
    fn owners_are_found_by_record_and_session() {
        let mut directory = directory();
        let mut changes = Vec::new();
        assert_eq!(directory.owner(0, &bundle()), Known::Free);
        directory.learn(&bundle(), record("other", 5, 1), &mut changes);
        assert!(matches!(directory.owner(0, &bundle()), Known::Of(located) if located.broker == "other"));
        assert_eq!(directory.owner(600, &bundle()), Known::Unsure);
        assert_eq!(directory.owner(1000, &bundle()), Known::Free);
        directory.learn(&bundle(), record("other", 4, 2), &mut changes);
        assert_eq!(directory.owner(0, &bundle()), Known::Free, "an incarnation that is over");
        assert!(changes.is_empty());
    }

    #[test]
    fn old_news_change_nothing() {
        let mut directory = directory();
        let mut changes = Vec::new();
        directory.learn(&bundle(), record("me", 3, 7), &mut changes);
        assert!(matches!(changes[..], [Change::Gained(_)]));
        directory.learn(&bundle(), record("other", 5, 6), &mut changes);
        directory.forget(&bundle(), Some(6), &mut changes);
        assert_eq!(directory.owner(0, &bundle()), Known::Mine(7));
        assert_eq!(changes.len(), 1);
    }

    #[test]
    fn what_is_asked_of_an_ownership_that_is_over_means_nothing() {
        let mut directory = directory();
        let mut changes = Vec::new();
        directory.learn(&bundle(), record("me", 3, 7), &mut changes);
        directory.asked(&bundle(), BundleRequest { epoch: 0, wanted: Wanted::Split }, &mut changes);
        assert_eq!(changes.len(), 1);
        directory.asked(&bundle(), BundleRequest { epoch: 1, wanted: Wanted::Split }, &mut changes);
        assert!(matches!(&changes[1], Change::Asked(_, Wanted::Split)));
    }

    #[test]
    fn this_broker_owns_what_its_session_took_and_learns_what_it_lost() {
        let mut directory = directory();
        let mut changes = Vec::new();
        directory.learn(&bundle(), record("me", 2, 7), &mut changes);
        assert_eq!(directory.owner(0, &bundle()), Known::Free, "taken by an earlier session");
        directory.learn(&bundle(), record("me", 3, 8), &mut changes);
        // Its own lease needs no renewal for what it knows to be its own.
        assert_eq!(directory.owner(60_000, &bundle()), Known::Mine(8));
        directory.learn(&bundle(), record("other", 5, 9), &mut changes);
        assert!(matches!(changes[..], [Change::Gained(_), Change::Lost(_)]));

        directory.learn(&bundle(), record("me", 3, 10), &mut changes);
        directory.end_session(&mut changes);
        assert!(matches!(changes[2..], [Change::Gained(_), Change::Lost(_)]));
        let newer = BrokerSession { broker: "me".into(), incarnation: 4, expires_at_ms: Some(1), version: 9 };
        directory.look(1, vec![newer], 0);
        assert_eq!(directory.owner(1, &bundle()), Known::Free);
    }
    #[test]
    fn bundles_of_brokers_are_counted() {
        let mut directory = directory();
        let mut changes = Vec::new();
        let names = ["0x00000000_0x40000000", "0x40000000_0x80000000", "0x80000000_0xffffffff"];
        let bundles = names.map(|range| format!("public/default/{range}").parse::<BundleName>().unwrap());
        let counted = |directory: &Directory| -> Vec<(String, usize)> {
            directory.alive(0).into_iter().map(|broker| (broker.id, broker.bundles)).collect()
        };
        for (bundle, incarnation) in bundles.iter().zip([5, 5, 4]) {
            directory.learn(bundle, record("other", incarnation, 1), &mut changes);
        }
        assert_eq!(counted(&directory), [("me".to_owned(), 0), ("other".to_owned(), 2)], "not what it had before");
        directory.learn(&bundles[0], record("me", 3, 2), &mut changes);
        directory.forget(&bundles[1], Some(1), &mut changes);
        directory.learn(&bundles[2], record("other", 5, 2), &mut changes);
        assert_eq!(counted(&directory), [("me".to_owned(), 1), ("other".to_owned(), 1)]);
        let nobody = BundleRecord { owner: None, ..record("other", 0, 3).value };
        directory.learn(&bundles[0], Versioned { value: nobody, version: 3 }, &mut changes);
        directory.forget(&bundles[2], Some(2), &mut changes);
        assert!(directory.owned.is_empty());
    }
}

//! The data directories of a node, each with a log of its own: which of them has a ledger.
//!
//! A ledger is in one directory. Which one is decided once, by the room that each has, when the first word about the ledger
//! comes; after a restart the directories say themselves what they have. With one directory there is nothing to remember.
//!
//! Ledgers are in *limbo* when they are found nowhere and may be in a directory that is missing: see limbo.rs. Ledgers that
//! metadata gave out after the directory went missing ([`Directories::set_limbo_below`]) cannot be there, and are taken as ever.
//!
//! A ledger that was deleted counts as being in the directory that remembers the deletion, which refuses whatever comes late.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_log::{Append, AppendError, Done, ExplicitLac, FenceDone, FenceError, Log, LogStats, MasterKey, ReadError};
use parking_lot::{Mutex, RwLock};
use rand::Rng;
use rustc_hash::FxHashMap;

use crate::identity::Identity;
use crate::limbo::Limbo;
use crate::state_file::StateFileError;

/// How old a directory's figures may be when a ledger is placed.
const ROOM_AGE: Duration = Duration::from_millis(500);

/// One data directory that is in use.
pub struct Directory {
    pub path: PathBuf,
    pub log: Log,
}

/// Two directories have the same ledger: they do not belong together.
#[derive(Debug, thiserror::Error)]
#[error("ledger {ledger} is in {one} and in {other}: these data directories do not belong together")]
pub struct LedgerTwice {
    pub ledger: u64,
    pub one: String,
    pub other: String,
}

/// See the module's head.
pub struct Directories {
    all: Vec<Directory>,
    /// By ledger, if there are several directories.
    homes: RwLock<FxHashMap<u64, u32>>,
    limbo: Limbo,
    room: Mutex<Option<(Instant, Vec<u64>)>>,
}

enum Home<'d> {
    Here(&'d Log),
    Nowhere,
    /// See limbo.rs. Where the first copy is to go, if that is decided: nothing of the ledger is durable there yet.
    Limbo(Option<&'d Log>),
}

impl From<Log> for Directories {
    fn from(log: Log) -> Self {
        let all = vec![Directory { path: PathBuf::new(), log }];
        Self { all, homes: RwLock::default(), limbo: Limbo::default(), room: Mutex::default() }
    }
}

impl Directories {
    /// Of ledgers below `limbo_below` that are in none of them it is unknown whether they were here.
    ///
    /// # Errors
    /// Two of them have the same ledger.
    ///
    /// # Panics
    /// There is none.
    pub fn new(all: Vec<Directory>, limbo_below: u64) -> Result<Self, LedgerTwice> {
        assert!(!all.is_empty(), "a node has a data directory");
        let mut homes = FxHashMap::default();
        if all.len() > 1 {
            for (at, directory) in all.iter().enumerate() {
                for ledger in directory.log.ledgers() {
                    if let Some(other) = homes.insert(ledger, at as u32) {
                        let name = |at: usize| all[at].path.display().to_string();
                        return Err(LedgerTwice { ledger, one: name(other as usize), other: name(at) });
                    }
                }
            }
        }
        Ok(Self { all, homes: RwLock::new(homes), limbo: Limbo::new(limbo_below), room: Mutex::default() })
    }

    /// Ledgers below `least` may have been here, also when metadata say that they have not given so many ids.
    #[must_use]
    pub fn with_least_limbo(mut self, least: u64) -> Self {
        self.limbo.set_least(least);
        self
    }

    /// What the directories have noted of ledgers in limbo, `settled_below` in their identities among it.
    ///
    /// # Errors
    /// A note is there and cannot be read: of which ledgers something is missing is unknown then.
    pub fn recall(self, settled_below: u64) -> Result<Self, StateFileError> {
        self.limbo.recall(settled_below, self.all.iter().map(|directory| directory.path.clone()).collect())?;
        Ok(self)
    }

    pub fn all(&self) -> &[Directory] {
        &self.all
    }

    /// Ledgers that metadata have not given out yet cannot be in a directory that is missing by now.
    pub fn set_limbo_below(&self, horizon: u64) {
        self.limbo.set_below(horizon);
    }

    pub fn limbo_below(&self) -> u64 {
        self.limbo.below()
    }

    pub fn settled_below(&self) -> u64 {
        self.limbo.settled_below()
    }

    /// Whether it is known what this node lacks.
    pub fn is_settled(&self) -> bool {
        self.limbo.is_settled()
    }

    /// Ledgers of which not everything is here again: see limbo.rs.
    pub fn unfinished(&self) -> BTreeSet<u64> {
        self.limbo.unfinished()
    }

    pub fn unfinished_count(&self) -> usize {
        self.limbo.unfinished_count()
    }

    pub fn is_in_limbo(&self, ledger: u64) -> bool {
        matches!(self.home(ledger), Home::Limbo(_))
    }

    /// Whether the node may have had more of the ledger than is here.
    pub fn may_lack(&self, ledger: u64) -> bool {
        self.is_in_limbo(ledger) || self.limbo.is_unfinished(ledger)
    }

    fn home(&self, ledger: u64) -> Home<'_> {
        let is_known = |log: &Log| log.knows(ledger) || log.has_deleted(ledger);
        let is_from_before = ledger < self.limbo.below();
        if let [only] = &self.all[..] {
            let is_here = !is_from_before || is_known(&only.log);
            return if is_here { Home::Here(&only.log) } else { Home::Limbo(None) };
        }
        if let Some(&at) = self.homes.read().get(&ledger) {
            let log = &self.all[at as usize].log;
            return if is_from_before && !is_known(log) { Home::Limbo(Some(log)) } else { Home::Here(log) };
        }
        match self.all.iter().find(|directory| directory.log.has_deleted(ledger)) {
            Some(directory) => Home::Here(&directory.log),
            None if is_from_before => Home::Limbo(None),
            None => Home::Nowhere,
        }
    }

    /// Where something of the ledger is to be written.
    fn place(&self, ledger: u64) -> Result<&Log, AppendError> {
        match self.home(ledger) {
            Home::Here(log) => Ok(log),
            Home::Limbo(_) => Err(AppendError::Unknown),
            Home::Nowhere => Ok(self.settle_down(ledger, self.roomiest())),
        }
    }

    /// Unless it has a place already.
    fn settle_down(&self, ledger: u64, at: usize) -> &Log {
        let at = *self.homes.write().entry(ledger).or_insert(at as u32);
        &self.all[at as usize].log
    }

    /// A directory at random, the more likely the more room it has: they fill alike, and share the load of new ledgers.
    fn roomiest(&self) -> usize {
        let mut known = self.room.lock();
        if known.as_ref().is_none_or(|(since, _)| since.elapsed() > ROOM_AGE) {
            let room = |directory: &Directory| {
                let stats = directory.log.stats();
                if stats.full || stats.read_only { 0 } else { stats.free_bytes }
            };
            *known = Some((Instant::now(), self.all.iter().map(room).collect()));
        }
        let (_, room) = known.as_ref().expect("just looked");
        // With no room anywhere each is as good as the others, and says so itself.
        let mut drawn = rand::rng().random_range(0..room.iter().sum::<u64>().max(1));
        room.iter()
            .position(|bytes| {
                let is_it = drawn < *bytes;
                drawn = drawn.saturating_sub(*bytes);
                is_it
            })
            .unwrap_or(0)
    }

    pub fn append_to_replica(&self, entries: Vec<Append>, key: MasterKey, recovery: bool, done: Done) {
        let Some(ledger) = entries.first().map(|entry| entry.ledger) else { return done(Ok(())) };
        if recovery && self.is_settled() {
            return self.append_copies(ledger, entries, key, done);
        }
        match self.place(ledger) {
            Ok(log) if recovery || !self.limbo.is_unfinished(ledger) => {
                log.append_to_replica(entries, key, recovery, done);
            }
            Ok(_) => done(Err(AppendError::Unknown)),
            Err(error) => done(Err(error)),
        }
    }

    /// An entry that other nodes have.
    pub fn append_copy(&self, entry: Append, key: MasterKey, done: Done) {
        self.append_copies(entry.ledger, vec![entry], key, done);
    }

    /// Also of a ledger in limbo. That may have been fenced, so it is before anything of it is here.
    fn append_copies(&self, ledger: u64, entries: Vec<Append>, key: MasterKey, done: Done) {
        let log = match self.home(ledger) {
            Home::Here(log) => return log.append_to_replica(entries, key, true, done),
            Home::Nowhere => {
                return self.settle_down(ledger, self.roomiest()).append_to_replica(entries, key, true, done);
            }
            Home::Limbo(Some(log)) => log,
            // It is then where damage hides it.
            Home::Limbo(None) => {
                let with_holes = self.all.iter().position(|directory| directory.log.stats().holes > 0);
                self.settle_down(ledger, with_holes.unwrap_or_else(|| self.roomiest()))
            }
        };
        let then = log.clone();
        let fenced = move |result| match result {
            // What its last entry is does not matter.
            Ok(_) | Err(FenceError::Unknown(_)) => then.append_to_replica(entries, key, true, done),
            Err(FenceError::NotDurable(error)) => done(Err(error)),
        };
        log.fence_replica(ledger, key, Box::new(fenced));
    }

    /// It is known what this node lacks of ledgers below this id: of these, entries of finished fragments. Whatever damage may hide is
    /// settled by that.
    ///
    /// # Errors
    /// That could not be written down, and the node is not settled.
    pub fn settle(&self, horizon: u64, lacking: &BTreeSet<u64>) -> Result<(), StateFileError> {
        self.limbo.note_unfinished(lacking)?;
        for directory in &self.all {
            if let Some(identity) = Identity::read(&directory.path)? {
                let limbo_below = identity.limbo_below.max(horizon);
                Identity { limbo_below, settled_below: limbo_below, ..identity }.write(&directory.path)?;
            }
        }
        self.all.iter().for_each(|directory| directory.log.forgive_holes());
        self.limbo.set_settled_below(horizon);
        Ok(())
    }

    /// All that this node has to have of these is here.
    ///
    /// # Errors
    /// That could not be written down.
    pub fn finish(&self, ledgers: &BTreeSet<u64>) -> Result<(), StateFileError> {
        self.limbo.finish(ledgers)
    }

    pub fn fence_replica(&self, ledger: u64, key: MasterKey, done: FenceDone) {
        match self.place(ledger) {
            Ok(log) => log.fence_replica(ledger, key, done),
            Err(_) => done(Err(FenceError::Unknown(limbo(ledger, None)))),
        }
    }

    pub fn confirm_replica(&self, ledger: u64, key: MasterKey, lac: ExplicitLac, done: Done) {
        match self.place(ledger) {
            Ok(log) => log.confirm_replica(ledger, key, lac, done),
            Err(error) => done(Err(error)),
        }
    }

    /// Looks into the directory that has the ledger. If none is known to, each is asked: one with damage may not know.
    fn look<T>(
        &self,
        ledger: u64,
        entry: Option<u64>,
        look: impl Fn(&Log) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        match self.home(ledger) {
            Home::Here(log) => match look(log) {
                Err(ReadError::NoSuchLedger { .. } | ReadError::NoSuchEntry { .. })
                    if self.limbo.is_unfinished(ledger) =>
                {
                    Err(limbo(ledger, entry))
                }
                other => other,
            },
            Home::Limbo(_) => Err(limbo(ledger, entry)),
            Home::Nowhere => {
                for directory in &self.all {
                    match look(&directory.log) {
                        Err(ReadError::NoSuchLedger { .. }) => (),
                        other => return other,
                    }
                }
                Err(ReadError::NoSuchLedger { ledger })
            }
        }
    }

    pub fn read(&self, ledger: u64, entry: u64) -> Result<Bytes, ReadError> {
        self.look(ledger, Some(entry), |log| log.read(ledger, entry))
    }

    /// As [`Log::read_range`].
    pub fn read_range(
        &self,
        ledger: u64,
        first: u64,
        last: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, ReadError> {
        self.look(ledger, Some(first), |log| log.read_range(ledger, first, last, max_bytes))
    }

    pub fn last_entry(&self, ledger: u64) -> Result<Option<u64>, ReadError> {
        if self.limbo.is_unfinished(ledger) {
            return Err(limbo(ledger, None));
        }
        self.look(ledger, None, |log| log.last_entry(ledger))
    }

    /// Entries that are here, for whoever copies those that are not. "Nothing" is said of a ledger in limbo only once it is settled
    /// what the node lacks.
    pub fn stretches(&self, ledger: u64) -> Result<Vec<(u64, u64)>, ReadError> {
        match self.home(ledger) {
            Home::Here(log) => log.stretches(ledger),
            Home::Limbo(_) if self.is_settled() => Ok(Vec::new()),
            Home::Limbo(_) | Home::Nowhere => self.look(ledger, None, |log| log.stretches(ledger)),
        }
    }

    /// Bytes that the ledger takes on disk; 0 if it is not here.
    pub fn ledger_bytes(&self, ledger: u64) -> u64 {
        match self.home(ledger) {
            Home::Here(log) => log.ledger_bytes(ledger),
            Home::Limbo(_) | Home::Nowhere => 0,
        }
    }

    pub fn replica(&self, ledger: u64) -> Option<(bool, Option<ExplicitLac>)> {
        match self.home(ledger) {
            Home::Here(log) => log.replica(ledger),
            Home::Limbo(_) | Home::Nowhere => None,
        }
    }

    /// The master key of a replica, if it is known.
    pub fn key(&self, ledger: u64) -> Option<MasterKey> {
        match self.home(ledger) {
            Home::Here(log) => log.key(ledger),
            Home::Limbo(_) | Home::Nowhere => None,
        }
    }

    /// Whether the index has the entry, readable or not. Blocks.
    pub fn lists(&self, ledger: u64, entry: u64) -> bool {
        matches!(self.home(ledger), Home::Here(log) if log.lists(ledger, entry))
    }

    /// As [`Log::is_damaged`].
    pub fn is_damaged(&self, ledger: u64, entry: u64) -> bool {
        matches!(self.home(ledger), Home::Here(log) if log.is_damaged(ledger, entry))
    }

    /// Deletes ledgers, durably; `done` hears once. Those that are nowhere are no error.
    pub async fn delete(&self, ledgers: &[u64]) -> Result<(), AppendError> {
        let mut waiting = Vec::new();
        for (at, directory) in self.all.iter().enumerate() {
            let is_here = |ledger: &u64| match self.homes.read().get(ledger) {
                Some(&home) => home as usize == at,
                // Damage may hide it anywhere.
                None => true,
            };
            let here: Vec<u64> = ledgers.iter().copied().filter(is_here).collect();
            if here.is_empty() {
                continue;
            }
            let (sender, receiver) = tokio::sync::oneshot::channel();
            // The caller may have gone; the deletion stands all the same.
            directory.log.delete_ledgers(&here, Box::new(move |result| drop(sender.send(result))));
            waiting.push((here, receiver));
        }
        let mut outcome = Ok(());
        for (here, receiver) in waiting {
            match receiver.await.unwrap_or(Err(AppendError::Closed)) {
                Ok(()) => {
                    let mut homes = self.homes.write();
                    for ledger in &here {
                        homes.remove(ledger);
                    }
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Ids of all ledgers, in order.
    pub fn ledgers(&self) -> Vec<u64> {
        let mut ledgers: Vec<u64> = self.all.iter().flat_map(|directory| directory.log.ledgers()).collect();
        ledgers.sort_unstable();
        ledgers
    }

    /// Of all logs together; the node is full, or read-only, when each of them takes nothing.
    pub fn stats(&self) -> LogStats {
        let mut total = LogStats { full: true, read_only: true, ..LogStats::default() };
        let mut takes_entries = false;
        for one in self.all.iter().map(|directory| directory.log.stats()) {
            takes_entries |= !one.full && !one.read_only;
            total.segments += one.segments;
            total.ledgers += one.ledgers;
            total.deleted_ranges += one.deleted_ranges;
            total.data_bytes += one.data_bytes;
            total.live_bytes += one.live_bytes;
            total.free_bytes += one.free_bytes;
            total.total_bytes += one.total_bytes;
            total.index_cache_bytes += one.index_cache_bytes;
            total.open_index_bytes += one.open_index_bytes;
            total.full &= one.full;
            total.read_only &= one.read_only;
            total.holes += one.holes;
            total.commits += one.commits;
            total.committed_bytes += one.committed_bytes;
            total.queued_bytes += one.queued_bytes;
            total.failed_commits += one.failed_commits;
        }
        // One full and one failing take nothing either.
        total.full |= !takes_entries;
        total
    }

    /// Ends every log; reads go on. Blocks.
    pub fn close(&self) {
        self.all.iter().for_each(|directory| directory.log.close());
    }
}

fn limbo(ledger: u64, entry: Option<u64>) -> ReadError {
    let detail = "it may have been on a data directory that is gone, or in a damaged place".to_owned();
    ReadError::Corrupt { ledger, entry, detail }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use geminga_log::LogOptions;
    use tokio::sync::oneshot;

    use super::*;

    const KEY: MasterKey = [7; 20];

    fn directory(path: &Path) -> Directory {
        let options = LogOptions { segment_bytes: 1 << 20, reserve_bytes: 0, ..LogOptions::default() };
        Directory { path: path.to_owned(), log: Log::open(path, options).expect("it opens").0 }
    }

    async fn add(directories: &Directories, ledger: u64, entry: u64) -> Result<(), AppendError> {
        let (sender, receiver) = oneshot::channel();
        let parts = [Bytes::from(format!("{ledger}:{entry}")), Bytes::new(), Bytes::new()];
        let append = Append { ledger, entry, parts, reserve: false };
        directories.append_to_replica(vec![append], KEY, false, Box::new(move |result| drop(sender.send(result))));
        receiver.await.expect("answered")
    }

    async fn fence(directories: &Directories, ledger: u64) -> Result<Option<u64>, FenceError> {
        let (sender, receiver) = oneshot::channel();
        directories.fence_replica(ledger, KEY, Box::new(move |result| drop(sender.send(result))));
        receiver.await.expect("answered")
    }

    #[tokio::test]
    async fn a_ledger_stays_where_it_is_and_a_missing_directory_takes_only_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = [folder.path().join("a"), folder.path().join("b")];
        let both = || paths.iter().map(|path| directory(path)).collect::<Vec<_>>();
        let directories = Directories::new(both(), 0).expect("they belong together");
        for ledger in 1..=40 {
            for entry in 0..3 {
                assert_eq!(add(&directories, ledger, entry).await, Ok(()));
            }
        }
        assert_eq!(fence(&directories, 41).await, Ok(None));
        let of_each: Vec<Vec<u64>> = directories.all().iter().map(|directory| directory.log.ledgers()).collect();
        assert!(of_each.iter().all(|ledgers| ledgers.len() > 4), "{of_each:?}");
        drop(directories);

        let directories = Directories::new(both(), 0).expect("they belong together");
        assert_eq!(directories.read(40, 2).expect("it is kept"), "40:2");
        assert_eq!(add(&directories, 41, 0).await, Err(AppendError::Fenced), "it is known where it is");
        assert!(matches!(directories.read(99, 0), Err(ReadError::NoSuchLedger { .. })));
        drop(directories);

        let left = Directories::new(vec![directory(&paths[0])], 50).expect("one of them");
        for ledger in 1..=41 {
            let is_left = of_each[0].contains(&ledger);
            match left.last_entry(ledger) {
                Ok(_) => assert!(is_left),
                Err(error) => assert!(!is_left && matches!(error, ReadError::Corrupt { .. }), "{ledger}: {error}"),
            }
            if ledger != 41 {
                assert_eq!(add(&left, ledger, 3).await, if is_left { Ok(()) } else { Err(AppendError::Unknown) });
            }
            if !is_left {
                assert!(matches!(fence(&left, ledger).await, Err(FenceError::Unknown(_))));
            }
        }
        assert_eq!(add(&left, 50, 0).await, Ok(()), "nobody had it when the directory went missing");
        assert_eq!(left.delete(&[50, of_each[0][0], 12345]).await, Ok(()));
        assert!(matches!(left.read(50, 0), Err(ReadError::NoSuchLedger { .. })));
        for ledger in [50, of_each[0][0]] {
            assert_eq!(add(&left, ledger, 9).await, Err(AppendError::Fenced), "it was deleted, and is not in limbo");
            assert_eq!(fence(&left, ledger).await, Ok(None));
        }
        drop(left);

        let directories = Directories::new(both(), 0).expect("they belong together");
        for ledger in [50, of_each[0][0]] {
            assert_eq!(add(&directories, ledger, 9).await, Err(AppendError::Fenced), "whichever directory had it");
            assert_eq!(fence(&directories, ledger).await, Ok(None));
            assert!(matches!(directories.last_entry(ledger), Err(ReadError::NoSuchLedger { .. })));
        }
        let lost = of_each[1][0];
        assert_eq!(directories.read(lost, 2).expect("it was only away"), format!("{lost}:2"));
        drop(directories);
        let doubled = folder.path().join("c");
        let single = Directories::from(directory(&doubled).log);
        assert_eq!(add(&single, lost, 0).await, Ok(()));
        drop(single);
        assert!(Directories::new(vec![directory(&paths[1]), directory(&doubled)], 0).is_err(), "the same ledger twice");
    }

    async fn add_as_recovery(directories: &Directories, ledger: u64, entry: u64) -> Result<(), AppendError> {
        let (sender, receiver) = oneshot::channel();
        let parts = [Bytes::from(format!("{ledger}:{entry}")), Bytes::new(), Bytes::new()];
        let append = Append { ledger, entry, parts, reserve: true };
        directories.append_to_replica(vec![append], KEY, true, Box::new(move |result| drop(sender.send(result))));
        receiver.await.expect("answered")
    }

    #[tokio::test]
    async fn what_was_given_up_is_unknown_until_it_is_settled_and_copied() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = [folder.path().join("a"), folder.path().join("b")];
        let open = |limbo_below, settled_below| {
            let both = paths.iter().map(|path| directory(path)).collect();
            Directories::new(both, limbo_below).expect("they belong together").recall(settled_below).expect("notes")
        };
        let is_unknown = |found: Result<_, ReadError>| matches!(found, Err(ReadError::Corrupt { .. }));
        let node = open(50, 0);
        assert_eq!(add(&node, 60, 0).await, Ok(()), "it came into being since");
        for ledger in [7, 8] {
            assert!(is_unknown(node.stretches(ledger).map(drop)) && is_unknown(node.read(ledger, 0).map(drop)));
            assert_eq!(add_as_recovery(&node, ledger, 0).await, Err(AppendError::Unknown));
        }

        node.settle(50, &BTreeSet::from([7])).expect("it is noted");
        for ledger in [7, 8] {
            assert_eq!(node.stretches(ledger), Ok(vec![]));
            assert!(is_unknown(node.read(ledger, 0).map(drop)) && is_unknown(node.last_entry(ledger).map(drop)));
            assert!(matches!(fence(&node, ledger).await, Err(FenceError::Unknown(_))));
            assert_eq!(add(&node, ledger, 0).await, Err(AppendError::Unknown), "its writer may be deposed");
            for entry in [0, 2] {
                assert_eq!(add_as_recovery(&node, ledger, entry).await, Ok(()));
            }
        }
        drop(node);

        let node = open(50, 50);
        for ledger in [7, 8] {
            assert_eq!(node.stretches(ledger), Ok(vec![(0, 1), (2, 1)]));
            assert_eq!(node.read(ledger, 2).expect("it was copied"), format!("{ledger}:2"));
            let homes = node.all().iter().filter(|directory| directory.log.knows(ledger)).count();
            assert_eq!((homes, node.replica(ledger).map(|(is_fenced, _)| is_fenced)), (1, Some(true)));
        }
        for entry in [1, 3] {
            assert!(is_unknown(node.read(7, entry).map(drop)), "it may have been acknowledged here");
            assert!(
                matches!(node.read(8, entry), Err(ReadError::NoSuchEntry { .. })),
                "metadata did not name this node"
            );
        }
        assert!(is_unknown(node.last_entry(7).map(drop)));
        assert_eq!(fence(&node, 7).await, Ok(Some(2)));
        assert_eq!(add(&node, 7, 3).await, Err(AppendError::Unknown));
        assert_eq!(add(&node, 8, 3).await, Err(AppendError::Fenced));

        assert_eq!(add_as_recovery(&node, 7, 1).await, Ok(()));
        node.finish(&BTreeSet::from([7])).expect("it is noted");
        assert!(matches!(node.read(7, 3), Err(ReadError::NoSuchEntry { .. })));
        assert_eq!(node.last_entry(7), Ok(Some(2)));
        assert_eq!(add(&node, 7, 3).await, Err(AppendError::Fenced));
        drop(node);
        assert_eq!(open(50, 50).unfinished_count(), 0);

        // Another directory is given up.
        let node = open(90, 50);
        assert!(is_unknown(node.stretches(70).map(drop)) && node.stretches(7) == Ok(vec![(0, 3)]));
    }

    #[tokio::test]
    async fn a_bound_from_older_metadata_is_not_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let node =
            Directories::new(vec![directory(folder.path())], u64::MAX).expect("one of them").with_least_limbo(90);
        node.set_limbo_below(50);
        assert_eq!(node.limbo_below(), 90);
        assert!(matches!(node.read(70, 0), Err(ReadError::Corrupt { .. })), "it may have been here");
        node.set_limbo_below(100);
        assert_eq!((node.limbo_below(), add(&node, 100, 0).await), (100, Ok(())));
    }

    #[tokio::test]
    async fn a_copy_lets_no_writer_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let node = Directories::new(vec![directory(folder.path())], 50).expect("one of them");
        let (sender, receiver) = oneshot::channel();
        let append = Append { ledger: 7, entry: 0, ..Append::default() };
        node.append_copy(append, KEY, Box::new(move |result| drop(sender.send(result))));
        assert_eq!(receiver.await.expect("answered"), Ok(()));
        assert_eq!(
            add(&node, 7, 1).await,
            Err(AppendError::Fenced),
            "it may have been fenced where nothing can be read"
        );
    }
}

//! A broker among others: the I/O around [`Directory`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use geminga_metadata::{
    Balanced, BrokerRecord, BundleRecord, BundleRequest, Lease, Metadata, MetadataError, Versioned, Wanted, Watch,
    WatchEvent,
};
use geminga_model::BundleName;
use geminga_ownership::{BrokerState, BundleState, Directory, Known, choose};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::turns::{Turn, Turns};
use super::{Change, Located, MemberOptions, Owner, Target, Tenure, session};
use crate::error::{BrokerError, Result};

/// Pause before what cannot be decided yet is looked at again, if nothing is heard before.
const PAUSE: Duration = Duration::from_millis(50);
/// How long an owner may take to do what it is asked before whoever asked is told that it has not.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Member {
    pub id: String,
    pub metadata: Metadata,
    pub session_timeout: Duration,
    pub record: BrokerRecord,
    pub lease: Mutex<Lease>,
    /// When the last renewal of the session that came through was begun.
    renewed_at: Mutex<Instant>,
    directory: Mutex<Directory>,
    /// One after the other, as an older list must not take the place of a newer one.
    looking: Turn,
    placing: Turns<BundleName>,
    /// Something has changed in the directory.
    news: Notify,
    started: Instant,
    is_draining: AtomicBool,
    changes: mpsc::UnboundedSender<Change>,
    changes_taken: Mutex<Option<mpsc::UnboundedReceiver<Change>>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Member {
    pub async fn join(metadata: Metadata, options: MemberOptions) -> Result<Arc<Self>> {
        let MemberOptions { id, record, session_timeout } = options;
        let began = Instant::now();
        let lease = session::begin(&metadata, &id, session_timeout).await?;
        metadata.put_broker(&id, &record).await?;
        let directory = Directory::new(&id, lease.epoch, session_timeout.as_millis() as u64);
        let (changes, taken) = mpsc::unbounded_channel();
        let member = Arc::new(Self {
            id,
            metadata,
            session_timeout,
            record,
            lease: Mutex::new(lease),
            renewed_at: Mutex::new(began),
            directory: Mutex::new(directory),
            looking: Turn::default(),
            placing: Turns::default(),
            news: Notify::new(),
            started: Instant::now(),
            is_draining: AtomicBool::new(false),
            changes,
            changes_taken: Mutex::new(Some(taken)),
            tasks: Mutex::default(),
        });
        // Watch first, so that nothing is missed between reading and watching.
        let bundles = member.metadata.store().watch(Metadata::bundles_prefix()).await?;
        let requests = member.metadata.store().watch(Metadata::bundle_requests_prefix()).await?;
        let brokers = member.metadata.watch_brokers().await?;
        member.look().await?;
        member.read_all().await?;
        let tasks = [
            tokio::spawn(session::keep(member.clone())),
            tokio::spawn(follow_sessions(member.clone(), brokers)),
            tokio::spawn(follow(member.clone(), bundles, Member::read_all, Member::read_again)),
            tokio::spawn(follow(member.clone(), requests, Member::read_requests, Member::read_request)),
        ];
        member.tasks.lock().extend(tasks.iter().map(|task| task.abort_handle()));
        Ok(member)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Changes the directory, and tells whoever has to know.
    pub fn change<T>(&self, change: impl FnOnce(&mut Directory, &mut Vec<Change>) -> T) -> T {
        let mut changes = Vec::new();
        let result = change(&mut self.directory.lock(), &mut changes);
        for change in changes {
            // Nobody listens any more when the broker ends.
            let _ = self.changes.send(change);
        }
        self.news.notify_waiters();
        result
    }

    /// Reads which brokers there are, and which of them are alive.
    async fn look(&self) -> Result<()> {
        let read = async {
            let brokers = self.metadata.list_brokers().await?;
            self.change(|directory, _| directory.set_brokers(brokers));
            self.look_at_sessions().await
        };
        self.looking.take(read).await
    }

    async fn look_at_sessions(&self) -> Result<()> {
        let sessions = self.metadata.broker_sessions().await?;
        let (now_ms, renewed_at) = (self.now_ms(), *self.renewed_at.lock());
        let renewed_ms = renewed_at.saturating_duration_since(self.started).as_millis() as u64;
        self.change(|directory, _| directory.look(now_ms, sessions, renewed_ms));
        Ok(())
    }

    /// Reads who owns what.
    async fn read_all(&self) -> Result<()> {
        let known = self.directory.lock().known_bundles();
        let records = self.metadata.list_bundles().await?;
        let listed: rustc_hash::FxHashSet<&BundleName> = records.iter().map(|(bundle, _)| bundle).collect();
        let missing: Vec<BundleName> = known.into_iter().filter(|bundle| !listed.contains(bundle)).collect();
        self.change(|directory, changes| {
            for (bundle, record) in &records {
                directory.learn(bundle, record.clone(), changes);
            }
        });
        for bundle in missing {
            self.read_again(&bundle).await?;
        }
        self.read_requests().await
    }

    /// Reads what is asked of the owners of bundles.
    async fn read_requests(&self) -> Result<()> {
        let requests = self.metadata.list_bundle_requests().await?;
        self.change(|directory, changes| {
            for (bundle, request) in requests {
                directory.asked(&bundle, request, changes);
            }
        });
        Ok(())
    }

    /// Reads what is asked of one bundle's owner.
    async fn read_request(&self, bundle: &BundleName) -> Result<()> {
        if let Some(request) = self.metadata.get_bundle_request(bundle).await? {
            self.change(|directory, changes| directory.asked(bundle, request, changes));
        }
        Ok(())
    }

    /// Reads one bundle's record.
    pub async fn read_again(&self, bundle: &BundleName) -> Result<()> {
        let version = self.directory.lock().version(bundle);
        let record = self.metadata.get_bundle(bundle).await?;
        self.change(|directory, changes| match record {
            Some(record) => directory.learn(bundle, record, changes),
            None => directory.forget(bundle, version, changes),
        });
        Ok(())
    }

    pub async fn find(&self, bundle: &BundleName) -> Result<Owner> {
        let give_up_at = Instant::now() + 2 * self.session_timeout;
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let known = self.directory.lock().owner(self.now_ms(), bundle);
            match known {
                Known::Mine(version) => return Ok(Owner::Me(Tenure { version: Some(version) })),
                Known::Of(located) => return Ok(Owner::Other(Box::new(located))),
                // Only now: what was waited for may have taken long, and have come.
                _ if Instant::now() > give_up_at => {
                    return Err(BrokerError::ServiceNotReady(format!("bundle {bundle} has no owner yet")));
                }
                Known::GivenUp(record) => self.keep(bundle, record).await?,
                Known::Free => self.place(bundle).await?,
                // Better to wait a moment than to send a client to a broker that is dead.
                Known::Unsure => drop(tokio::time::timeout(PAUSE, news).await),
            }
        }
    }

    /// Whether this broker has given the bundle up is not known: it has not, once its record has another version.
    async fn keep(&self, bundle: &BundleName, given_up: Versioned<BundleRecord>) -> Result<()> {
        let record = BundleRecord { epoch: given_up.value.epoch + 1, ..given_up.value };
        self.record_put(bundle, &record, self.metadata.put_bundle(bundle, &record, Some(given_up.version)).await)
            .await?;
        tracing::info!(%bundle, epoch = record.epoch, "bundle that may have been handed over was not");
        Ok(())
    }

    /// What became of a record of a bundle that this broker wants to stand.
    async fn record_put(
        &self,
        bundle: &BundleName,
        record: &BundleRecord,
        put: std::result::Result<u64, MetadataError>,
    ) -> Result<()> {
        match put {
            Ok(version) => {
                let record = Versioned { value: record.clone(), version };
                self.change(|directory, changes| directory.learn(bundle, record, changes));
                Ok(())
            }
            // Somebody was first.
            Err(error) if error.is_conflict() => self.read_again(bundle).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a bundle that nobody owns to a broker that is alive. All who wait for the bundle do so together.
    async fn place(&self, bundle: &BundleName) -> Result<()> {
        self.placing.take(bundle, self.place_now(bundle)).await
    }

    async fn place_now(&self, bundle: &BundleName) -> Result<()> {
        if self.directory.lock().owner(self.now_ms(), bundle) != Known::Free {
            return Ok(());
        }
        let Some(policies_version) = self.exists(bundle).await? else {
            return Err(BrokerError::ServiceNotReady(format!("bundle {bundle} is no more; look the topic up again")));
        };
        // Its owner may be a broker that has come since this one looked last.
        self.look().await?;
        self.read_again(bundle).await?;
        let (before, over, target) = {
            let directory = self.directory.lock();
            if directory.owner(self.now_ms(), bundle) != Known::Free {
                return Ok(());
            }
            let target = choose(bundle, &directory.alive(self.now_ms()), None);
            (directory.record(bundle).cloned(), directory.over_session(bundle), target)
        };
        let Some((owner, incarnation)) = target else {
            return Err(BrokerError::ServiceNotReady(format!("no broker takes bundle {bundle}")));
        };
        let epoch = before.as_ref().map_or(1, |before| before.value.epoch + 1);
        let balanced = before.as_ref().map(|before| before.value.balanced).unwrap_or_default();
        let record = BundleRecord { owner: Some(owner), incarnation, epoch, balanced };
        let put = match before {
            Some(before) => self.metadata.take_bundle(bundle, &record, before.version, over.as_ref()).await,
            None => self.metadata.create_bundle(bundle, &record, policies_version).await,
        };
        if put.is_ok() {
            tracing::info!(%bundle, owner = record.owner, epoch, "bundle has an owner");
        }
        self.record_put(bundle, &record, put).await
    }

    /// Whether the namespace has the bundle, which may have been split: by which version of its policies.
    async fn exists(&self, bundle: &BundleName) -> Result<Option<u64>> {
        let Some(policies) = self.metadata.get_namespace(&bundle.namespace).await? else { return Ok(None) };
        Ok(policies.value.bundle_ranges().contains(&bundle.range).then_some(policies.version))
    }

    pub async fn ask(&self, bundle: &BundleName, wanted: Wanted) -> Result<()> {
        self.read_again(bundle).await?;
        let epoch = {
            let directory = self.directory.lock();
            match (directory.owner(self.now_ms(), bundle), directory.record(bundle)) {
                (Known::Free, _) | (_, None) => return Ok(()),
                (_, Some(record)) => record.value.epoch,
            }
        };
        self.metadata.put_bundle_request(bundle, &BundleRequest { epoch, wanted }).await?;
        let done = async {
            loop {
                let news = self.news.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                if self.directory.lock().record(bundle).is_none_or(|record| record.value.epoch > epoch) {
                    return;
                }
                let _ = tokio::time::timeout(PAUSE, news).await;
            }
        };
        let late = || {
            BrokerError::ServiceNotReady(format!("bundle {bundle} was not handed over or split within {PATIENCE:?}"))
        };
        tokio::time::timeout(PATIENCE, done).await.map_err(|_| late())
    }

    pub async fn give_up(&self, bundle: &BundleName, version: u64, to: Target<'_>) -> Result<Option<Located>> {
        let (before, target) = {
            let directory = self.directory.lock();
            let Some(record) = directory.record(bundle).filter(|record| record.version == version) else {
                return Ok(None);
            };
            let alive = directory.alive(self.now_ms());
            let named = alive.iter().find(|broker| to.broker == Some(&*broker.id));
            let target = match named {
                Some(broker) => Some((broker.id.clone(), broker.incarnation)),
                None => choose(bundle, &alive, Some(&self.id)),
            };
            (record.value.clone(), target)
        };
        let (owner, incarnation) = target.unzip();
        let epoch = before.epoch + 1;
        let balanced = before.balanced.after_move(to.reason, self.metadata.store().now_ms());
        let incarnation = incarnation.unwrap_or(0);
        let record = BundleRecord { owner: owner.clone(), incarnation, epoch, balanced };
        let put = self.metadata.pass_bundle(bundle, &record, version).await;
        match &put {
            Ok(_) => tracing::info!(%bundle, ?owner, epoch, "bundle was handed over"),
            Err(MetadataError::OutcomeUnknown(_)) => {
                self.change(|directory, _| directory.may_be_given_up(bundle, version));
            }
            Err(_) => {}
        }
        self.record_put(bundle, &record, put).await?;
        let directory = self.directory.lock();
        let owner = directory.record(bundle).and_then(|record| record.value.owner.as_deref());
        Ok(owner.and_then(|owner| directory.located(owner)))
    }

    pub fn me(&self) -> BundleRecord {
        BundleRecord {
            owner: Some(self.id.clone()),
            incarnation: self.lease.lock().epoch,
            epoch: 1,
            balanced: Balanced::default(),
        }
    }

    pub fn owner_known(&self, bundle: &BundleName) -> Option<Located> {
        match self.directory.lock().owner(self.now_ms(), bundle) {
            Known::Of(located) => Some(located),
            _ => None,
        }
    }

    pub fn take_changes(&self) -> Option<mpsc::UnboundedReceiver<Change>> {
        self.changes_taken.lock().take()
    }

    pub fn brokers(&self) -> Vec<BrokerState> {
        self.directory.lock().alive(self.now_ms())
    }

    pub fn bundles(&self) -> Vec<BundleState> {
        self.directory.lock().owned(self.now_ms())
    }

    pub fn located(&self, id: &str) -> Option<Located> {
        let directory = self.directory.lock();
        let is_alive = directory.alive(self.now_ms()).iter().any(|broker| broker.id == id);
        directory.located(id).filter(|_| is_alive)
    }

    pub fn standing(&self) -> (&str, u64, bool) {
        (&self.id, self.lease.lock().epoch, !self.is_draining.load(Ordering::Relaxed))
    }

    pub async fn drain(&self) -> Result<()> {
        self.is_draining.store(true, Ordering::Relaxed);
        let record = BrokerRecord { draining: true, ..self.record.clone() };
        self.metadata.put_broker(&self.id, &record).await?;
        self.look().await
    }

    pub async fn renew(&self) -> std::result::Result<(), MetadataError> {
        let (lease, began) = (self.lease.lock().clone(), Instant::now());
        let renewed = self.metadata.store().renew_lease(&lease, self.session_timeout).await?;
        *self.lease.lock() = renewed;
        if self.lasts() {
            *self.renewed_at.lock() = began;
        } else if let Err(error) = self.read_all().await {
            // It had run out: what others have taken meanwhile has to be known first.
            tracing::warn!(%error, "could not read which bundles others have taken");
        } else {
            *self.renewed_at.lock() = began;
        }
        Ok(())
    }

    /// The session lasts still, by a clock that began before that of metadata.
    fn lasts(&self) -> bool {
        self.renewed_at.lock().elapsed() < self.session_timeout
    }

    /// The session lasts, and nobody else is known to have the bundle.
    pub fn has_surely(&self, bundle: &BundleName, version: u64) -> bool {
        self.lasts() && self.directory.lock().has(bundle, version)
    }

    /// Whether this broker has the bundle by that version of its record, as far as is known.
    pub fn holds(&self, bundle: &BundleName, version: u64) -> bool {
        self.directory.lock().owner(self.now_ms(), bundle) == Known::Mine(version)
    }

    /// The session is another process's now: nothing is this broker's any more, and it only tells clients where to go.
    pub fn end_session(&self) {
        self.change(Directory::end_session);
    }

    /// Renews nothing and hears nothing any more.
    pub fn stop(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }

    pub async fn leave(&self) {
        self.stop();
        let lease = self.lease.lock().clone();
        if let Err(error) = self.metadata.store().release_lease(&lease).await {
            tracing::warn!(%error, "could not end the session; others wait until it runs out");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sessions are looked at all the time, as that nothing was heard of one counts only while it was looked at; who the brokers are is
/// read when that has changed.
async fn follow_sessions(member: Arc<Member>, mut brokers: Watch) {
    let mut ticks = tokio::time::interval(member.session_timeout / 8);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut has_news = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => (),
            Some(_) = brokers.next() => {
                has_news = true;
                continue;
            }
        }
        let looked = if has_news { member.look().await } else { member.look_at_sessions().await };
        match looked {
            Ok(()) => has_news = false,
            // What is known goes on to be used.
            Err(error) => tracing::warn!(%error, "could not read which brokers are alive"),
        }
    }
}

/// Reads each bundle of which something has changed, until it was read: nobody says it again.
async fn follow(
    member: Arc<Member>,
    mut watch: Watch,
    read_all: impl AsyncFn(&Member) -> Result<()>,
    read: impl AsyncFn(&Member, &BundleName) -> Result<()>,
) {
    while let Some(event) = watch.next().await {
        let read = async || match &event {
            WatchEvent::Changed(key) => match Metadata::bundle_of_key(key) {
                Some(bundle) => read(&member, &bundle).await,
                None => Ok(()),
            },
            WatchEvent::Resync => read_all(&member).await,
        };
        while let Err(error) = read().await {
            tracing::warn!(%error, ?event, "could not read what has changed of a bundle; trying again");
            tokio::time::sleep(PAUSE * 4).await;
        }
    }
}

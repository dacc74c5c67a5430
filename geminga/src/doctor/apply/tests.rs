//! Plans, carried out on a model: metadata in memory, and ledgers whose entries are known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use geminga_doctor::{
    Cluster, Contents, CursorLog, Finding, Held, Label, LedgerMetadata, Node, Record, Remembered, Topic,
};
use geminga_doctor::{examine, propose};
use geminga_ensemble::LedgerState;
use geminga_ledger::cursor_log::LogLedger;
use geminga_metadata::{LedgerInfo, MemoryStore, Op, Policies, TenantInfo, TopicRecord};
use geminga_metadata::{RestoredRecord, Witness};
use geminga_model::{NamespaceName, TopicName};
use proptest::prelude::*;

use super::*;
use crate::doctor::storage::{Closed, EntryFacts};

const BUNDLE: &str = "public/default/0x00000000_0xffffffff";

/// A ledger as storage has it: whose it is (0: the cursor log's), the index of its first message, its entries of two messages each, and
/// how many more were stored and never acknowledged.
#[derive(Debug, Clone)]
struct Stored {
    owner: usize,
    first_index: u64,
    entries: u64,
    excess: u64,
}

#[derive(Clone)]
struct Model {
    metadata: Metadata,
    ledgers: Arc<BTreeMap<u64, Stored>>,
}

impl Storage for Model {
    async fn close(&self, ledger: u64) -> anyhow::Result<Closed> {
        let Some(known) = self.metadata.get_ledger::<LedgerMetadata>(ledger).await? else { bail!("no record") };
        let entries = self.ledgers.get(&ledger).map_or(0, |stored| stored.entries + stored.excess);
        let mut record = known.value;
        if !matches!(record.state, LedgerState::Closed { .. }) {
            record.state = LedgerState::Closed { entries, length: entries * 10 };
            self.metadata.put_ledger(ledger, &record, Some(known.version)).await?;
        }
        Ok(Closed { entries, length: entries * 10 })
    }

    async fn entry(&self, ledger: u64, entry: u64) -> anyhow::Result<EntryFacts> {
        let index = self.ledgers[&ledger].first_index + 2 * entry + 1;
        Ok(EntryFacts { index: Some(index), messages: 2, time_ms: 1000 + entry })
    }

    async fn cursors(&self, ledgers: &[(u64, u64)]) -> anyhow::Result<BTreeMap<u64, u64>> {
        Ok(ledgers.iter().map(|(ledger, _)| (ledger + 100_000, 1)).collect())
    }
}

fn name(owner: usize) -> TopicName {
    TopicName::parse(&format!("persistent://public/default/t{owner}")).expect("a topic's name")
}

/// A course of things: ledgers of a cursor log and of topics, one after the other; and after how many of them the dump was made.
fn courses() -> impl Strategy<Value = (Vec<(usize, u64, u64)>, usize)> {
    proptest::collection::vec((0..4_usize, 1..20_u64, 0..3_u64), 2..14)
        .prop_flat_map(|course| (Just(course.clone()), 1..course.len()))
}

/// Everything that was ever stored, by id.
fn stored(course: &[(usize, u64, u64)]) -> BTreeMap<u64, Stored> {
    let mut next_index: BTreeMap<usize, u64> = BTreeMap::new();
    let mut ledgers = BTreeMap::new();
    for (id, &(owner, entries, excess)) in (1..).zip(course) {
        let next = next_index.entry(owner).or_default();
        // What was not acknowledged was given again, to the owner's next ledger: the last one has none.
        let has_next = course[id as usize..].iter().any(|(other, ..)| *other == owner);
        let excess = if has_next { excess } else { 0 };
        ledgers.insert(id, Stored { owner, first_index: *next, entries, excess });
        *next += 2 * entries;
    }
    ledgers
}

fn wide_open() -> LedgerMetadata {
    let quorum = geminga_ensemble::Quorum { ensemble: 3, write: 3, ack: 2 };
    LedgerMetadata::new(quorum, (0..3).map(|n| format!("node-{n}")).collect(), BTreeMap::new())
}

/// Metadata as the dump has them: of each owner the last ledger is open.
async fn restored(course: &[(usize, u64, u64)], dumped: usize) -> Model {
    let metadata = Metadata::new(Arc::new(MemoryStore::new()));
    let namespace = NamespaceName::new("public", "default").expect("a namespace");
    metadata.create_tenant_with_namespace(&TenantInfo::default(), &namespace, &Policies::default()).await.expect("new");
    let ledgers = stored(course);
    let mut lists: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for (id, stored) in ledgers.range(..=dumped as u64) {
        let list = lists.entry(stored.owner).or_default();
        list.push(*id);
        metadata.put_ledger(*id, &wide_open(), None).await.expect("new");
    }
    for (owner, list) in lists {
        let last = list.len() - 1;
        if owner == 0 {
            let entries = |place: usize, id: &u64| (place < last).then(|| ledgers[id].entries);
            let list: Vec<LogLedger> = list
                .iter()
                .enumerate()
                .map(|(place, id)| LogLedger { ledger_id: *id, entries: entries(place, id) })
                .collect();
            metadata.put_cursor_log(BUNDLE, &list, None, &[], None).await.expect("new");
            continue;
        }
        let info = |(place, id): (usize, &u64)| LedgerInfo {
            ledger_id: *id,
            entries: if place < last { ledgers[id].entries } else { 0 },
            first_index: ledgers[id].first_index,
            ..LedgerInfo::default()
        };
        let record = TopicRecord {
            ledgers: list.iter().enumerate().map(info).collect(),
            last_open: true,
            ..TopicRecord::default()
        };
        metadata.create_topic(&name(owner), record).await.expect("new");
    }
    metadata.raise_ledger_ids(dumped as u64 + 1).await.expect("raised");
    let remembered =
        Witness { count: 5, version: 10_000, ledger_ids_end: course.len() as u64 + 70, cursor_ids_end: 99 };
    metadata.note_restored("node-0", &RestoredRecord { since_ms: 1, remembered }, None).await.expect("noted");
    Model { metadata, ledgers: Arc::new(ledgers) }
}

/// What the doctor reads of that.
async fn cluster(model: &Model) -> Cluster {
    let metadata = &model.metadata;
    let mut held = BTreeMap::new();
    for (id, stored) in &*model.ledgers {
        let label = match stored.owner {
            0 => {
                let log = model.ledgers.range(..=id).filter(|(_, it)| it.owner == 0);
                Label::CursorLog { bundle: BUNDLE.to_owned(), ledgers: log.map(|(id, _)| *id).collect() }
            }
            owner => Label::Topic(name(owner).to_string()),
        };
        let entries = stored.entries + stored.excess;
        let last_entry = Some(entries - 1);
        held.insert(*id, Held { entries: Some(entries), last_entry, label: Some(label), is_doubtful: false });
    }
    let node = Node { contents: Contents::Read(held), knows_all: true };
    let topics = metadata.all_topics().await.expect("read").into_iter().map(|(name, record)| {
        let ledgers = record.value.ledgers.iter().map(|ledger| ledger.ledger_id).collect();
        let last_ledger = record.value.greatest_ledger();
        (name.to_string(), Topic { ledgers, last_ledger, version: record.version })
    });
    let log = metadata.get_cursor_log::<Vec<LogLedger>>(BUNDLE).await.expect("read").map(|log| {
        let ledgers = log.value.iter().map(|ledger| ledger.ledger_id).collect();
        (BUNDLE.to_owned(), CursorLog { ledgers, version: log.version })
    });
    let records = metadata.scan_ledgers::<LedgerMetadata>(0, 1000).await.expect("read").into_iter();
    let records = records.map(|(id, record)| {
        let record = record.expect("readable");
        (id, Record::Read { metadata: record.value, version: record.version })
    });
    let marks = metadata.restored().await.expect("read").into_iter().map(|(node, noted)| {
        let Witness { ledger_ids_end, cursor_ids_end, .. } = noted.value.remembered;
        (node, Remembered { version: noted.version, ledger_ids_end, cursor_ids_end })
    });
    Cluster {
        nodes: (0..3).map(|n| (format!("node-{n}"), node.clone())).collect(),
        topics: topics.collect(),
        cursor_logs: log.into_iter().collect(),
        records: records.collect(),
        ledger_ids_end: metadata.ledger_ids_end().await.expect("read"),
        cursor_ids_end: metadata.cursor_ids_end().await.expect("read"),
        restored: marks.collect(),
        ..Cluster::default()
    }
}

async fn plan(model: &Model) -> (BTreeSet<Finding>, Plan) {
    let cluster = cluster(model).await;
    let findings = examine(&cluster);
    let plan = Plan::new(propose(&cluster, &findings));
    (findings, Plan::read(&plan.write().expect("JSON")).expect("it is read as it was written"))
}

async fn carry_out(model: &Model, plan: &Plan) -> (bool, Vec<(Step, Outcome)>) {
    let mut told = Vec::new();
    let applying = Applying::new(&model.metadata, model.clone());
    let done = applying.carry_out(plan, |step, outcome| told.push((step.clone(), outcome.clone()))).await;
    (done.expect("no broker is at work"), told)
}

/// Everything in metadata but the clock's readings.
async fn contents(metadata: &Metadata) -> Vec<(String, u64)> {
    let records = metadata.store().scan("", None, 100_000).await.expect("read");
    records.into_iter().map(|(key, record)| (key, record.version)).collect()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_list_is_as_it_was_and_twice_is_once((course, dumped) in courses()) {
        run(async {
            let model = restored(&course, dumped).await;
            let (findings, plan) = plan(&model).await;
            let is_found = findings.contains(&Finding::Restored { node: "node-0".to_owned() });
            prop_assert!(is_found);
            let (is_done, told) = carry_out(&model, &plan).await;
            prop_assert!(is_done, "{:?}", told);
            for owner in 1..4 {
                let expected: Vec<(u64, u64, u64)> = model.ledgers.iter().filter(|(_, it)| it.owner == owner)
                    .map(|(id, it)| (*id, it.entries, it.first_index)).collect();
                let found = model.metadata.get_topic(&name(owner)).await.expect("read");
                prop_assert_eq!(found.is_some(), !expected.is_empty());
                let Some(record) = found.map(|found| found.value) else { continue };
                // Where nothing was lost the last one is still to be recovered.
                let is_open = record.last_open;
                let last = record.ledgers.len() - 1;
                for (place, (ledger, (id, entries, first_index))) in record.ledgers.iter().zip(&expected).enumerate() {
                    prop_assert_eq!((ledger.ledger_id, ledger.first_index), (*id, *first_index));
                    prop_assert!(ledger.entries == *entries || is_open && place == last);
                }
                prop_assert_eq!(record.ledgers.len(), expected.len());
                let end = expected.last().map(|(_, entries, first)| first + 2 * entries);
                prop_assert!(is_open || Some(record.next_index) == end);
                prop_assert_eq!(Some(record.greatest_ledger()), expected.last().map(|(id, ..)| *id));
            }
            let log = model.metadata.get_cursor_log::<Vec<LogLedger>>(BUNDLE).await.expect("read");
            let found: Vec<u64> = log.into_iter().flat_map(|log| log.value).map(|ledger| ledger.ledger_id).collect();
            let expected: Vec<u64> = model.ledgers.iter().filter(|(_, it)| it.owner == 0).map(|(id, _)| *id).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(model.metadata.ledger_ids_end().await.expect("read") >= course.len() as u64 + 70);
            let is_extended = plan.steps.iter().any(|step| matches!(step, Step::RestoreCursorLog { .. }));
            let cursor_ids = model.metadata.cursor_ids_end().await.expect("read");
            prop_assert_eq!(cursor_ids > 100_000, is_extended, "no cursor of the log gets its id again");
            prop_assert!(!model.metadata.is_restored().await.expect("read"));
            for (id, record) in model.metadata.scan_ledgers::<LedgerMetadata>(0, 1000).await.expect("read") {
                let record = record.expect("readable").value;
                prop_assert_eq!((record.check(), record.quorum.ack, id > 0), (Ok(()), 2, true));
            }
            // Nothing is left to be found, and nothing is done again.
            let left = examine(&cluster(&model).await);
            prop_assert!(left.iter().all(|it| matches!(it, Finding::FewerEntries { .. })), "{:?}", left);
            let before = contents(&model.metadata).await;
            let (is_done, told) = carry_out(&model, &plan).await;
            prop_assert!(is_done && told.iter().all(|(_, outcome)| *outcome != Outcome::Done), "{:?}", told);
            prop_assert_eq!(contents(&model.metadata).await, before);
            Ok(())
        })?;
    }

    #[test]
    fn what_metadata_have_moved_past_is_refused_and_nothing_is_settled((course, dumped) in courses()) {
        run(async {
            let model = restored(&course, dumped).await;
            let (_, plan) = plan(&model).await;
            for owner in 1..4 {
                // Somebody writes to the topic meanwhile, or makes it.
                let touched = model.metadata.update_topic(&name(owner), |_| Ok(())).await;
                if touched.is_err() {
                    model.metadata.create_topic(&name(owner), TopicRecord::default()).await.expect("new");
                }
            }
            let before = model.metadata.all_topics().await.expect("read");
            let (is_done, told) = carry_out(&model, &plan).await;
            let extends = plan.steps.iter().any(|step| matches!(step, Step::ExtendTopic { .. }));
            prop_assert_eq!(is_done, !extends, "{:?}", told);
            prop_assert_eq!(model.metadata.all_topics().await.expect("read"), before);
            prop_assert_eq!(model.metadata.is_restored().await.expect("read"), extends, "it is settled only as a whole");
            Ok(())
        })?;
    }
}

#[test]
fn what_is_nowhere_is_forgotten_only_when_that_is_confirmed() {
    run(async {
        let mut model = restored(&[(1, 5, 0), (1, 7, 0), (2, 3, 0)], 1).await;
        // The open ledger of the dump was trimmed since.
        let mut ledgers = (*model.ledgers).clone();
        ledgers.remove(&1);
        model.ledgers = Arc::new(ledgers);
        let (_, mut plan) = plan(&model).await;
        let (is_done, told) = carry_out(&model, &plan).await;
        assert!(!is_done && model.metadata.is_restored().await.expect("read"), "{told:?}");
        assert!(told.iter().any(|(step, outcome)| {
            matches!(step, Step::ForgetLedger { ledger: 1, .. }) && matches!(outcome, Outcome::Left(_))
        }));
        for step in &mut plan.steps {
            if let Step::ForgetLedger { confirmed, .. } = step {
                *confirmed = true;
            }
        }
        let (is_done, told) = carry_out(&model, &plan).await;
        assert!(is_done, "{told:?}");
        let record = model.metadata.get_topic(&name(1)).await.expect("read").expect("there").value;
        let ids: Vec<u64> = record.ledgers.iter().map(|ledger| ledger.ledger_id).collect();
        assert_eq!((ids, record.next_index, record.last_open), (vec![2], 24, false));
        assert_eq!(model.metadata.list_garbage(10).await.expect("read"), [vec![1]]);
    });
}

#[test]
fn nothing_is_done_beside_a_broker() {
    run(async {
        let model = restored(&[(1, 5, 0), (1, 7, 0)], 1).await;
        let (_, plan) = plan(&model).await;
        model.metadata.acquire_broker("b", "b", Duration::from_secs(60)).await.expect("acquired");
        let before = contents(&model.metadata).await;
        let refused =
            Applying::new(&model.metadata, model.clone()).carry_out(&plan, |step, _| panic!("{step:?}")).await;
        assert!(refused.expect_err("a broker is at work").to_string().contains("brokers are at work"));
        assert_eq!(contents(&model.metadata).await, before);
    });
}

/// The commit that settles raises versions above those that nodes remember.
#[test]
fn versions_go_on_above_those_that_were_seen() {
    run(async {
        let model = restored(&[(1, 5, 0), (1, 7, 0)], 1).await;
        let (_, plan) = plan(&model).await;
        assert!(carry_out(&model, &plan).await.0);
        let put = Op::put("z", "z", geminga_metadata::Expect::Absent);
        assert!(model.metadata.store().commit(vec![put]).await.expect("written")[0] > 10_000);
    });
}

//! A cluster that fits has no findings; each thing that is broken in it is found, and nothing else; and no proposal touches what
//! fits.

use std::collections::{BTreeMap, BTreeSet};

use geminga_doctor::{
    Cluster, Contents, Finding, Held, Label, Node, Owner, Plan, PlanError, Record, Remembered, Step, Topic, confirmed,
    examine, propose,
};
use geminga_ensemble::{Fragment, LedgerMetadata, LedgerState, Quorum, distribution::write_order};
use proptest::prelude::*;
use proptest::sample::Index;

const BUNDLE: &str = "public/default/00000000_ffffffff";

fn topic(number: usize) -> String {
    format!("persistent://public/default/t{number}")
}

fn contents<'a>(cluster: &'a mut Cluster, node: &str) -> &'a mut BTreeMap<u64, Held> {
    match &mut cluster.nodes.get_mut(node).expect("a node").contents {
        Contents::Read(ledgers) => ledgers,
        Contents::Unread(why) => panic!("{why}"),
    }
}

/// How a ledger came about: its entries, where its second fragment begins, whether it is closed, and whose it is.
type Made = (u64, u64, bool, usize);

/// Writes a ledger as a writer and its nodes do.
fn store(cluster: &mut Cluster, ledger: u64, (entries, second, is_closed, owner): Made) {
    let quorum = Quorum { ensemble: 3, write: 2, ack: 2 };
    let ensemble = |from: u64| (0..3).map(|n| format!("node-{}", (from + n) % 5)).collect::<Vec<_>>();
    let mut fragments = vec![Fragment { first_entry: 0, ensemble: ensemble(ledger) }];
    if second > 0 && second < entries {
        fragments.push(Fragment { first_entry: second, ensemble: ensemble(ledger + 1) });
    }
    let label = match owner {
        0 => {
            let log = cluster.cursor_logs.entry(BUNDLE.to_owned()).or_default();
            log.ledgers.push(ledger);
            Label::CursorLog { bundle: BUNDLE.to_owned(), ledgers: log.ledgers.clone() }
        }
        _ => Label::Topic(topic(owner)),
    };
    for entry in 0..entries {
        let fragment = fragments.iter().rfind(|fragment| fragment.first_entry <= entry).expect("the first begins at 0");
        for slot in write_order(quorum, entry) {
            let held = contents(cluster, &fragment.ensemble[slot]).entry(ledger).or_default();
            held.entries = Some(held.entries.unwrap_or(0) + 1);
            held.last_entry = Some(entry);
            if entry == 0 {
                held.label = Some(label.clone());
            }
        }
    }
    let state = if is_closed { LedgerState::Closed { entries, length: entries } } else { LedgerState::Open };
    let metadata = LedgerMetadata { quorum, state, fragments, properties: BTreeMap::new() };
    cluster.records.insert(ledger, Record::Read { metadata, version: ledger });
    if owner > 0 {
        let topic = cluster.topics.entry(topic(owner)).or_default();
        topic.ledgers.push(ledger);
        topic.last_ledger = ledger;
    }
}

/// Topics, a cursor log, and ledgers that were deleted and that nodes have not swept yet.
fn clusters() -> impl Strategy<Value = Cluster> {
    let ledger = (1..40_u64, 0..50_u64, any::<bool>(), 0..4_usize);
    let ledgers = proptest::collection::vec((ledger, any::<bool>(), 1..4_u64), 1..25);
    (ledgers, any::<bool>()).prop_map(|(ledgers, has_notes)| {
        let mut cluster = Cluster::default();
        for node in 0..5 {
            let node_here = Node { contents: Contents::Read(BTreeMap::new()), knows_all: true };
            cluster.nodes.insert(format!("node-{node}"), node_here);
        }
        let mut id = 0;
        for (made, is_deleted, gap) in ledgers {
            id += gap;
            store(&mut cluster, id, made);
            // Of a cursor log the oldest goes, and never the newest.
            let log = cluster.cursor_logs.get(BUNDLE).filter(|_| made.3 == 0);
            let gone = log.map_or(id, |log| log.ledgers[0]);
            if is_deleted && log.is_none_or(|log| log.ledgers.len() > 1) {
                cluster.topics.values_mut().for_each(|topic| topic.ledgers.retain(|ledger| *ledger != gone));
                cluster.cursor_logs.values_mut().for_each(|log| log.ledgers.retain(|ledger| *ledger != gone));
                if has_notes {
                    cluster.deletions.insert(gone);
                } else {
                    cluster.records.remove(&gone);
                }
            }
        }
        cluster.ledger_ids_end = id + 1;
        cluster
    })
}

/// Clusters in which some topic has a ledger, and one such ledger with its topic.
fn with_a_ledger() -> impl Strategy<Value = (Cluster, String, u64)> {
    (clusters(), any::<Index>()).prop_filter_map("no topic has a ledger", |(cluster, index)| {
        let listed = cluster.topics.iter().flat_map(|(name, it)| it.ledgers.iter().map(|id| (name.clone(), *id)));
        let listed: Vec<(String, u64)> = listed.collect();
        let (topic, ledger) = (!listed.is_empty()).then(|| index.get(&listed).clone())?;
        Some((cluster, topic, ledger))
    })
}

fn only(finding: Finding) -> BTreeSet<Finding> {
    BTreeSet::from([finding])
}

fn closed(cluster: &Cluster, ledger: u64) -> bool {
    matches!(&cluster.records[&ledger], Record::Read { metadata, .. } if matches!(metadata.state, LedgerState::Closed { .. }))
}

proptest! {
    #[test]
    fn what_fits_has_no_findings(cluster in clusters()) {
        prop_assert_eq!(examine(&cluster), BTreeSet::new());
        prop_assert_eq!(propose(&cluster, &BTreeSet::new()), vec![]);
    }

    #[test]
    fn a_record_that_is_gone((mut cluster, topic, ledger) in with_a_ledger()) {
        cluster.records.remove(&ledger);
        let findings = examine(&cluster);
        prop_assert_eq!(&findings, &only(Finding::NoRecord { ledger, owner: Owner::Topic(topic) }));
        let steps = propose(&cluster, &findings);
        let is_restored = matches!(&steps[..], [Step::RestoreRecord { ledger: it, .. }] if *it == ledger);
        prop_assert!(is_restored, "{:?}", steps);
    }

    #[test]
    fn a_list_that_forgot_a_ledger((mut cluster, topic, ledger) in with_a_ledger()) {
        cluster.topics.get_mut(&topic).expect("it is there").ledgers.retain(|it| *it != ledger);
        let findings = examine(&cluster);
        prop_assert_eq!(&findings, &only(Finding::Orphan { ledger }));
        let finding = Finding::Orphan { ledger };
        prop_assert_eq!(propose(&cluster, &findings), vec![Step::Look { finding }], "nothing is deleted");
    }

    #[test]
    fn a_deletion_of_what_is_in_use((mut cluster, topic, ledger) in with_a_ledger()) {
        cluster.deletions.insert(ledger);
        let findings = examine(&cluster);
        prop_assert_eq!(&findings, &only(Finding::DeletionOfReferenced { ledger, owner: Owner::Topic(topic) }));
        prop_assert_eq!(propose(&cluster, &findings), vec![Step::DropDeletion { ledger }]);
    }

    #[test]
    fn a_ledger_of_two_topics((mut cluster, _, ledger) in with_a_ledger()) {
        let other = Topic { ledgers: vec![ledger], last_ledger: ledger, version: 1 };
        cluster.topics.insert("persistent://public/default/zz".to_owned(), other);
        prop_assert_eq!(examine(&cluster), only(Finding::SharedLedger { ledger }));
    }

    #[test]
    fn entries_that_a_node_lost((mut cluster, _, ledger) in with_a_ledger(), node in 0..5_usize, all in any::<bool>()) {
        let node = format!("node-{node}");
        let had = contents(&mut cluster, &node).remove(&ledger);
        if let (Some(mut held), false) = (had.clone(), all) {
            held.entries = held.entries.map(|entries| entries - 1);
            contents(&mut cluster, &node).insert(ledger, held);
        }
        let finding = Finding::FewerEntries { ledger, node: node.clone() };
        let is_found = had.is_some() && closed(&cluster, ledger);
        prop_assert_eq!(examine(&cluster), if is_found { only(finding) } else { BTreeSet::new() });
        // Where the node could not be asked, or does not know all it has, it is not known to be lost.
        cluster.nodes.get_mut(&node).expect("it is there").knows_all = false;
        prop_assert_eq!(examine(&cluster), only(Finding::KnowsNotAll { node: node.clone() }));
        cluster.nodes.get_mut(&node).expect("it is there").contents = Contents::Unread("timeout".to_owned());
        prop_assert_eq!(examine(&cluster), only(Finding::NotAsked { node }));
    }

    #[test]
    fn metadata_of_before((older, newer) in clusters().prop_flat_map(|older| {
        // The same storage, to which more was written than the metadata say.
        let more = proptest::collection::vec((1..40_u64, 0..50_u64, any::<bool>(), 0..6_usize), 1..8);
        more.prop_map(move |more| {
            let mut newer = older.clone();
            for made in more {
                let id = newer.ledger_ids_end;
                store(&mut newer, id, made);
                newer.ledger_ids_end += 1;
            }
            (older.clone(), newer)
        })
    })) {
        let mut restored = older.clone();
        restored.nodes = newer.nodes.clone();
        let findings = examine(&restored);
        prop_assert!(findings.contains(&Finding::IdsInUse));
        let steps = propose(&restored, &findings);
        prop_assert_eq!(&steps[0], &Step::RaiseLedgerIds { to: newer.ledger_ids_end });
        // Carried out, every topic has its ledgers in order, and each has a record again.
        let mut topics = restored.topics.clone();
        let mut logs = restored.cursor_logs.clone();
        let mut records: BTreeSet<u64> = restored.records.keys().copied().collect();
        for step in &steps {
            match step {
                Step::ExtendTopic { topic, ledgers, seen } => {
                    prop_assert_eq!(*seen, topics.get(topic).map(|topic| topic.version));
                    topics.entry(topic.clone()).or_default().ledgers.extend(ledgers);
                }
                Step::RestoreRecord { ledger, nodes, .. } => {
                    prop_assert!(records.insert(*ledger), "a record that is there is not written");
                    prop_assert!(!nodes.is_empty());
                }
                Step::Look { finding } => {
                    let is_doubtful = matches!(finding, Finding::Doubtful { .. });
                    prop_assert!(is_doubtful, "{:?}", finding);
                }
                Step::RestoreCursorLog { bundle, ledgers, seen } => {
                    prop_assert_eq!(*seen, logs.get(bundle).map(|log| log.version));
                    logs.entry(bundle.clone()).or_default().ledgers = ledgers.clone();
                }
                Step::RaiseLedgerIds { .. } => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
        for (name, topic) in &newer.topics {
            prop_assert_eq!(&topics[name].ledgers, &topic.ledgers, "{}", name);
            prop_assert!(topic.ledgers.iter().all(|ledger| records.contains(ledger)));
        }
        for (name, log) in &newer.cursor_logs {
            prop_assert_eq!(&logs[name].ledgers, &log.ledgers, "{}", name);
            prop_assert!(log.ledgers.iter().all(|ledger| records.contains(ledger)));
        }
        // The plan is read as it was written.
        let plan = Plan::new(steps);
        prop_assert_eq!(Plan::read(&plan.write().expect("it is JSON")).expect("it is a plan"), plan);
    }

    #[test]
    fn what_a_node_kept_because_metadata_were_old((mut cluster, _, last) in with_a_ledger(), node in 0..5_usize) {
        // An id that was given, and that nothing knows: usually garbage, unless the node says otherwise.
        cluster.ledger_ids_end += 10;
        let ledger = cluster.ledger_ids_end - 1;
        prop_assert!(ledger > last);
        contents(&mut cluster, &format!("node-{node}")).insert(ledger, Held::default());
        prop_assert_eq!(examine(&cluster), BTreeSet::new());
        contents(&mut cluster, &format!("node-{node}")).get_mut(&ledger).expect("it is there").is_doubtful = true;
        let finding = Finding::Doubtful { ledger, owner: None };
        let findings = examine(&cluster);
        prop_assert_eq!(&findings, &only(finding.clone()));
        prop_assert_eq!(propose(&cluster, &findings), vec![Step::Look { finding }]);
    }

    #[test]
    fn what_is_new_comes_behind_a_cursor_that_is_ahead((mut cluster, topic, _) in with_a_ledger(), ahead in 1..99_u64) {
        let last = cluster.topics[&topic].last_ledger;
        cluster.acknowledged.insert((topic.clone(), "s".to_owned()), last);
        prop_assert_eq!(examine(&cluster), BTreeSet::new());
        let ledger = last + ahead;
        cluster.acknowledged.insert((topic.clone(), "s".to_owned()), ledger);
        let findings = examine(&cluster);
        prop_assert_eq!(&findings, &only(Finding::CursorAhead { topic, subscription: "s".to_owned(), ledger }));
        let is_given = ledger < cluster.ledger_ids_end;
        let steps = if is_given { vec![] } else { vec![Step::RaiseLedgerIds { to: ledger + 1 }] };
        prop_assert_eq!(propose(&cluster, &findings), steps);
    }

    #[test]
    fn what_is_seen_once_is_not_confirmed((mut cluster, _, ledger) in with_a_ledger()) {
        let whole = examine(&cluster);
        cluster.records.remove(&ledger);
        prop_assert_eq!(confirmed(&examine(&cluster), &whole), BTreeSet::new());
    }

    #[test]
    fn a_ledger_that_is_nowhere_is_given_up_only_on_purpose((mut cluster, topic, ledger) in with_a_ledger(), node in 0..5_usize) {
        for node in 0..5 {
            contents(&mut cluster, &format!("node-{node}")).remove(&ledger);
        }
        cluster.records.remove(&ledger);
        let findings = examine(&cluster);
        let owner = Owner::Topic(topic.clone());
        prop_assert_eq!(&findings, &only(Finding::Nowhere { ledger, owner: owner.clone() }));
        let seen = cluster.topics[&topic].version;
        let steps = propose(&cluster, &findings);
        prop_assert_eq!(steps, vec![Step::ForgetLedger { owner: owner.clone(), ledger, seen, confirmed: false }]);
        // A node that was not asked may have it.
        cluster.nodes.get_mut(&format!("node-{node}")).expect("it is there").contents = Contents::Unread("timeout".to_owned());
        let findings = examine(&cluster);
        let is_found = findings.contains(&Finding::NoRecord { ledger, owner: owner.clone() });
        prop_assert!(is_found);
        let look = Step::Look { finding: Finding::NoRecord { ledger, owner } };
        prop_assert!(propose(&cluster, &findings).contains(&look));
    }

    #[test]
    fn a_mark_is_settled_last_and_ids_are_raised_first((mut cluster, _, ledger) in with_a_ledger(), ids in 100..200_u64) {
        let remembered = Remembered { version: 7, ledger_ids_end: cluster.ledger_ids_end + ids, cursor_ids_end: ids };
        cluster.restored.insert("node-1".to_owned(), remembered);
        let findings = examine(&cluster);
        let is_found = findings.contains(&Finding::Restored { node: "node-1".to_owned() });
        prop_assert!(is_found);
        let steps = propose(&cluster, &findings);
        prop_assert_eq!(&steps[0], &Step::RaiseLedgerIds { to: cluster.ledger_ids_end + ids });
        let raises_cursors = matches!(steps[1], Step::RaiseCursorIds { to } if to > ids);
        prop_assert!(raises_cursors, "{:?}", steps);
        prop_assert_eq!(steps.last(), Some(&Step::Settle { node: "node-1".to_owned(), seen: 7 }));
        // An open ledger that went on on other nodes is looked for there too.
        let Some(Record::Read { metadata, .. }) = cluster.records.get_mut(&ledger) else { panic!("it is there") };
        metadata.state = LedgerState::Open;
        let last = metadata.last_fragment().clone();
        let stranger = (0..5).map(|n| format!("node-{n}")).find(|node| !last.ensemble.contains(node)).expect("five nodes");
        contents(&mut cluster, &stranger).entry(ledger).or_default().last_entry = Some(last.first_entry + 3);
        let findings = examine(&cluster);
        let is_found = findings.contains(&Finding::Elsewhere { ledger });
        prop_assert!(is_found);
        let widened = propose(&cluster, &findings).into_iter().find_map(|step| match step {
            Step::WidenRecord { ledger: it, nodes, seen, .. } if it == ledger && seen == ledger => Some(nodes),
            _ => None,
        });
        prop_assert!(widened.is_some_and(|nodes| nodes.contains(&stranger) && last.ensemble.iter().all(|it| nodes.contains(it))));
    }
}

#[test]
fn a_plan_of_another_version_or_with_a_word_too_many_is_refused_whole() {
    assert!(matches!(Plan::read(r#"{"version": 1, "steps": []}"#), Err(PlanError::Version(1))));
    let forget = r#"{"step": "forget_ledger", "owner": {"topic": "t"}, "ledger": 3, "seen": 4, "confirmed": true}"#;
    let read = |step: &str| Plan::read(&format!(r#"{{"version": 2, "steps": [{step}]}}"#));
    assert_eq!(read(forget).expect("a person may set it").steps.len(), 1);
    assert!(matches!(read(&forget.replace("confirmed", "confirm")), Err(PlanError::Malformed(_))));
    assert!(matches!(read(&forget.replace("forget_ledger", "forget")), Err(PlanError::Malformed(_))));
}

//! The JSON of `GET …/internalStats` and `GET …/internal-info`.

use std::collections::BTreeMap;

use geminga_ledger::cursor::Cursor;
use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::deduplication::DEDUP_CURSOR;
use super::super::{Sub, Topic, TopicState};
use super::{encoded, iso_date};

/// Entries that are looked at for the ranges of one cursor that are acknowledged above its mark-delete position.
const RANGE_STEPS_MAX: usize = 10_000;

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InternalStats {
    /// Since the topic was loaded.
    pub entries_added_counter: u64,
    pub number_of_entries: u64,
    pub total_size: u64,
    pub current_ledger_entries: u64,
    pub current_ledger_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ledger_created_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ledger_creation_failure_timestamp: Option<String>,
    pub waiting_cursors_count: u64,
    pub pending_add_entries_count: u64,
    pub last_confirmed_entry: String,
    pub state: String,
    pub ledgers: Vec<LedgerStats>,
    pub cursors: BTreeMap<String, CursorStats>,
    pub schema_ledgers: Vec<LedgerStats>,
    pub compacted_ledger: LedgerStats,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerStats {
    pub ledger_id: i64,
    pub entries: i64,
    pub size: i64,
    pub offloaded: bool,
    pub under_replicated: bool,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CursorStats {
    pub mark_delete_position: String,
    pub read_position: String,
    pub waiting_read_op: bool,
    pub pending_read_ops: u64,
    /// What was added less what is not acknowledged, and so below zero as long as there is more of a backlog from before the topic
    /// was loaded.
    pub messages_consumed_counter: i64,
    pub cursor_ledger: i64,
    pub cursor_ledger_last_entry: i64,
    pub individually_deleted_messages: String,
    pub last_ledger_switch_timestamp: String,
    pub state: String,
    pub active: bool,
    pub number_of_entries_since_first_not_acked_message: u64,
    pub total_non_contiguous_deleted_messages_range: u64,
    pub subscription_have_pending_read: bool,
    pub subscription_have_pending_replay_read: bool,
    pub properties: BTreeMap<String, i64>,
}

impl Topic {
    pub fn internal_stats(&self) -> InternalStats {
        let state = self.state.lock();
        let list = state.ledger.list();
        let last = list.last_span();
        let added = self.writes.entries();
        let cursor_ledger = self.bundle.cursors.ledger_ids().last().map_or(-1, |ledger_id| *ledger_id as i64);
        let caught_up = |sub: &Sub| sub.core.has_consumers() && sub.core.read_position() > list.last_position();
        InternalStats {
            entries_added_counter: added,
            number_of_entries: list.total_entries(),
            total_size: list.total_size(),
            current_ledger_entries: last.map_or(0, |span| span.entries),
            current_ledger_size: last.map_or(0, |span| span.size),
            last_ledger_created_timestamp: Some(iso_date(
                last.map_or(state.record.current.created_at, |span| span.timestamp_ms),
            )),
            last_ledger_creation_failure_timestamp: None,
            waiting_cursors_count: state.subscriptions.values().filter(|sub| caught_up(sub)).count() as u64,
            pending_add_entries_count: state.ledger.pending_entries(),
            last_confirmed_entry: list.last_position().to_string(),
            state: if state.ledger.terminated().is_some() {
                "Terminated".to_owned()
            } else if state.ledger.is_fenced() {
                "Fenced".to_owned()
            } else {
                "LedgerOpened".to_owned()
            },
            ledgers: list
                .spans()
                .map(|span| LedgerStats {
                    ledger_id: span.ledger_id as i64,
                    entries: span.entries as i64,
                    size: span.size as i64,
                    ..LedgerStats::default()
                })
                .collect(),
            cursors: (state
                .subscriptions
                .iter()
                .map(|(name, sub)| (encoded(name), cursor_stats(sub, list, added, cursor_ledger))))
            .chain(
                deduplication_mark(&state)
                    .map(|mark| (DEDUP_CURSOR.to_owned(), snapshot_stats(mark, list, added, cursor_ledger))),
            )
            .collect(),
            schema_ledgers: Vec::new(),
            compacted_ledger: LedgerStats { ledger_id: -1, entries: -1, size: -1, ..LedgerStats::default() },
        }
    }

    /// What metadata says of the topic.
    pub fn internal_info(&self) -> Value {
        let state = self.state.lock();
        let record = &state.record.current;
        let ledgers: Vec<Value> = record
            .ledgers
            .iter()
            .map(|ledger| {
                json!({
                    "ledgerId": ledger.ledger_id,
                    "entries": ledger.entries,
                    "size": ledger.size,
                    "timestamp": ledger.timestamp,
                    "isOffloaded": false,
                })
            })
            .collect();
        let cursors: serde_json::Map<String, Value> = state
            .subscriptions
            .iter()
            .map(|(name, sub)| {
                let mark = sub.core.cursor().mark_delete();
                let info = json!({
                    "cursorsLedgerId": -1,
                    "markDelete": { "ledgerId": mark.ledger_id, "entryId": mark.entry_id },
                });
                (encoded(name), info)
            })
            .collect();
        let mut info = json!({
            "version": state.record.version,
            "creationDate": iso_date(record.created_at),
            "modificationDate": iso_date(
                record.ledgers.last().map_or(record.created_at, |ledger| ledger.timestamp.max(record.created_at)),
            ),
            "ledgers": ledgers,
            "cursors": cursors,
        });
        if let Some(end) = record.terminated {
            info["terminatedPosition"] = json!({ "ledgerId": end.ledger_id, "entryId": end.entry_id });
        }
        info
    }
}

/// The last entry that the stored state of deduplication knows, which Pulsar keeps as a cursor.
fn deduplication_mark(state: &TopicState) -> Option<Position> {
    state.dedup.as_ref()?;
    let durable = *state.dedup_stored.durable.lock();
    Some(durable.max(state.ledger.list().before_first()))
}

fn snapshot_stats(mark: Position, list: &LedgerList, added: u64, cursor_ledger: i64) -> CursorStats {
    let behind = list.entries_between(mark, list.last_position());
    CursorStats {
        mark_delete_position: mark.to_string(),
        read_position: list.last_position().next().to_string(),
        messages_consumed_counter: added as i64 - behind as i64,
        cursor_ledger,
        cursor_ledger_last_entry: -1,
        individually_deleted_messages: "[]".to_owned(),
        last_ledger_switch_timestamp: iso_date(0),
        state: "Open".to_owned(),
        number_of_entries_since_first_not_acked_message: behind + 1,
        ..CursorStats::default()
    }
}

/// `added` is how many entries the topic has got since it was loaded; `cursor_ledger` that of the bundle, which keeps what cursors
/// there acknowledge.
fn cursor_stats(sub: &Sub, list: &LedgerList, added: u64, cursor_ledger: i64) -> CursorStats {
    let cursor = sub.core.cursor();
    let stats = sub.core.stats(list);
    // Without consumers nothing is read: the next would begin behind what is acknowledged.
    let read = sub.core.read_position().max(cursor.mark_delete().next());
    let waits = stats.consumers.iter().any(|consumer| consumer.available_permits > 0);
    CursorStats {
        mark_delete_position: cursor.mark_delete().to_string(),
        read_position: read.to_string(),
        waiting_read_op: waits,
        subscription_have_pending_read: waits,
        subscription_have_pending_replay_read: sub.replay.reading,
        pending_read_ops: u64::from(sub.awaits_read) + u64::from(sub.replay.reading),
        messages_consumed_counter: added as i64 - cursor.unacked_entries(list) as i64,
        cursor_ledger: if sub.cursor_id.is_some() { cursor_ledger } else { -1 },
        cursor_ledger_last_entry: -1,
        individually_deleted_messages: acked_ranges(cursor, list),
        last_ledger_switch_timestamp: iso_date(0),
        state: if sub.cursor_id.is_some() { "Open" } else { "NoLedger" }.to_owned(),
        active: sub.core.has_consumers(),
        // Pulsar counts the one that is read next too.
        number_of_entries_since_first_not_acked_message: list.entries_between(cursor.mark_delete(), read.previous())
            + 1,
        total_non_contiguous_deleted_messages_range: cursor.holes(),
        ..CursorStats::default()
    }
}

/// Runs of acknowledged entries above the mark-delete position, as Pulsar prints them: `[(7:2..7:4]]`. An ellipsis
/// stands for what is beyond the first entries.
fn acked_ranges(cursor: &Cursor, list: &LedgerList) -> String {
    if cursor.holes() == 0 {
        return "[]".to_owned();
    }
    let mut ranges: Vec<String> = Vec::new();
    let mut open: Option<(Position, Position)> = None;
    let mut at = list.next_after(cursor.mark_delete());
    for _ in 0..RANGE_STEPS_MAX {
        let Some(position) = at else { break };
        open = match open {
            Some((first, last)) if cursor.is_acked(position) && position.ledger_id == last.ledger_id => {
                Some((first, position))
            }
            other => {
                ranges.extend(other.map(|(first, last)| format!("({}..{last}]", first.previous())));
                cursor.is_acked(position).then_some((position, position))
            }
        };
        at = list.next_after(position);
    }
    ranges.extend(open.map(|(first, last)| format!("({}..{last}]", first.previous())));
    if at.is_some() {
        ranges.push("…".to_owned());
    }
    format!("[{}]", ranges.join(","))
}

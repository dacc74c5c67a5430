//! Carries out a plan, step by step. Each step is a commit on the condition that its record is as it was when the plan was made; one that is
//! done already is left alone, so that a plan may be carried out again.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use geminga_doctor::{Owner, Plan, Step};
use geminga_metadata::Metadata;

use super::storage::Storage;

mod cursor_logs;
mod records;
mod topics;

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// There was nothing left to do.
    Already,
    /// It is not for this program to do, or not confirmed; why.
    Left(&'static str),
    /// It was to be done, and was not; why.
    NotDone(String),
}

pub struct Applying<'m, S> {
    metadata: &'m Metadata,
    storage: S,
    /// Records that earlier steps have written: the version that the plan has seen, and the one that there is now.
    moved: BTreeMap<Owner, (Option<u64>, u64)>,
    /// Ledgers that are nowhere and that somebody would have to give up.
    unconfirmed: BTreeSet<(Owner, u64)>,
    has_failed: bool,
}

impl<'m, S: Storage> Applying<'m, S> {
    pub fn new(metadata: &'m Metadata, storage: S) -> Self {
        Self { metadata, storage, moved: BTreeMap::new(), unconfirmed: BTreeSet::new(), has_failed: false }
    }

    /// Takes all steps in order; `tell` hears of each. Whether all that was to be done is done.
    ///
    /// # Errors
    /// Brokers are at work: nothing more is done beside them.
    pub async fn carry_out(mut self, plan: &Plan, mut tell: impl FnMut(&Step, &Outcome)) -> anyhow::Result<bool> {
        let mut steps: Vec<&Step> = plan.steps.iter().collect();
        // Whatever order a person left them in.
        steps.sort();
        for step in steps {
            no_broker_is_at_work(self.metadata).await?;
            let outcome = match self.take(step).await {
                Ok(outcome) => outcome,
                Err(error) => Outcome::NotDone(format!("{error:#}")),
            };
            self.has_failed |= matches!(outcome, Outcome::NotDone(_));
            tell(step, &outcome);
        }
        Ok(!self.has_failed)
    }

    async fn take(&mut self, step: &Step) -> anyhow::Result<Outcome> {
        match step {
            Step::RaiseLedgerIds { to } => {
                let is_done = self.metadata.ledger_ids_end().await? >= *to;
                self.metadata.raise_ledger_ids(*to).await?;
                Ok(if is_done { Outcome::Already } else { Outcome::Done })
            }
            Step::RaiseCursorIds { to } => {
                let is_done = self.metadata.cursor_ids_end().await? >= *to;
                self.metadata.raise_cursor_ids(*to).await?;
                Ok(if is_done { Outcome::Already } else { Outcome::Done })
            }
            Step::DropDeletion { ledger } => {
                let noted = self.metadata.list_garbage(usize::MAX).await?;
                if !noted.iter().flatten().any(|it| it == ledger) {
                    return Ok(Outcome::Already);
                }
                self.metadata.spare_garbage(*ledger).await?;
                Ok(Outcome::Done)
            }
            Step::RestoreRecord { ledger, nodes, ack, .. } => self.restore_record(*ledger, nodes, *ack).await,
            Step::WidenRecord { ledger, nodes, ack, seen } => self.widen_record(*ledger, nodes, *ack, *seen).await,
            Step::ForgetLedger { confirmed: false, owner, ledger, .. } => {
                self.unconfirmed.insert((owner.clone(), *ledger));
                Ok(Outcome::Left("what was in it would be lost for good: set \"confirmed\" to true if that is meant"))
            }
            Step::ForgetLedger { owner: Owner::Topic(topic), ledger, seen, .. } => {
                self.forget_of_topic(topic, *ledger, *seen).await
            }
            Step::ForgetLedger { owner: Owner::CursorLog(bundle), ledger, seen, .. } => {
                self.forget_of_cursor_log(bundle, *ledger, *seen).await
            }
            Step::ExtendTopic { topic, ledgers, seen } => self.extend_topic(topic, ledgers, *seen).await,
            Step::CreatePartitioned { topic, partitions } => self.create_partitioned(topic, *partitions).await,
            Step::RestoreCursorLog { bundle, ledgers, seen } => self.restore_cursor_log(bundle, ledgers, *seen).await,
            Step::Replicate { .. } => Ok(Outcome::Left("auto-recovery does it")),
            Step::Look { .. } => Ok(Outcome::Left("somebody has to look")),
            Step::Settle { node, seen } => self.settle(node, *seen).await,
        }
    }

    /// Whether the record of an owner is as the plan has seen it, but for what was done since.
    fn is_as_seen(&self, owner: &Owner, seen: Option<u64>, found: Option<u64>) -> bool {
        let moved = self.moved.get(owner).filter(|(from, _)| *from == seen);
        found == moved.map_or(seen, |(_, to)| Some(*to))
    }

    fn has_moved(&mut self, owner: Owner, seen: Option<u64>, to: u64) {
        self.moved.insert(owner, (seen, to));
    }

    async fn settle(&self, node: &str, seen: u64) -> anyhow::Result<Outcome> {
        let restored = self.metadata.restored().await?;
        let Some((_, noted)) = restored.into_iter().find(|(it, _)| it == node) else { return Ok(Outcome::Already) };
        if self.has_failed {
            bail!("something before it was not done");
        }
        if noted.version != seen {
            return Ok(moved_past());
        }
        self.metadata.settle_restored(node, &noted).await?;
        Ok(Outcome::Done)
    }
}

fn moved_past() -> Outcome {
    Outcome::NotDone("the record has been changed since the plan was made: make a new one".to_owned())
}

/// # Errors
/// A broker holds a session, or that cannot be found out.
pub async fn no_broker_is_at_work(metadata: &Metadata) -> anyhow::Result<()> {
    let now_ms = metadata.store().now_ms();
    let sessions = metadata.broker_sessions().await?.into_iter();
    let at_work = sessions.filter(|session| session.expires_at_ms.is_some_and(|until| until > now_ms));
    let names: Vec<String> = at_work.map(|session| session.broker).collect();
    if !names.is_empty() {
        bail!("brokers are at work, and would write what a plan writes: stop them first ({})", names.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

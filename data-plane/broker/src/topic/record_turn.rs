//! Who writes a topic's records in metadata: one after the other, each on condition that nobody else has written the topic's own
//! record since. What is under way when the topic closes is noted, and refused before the topic is loaded again
//! ([`crate::unsettled`]).

use geminga_metadata::{Metadata, MetadataError};

use super::{Flushes, Life, Topic, TopicState};

/// Of whoever may write next.
#[derive(Debug, Default)]
pub(super) struct RecordTurn {
    /// A commit was begun, and whether it came to pass, or still will, is not known.
    in_doubt: bool,
    /// The same before the commit that was begun last.
    was_in_doubt: bool,
}

impl RecordTurn {
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// The commit that was begun has ended. One that is given up while it runs stays in doubt.
    fn ended<T>(&mut self, result: &Result<T, MetadataError>) {
        self.in_doubt = self.was_in_doubt || matches!(result, Err(MetadataError::OutcomeUnknown(_)));
    }

    /// The topic's record has a new version: what was in doubt is refused from now on.
    pub fn settled(&mut self) {
        *self = Self::default();
    }
}

impl Topic {
    /// The metadata for one commit, whose end [`Topic::committed`] has to be told.
    ///
    /// # Errors
    /// The topic is closed: another instance may have been loaded.
    pub(super) fn begin_commit(&self, turn: &mut RecordTurn) -> Result<Metadata, MetadataError> {
        let version = {
            let state = self.state.lock();
            if state.life == Life::Closed {
                return Err(MetadataError::OwnershipLost { name: self.name.to_string() });
            }
            state.record.version
        };
        turn.was_in_doubt = turn.in_doubt;
        turn.in_doubt = true;
        Ok(self.bundle.metadata.guarded_by_topic(&self.name, version))
    }

    /// A topic that somebody else has written closes.
    pub(super) fn committed<T>(&self, turn: &mut RecordTurn, result: &Result<T, MetadataError>) {
        turn.ended(result);
        let Err(error) = result else { return };
        if !error.is_deposed() {
            return;
        }
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        if state.life != Life::Closed {
            tracing::error!(topic = %self.name, %error, "another broker has taken over the topic");
        }
        // Nothing is acknowledged here any more.
        state.ledger.fence();
        self.carry_out(&mut state, &mut flushes);
        drop(state);
        flushes.run();
    }

    /// Nothing that is begun from now on is written. What may still be written is noted before anybody can load the topic again.
    pub(super) fn end_commits(&self, state: &mut TopicState) {
        state.life = Life::Closed;
        // Whoever takes the turn after this finds the topic closed.
        if self.record_turn.try_lock().map_or(true, |turn| turn.is_in_doubt()) {
            self.shared.unsettled.add(&self.name, &self.bundle);
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // It could not be loaded, or was given up while it was.
        if self.state.get_mut().life != Life::Closed && self.record_turn.get_mut().is_in_doubt() {
            self.shared.unsettled.add(&self.name, &self.bundle);
        }
    }
}

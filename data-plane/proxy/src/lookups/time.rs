//! What happens when nothing does.

use std::time::Instant;

use geminga_wire_pulsar::proto;

use super::{Action, End, GREETING_LIMIT, KEEP_ALIVE, Lookups};
use crate::answers::Refusal;
use crate::frame::Frame;

impl Lookups {
    /// To be called every few seconds.
    ///
    /// # Errors
    /// When the connection is to end.
    pub fn tick(&mut self, now: Instant) -> Result<(), End> {
        if !self.greeted && now.saturating_duration_since(self.began) >= GREETING_LIMIT {
            self.tell(Refusal::not_ready("the broker has not agreed in time").greeting());
            return Err(End::GreetingLimit);
        }
        let quiet = now.saturating_duration_since(self.heard);
        if self.greeted && quiet >= 2 * KEEP_ALIVE {
            return Err(End::Silent);
        }
        if self.greeted && quiet >= KEEP_ALIVE && !std::mem::replace(&mut self.asked_alive, true) {
            self.tell(Frame::new(proto::CommandPing {}));
        }
        for request_id in self.requests.overdue(now) {
            self.fail(request_id, &Refusal::not_ready("the broker has not answered in time"));
        }
        self.tick_links(now)
    }

    fn tick_links(&mut self, now: Instant) -> Result<(), End> {
        for link in self.links.begin_asking(now) {
            self.actions.push(Action::ToBroker(link, Frame::new(proto::CommandPing {}).bytes));
        }
        for link in self.links.overdue(now) {
            self.actions.push(Action::HangUp(link));
            self.lost(link, "it does not answer", true, now)?;
        }
        let home = self.home;
        let requests = &self.requests;
        for link in self.links.idle(now, |link| Some(link) == home || requests.any_at(link)) {
            self.actions.push(Action::HangUp(link));
            self.forget(link);
        }
        Ok(())
    }
}

//! Which broker owns which bundle, by measured load: pure.
//!
//! There is no clock, socket, thread, runtime or metadata here. The leader tells a [`Balancer`] what brokers report and what
//! time it is, and has its [`Decision`]s carried out by the bundles' owners. A bundle that nobody owns goes where [`choose`]
//! says, which any broker can ask with summaries from the leader. Nothing here is needed for safety: a decision that is late,
//! lost, repeated or made by a deposed leader costs a reconnect at most, since ownership has epochs and ledgers are fenced.
//!
//! A move costs clients a reconnect, so that most of what is here is about not moving:
//!
//! * **One number per bundle.** Rates, weighted by what they cost and calibrated by the brokers' CPU, smoothed over ten minutes;
//!   real jumps are followed in one or two, and those that noise cannot be at once. CPU that a broker's bundles do not explain counts as its load as well, so that a machine
//!   that is slow or busy with something else is given less.
//! * **A gap between cause and goal.** A broker gives when it has had 4 % more than its share for two minutes, or as soon as it
//!   has 6 % more, down to 1 % more, and nobody is lifted above that, unless all that is left to give is too large for it; then the gap between the two all but
//!   closes. So no move makes its own reverse worth while. The bundles that move the most load per client that has to reconnect
//!   go first. A plan that would not help noticeably is dropped.
//! * **Rest.** A bundle that was moved for levelling stays for a day, also under a new leader, as owners report when it was moved. So
//!   does one that a started broker was given, but that broker may pass it on once after a quarter of an hour if it has too much by then
//!   and nothing else to give: or what it was filled with at night would be its load at noon. A bundle that has just come, or come
//!   out of a split, is not judged by the rates of the first minute.
//! * **Bounds.** Moves per hour for levelling, moves and splits at once, per broker and in all; what fails is tried again later
//!   and later.
//! * **Starting and leaving are quick.** A broker far below its share is given it in one go, unless it keeps starting; one that
//!   leaves is emptied, and neither rest nor budget holds that up. A broker is filled with what has not moved that day, and
//!   with a sample of what the others have, large and small, and not quite all of its share, so that it has little to give back.
//! * **Silence is not absence.** Brokers that are not heard give and take nothing, and a leader that hears too few decides
//!   nothing. A report that does not name what has just come to its broker was on its way meanwhile.
//!
//! What Pulsar does is in part the same (`TransferShedder`: moves from the most to the least loaded broker, after several
//! rounds in which the spread was too great) and in part the reason for the above: its shedders have no memory per bundle beyond
//! a grace period and may move what was just moved, judge by top bundles only, and give to a broker without regard to what is
//! under way to it.
//!
//! Namespace isolation, failure domains and anti-affinity are not looked at. They would restrict who may take a bundle: in
//! `Round::pick` and in [`choose`].
//!
//! Start at [`Balancer`]; then `round/`, and `fleet.rs` for what is known.

mod balancer;
mod bundles;
mod choose;
mod config;
mod decision;
mod estimate;
mod explain;
mod fleet;
mod in_flight;
mod moved;
mod report;
mod round;
mod standings;

pub use balancer::Balancer;
pub use choose::{BrokerSummary, choose};
pub use config::{BalanceConfig, Fill, Hearing, Level, MoveLimits, Smoothing, SplitLimits, WorkWeights};
pub use decision::{Decision, Reason, SplitReason};
pub use explain::{BrokerExplanation, Explanation, Obstacle, Pause, Verdict};
pub use report::{BrokerId, BrokerReport, BundleId, BundleReport, ReportRefused};

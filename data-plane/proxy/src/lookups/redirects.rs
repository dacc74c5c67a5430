//! Answers to lookups: the last one is rewritten for the client, a redirect is followed here.

use std::time::Instant;

use geminga_wire_pulsar::proto::command_lookup_topic_response::LookupType;
use geminga_wire_pulsar::{Command, proto};

use super::links::LinkId;
use super::{Action, Lookups};
use crate::answers::Refusal;
use crate::endpoint::Endpoint;
use crate::frame::Frame;

/// Brokers that send a lookup to each other for longer are not of one mind.
const REDIRECTS_MAX: u8 = 20;
/// Links of one client at a time.
const LINKS_MAX: usize = 32;

impl Lookups {
    pub(super) fn looked_up(
        &mut self,
        link: LinkId,
        response: &proto::CommandLookupTopicResponse,
        frame: Frame,
        now: Instant,
    ) {
        let request_id = response.request_id;
        let Some(request) = self.requests.get(request_id).filter(|request| request.link == link) else { return };
        let Command::Lookup(lookup) = &request.frame.command else { return };
        let kind = response.response.and_then(|kind| LookupType::try_from(kind).ok());
        match kind {
            Some(LookupType::Failed) => {
                self.requests.remove(request_id);
                self.tell(frame);
            }
            Some(LookupType::Connect) => match self.named_by(link, response) {
                Ok(endpoint) => {
                    self.requests.remove(request_id);
                    let answer = through_here(request_id, &endpoint);
                    self.actions.push(Action::LookedUp(endpoint));
                    self.tell(answer);
                }
                Err(refusal) => self.fail(request_id, &refusal),
            },
            Some(LookupType::Redirect) => {
                let mut lookup = lookup.clone();
                lookup.authoritative = response.authoritative;
                let redirects = request.redirects;
                if let Err(refusal) = self.follow(link, request_id, *lookup, response, redirects, now) {
                    self.fail(request_id, &refusal);
                }
            }
            None => self.fail(request_id, &Refusal::not_ready("the broker's answer to the lookup is unknown here")),
        }
    }

    fn follow(
        &mut self,
        link: LinkId,
        request_id: u64,
        lookup: proto::CommandLookupTopic,
        response: &proto::CommandLookupTopicResponse,
        redirects: u8,
        now: Instant,
    ) -> Result<(), Refusal> {
        if redirects >= REDIRECTS_MAX {
            return Err(Refusal::not_ready("the brokers redirect the lookup in circles"));
        }
        let endpoint = self.named_by(link, response)?;
        let next = match self.links.at(&endpoint) {
            Some(link) => link,
            None => self.begin_at(endpoint, now)?,
        };
        self.requests.redirect(request_id, Frame::new(lookup), next);
        self.send(request_id, now);
        Ok(())
    }

    fn begin_at(&mut self, endpoint: Endpoint, now: Instant) -> Result<LinkId, Refusal> {
        if self.links.len() >= LINKS_MAX {
            return Err(Refusal::not_ready("too many redirected lookups at once"));
        }
        let link = self.links.begin(now);
        if let Some(found) = self.links.get_mut(link) {
            found.endpoint = Some(endpoint.clone());
        }
        self.actions.push(Action::Dial(link, Some(endpoint)));
        Ok(link)
    }

    /// The broker that an answer names: with TLS if the one that answers is reached with it, and never without then.
    fn named_by(&self, link: LinkId, response: &proto::CommandLookupTopicResponse) -> Result<Endpoint, Refusal> {
        let tls = self.links.get(link).and_then(|link| link.endpoint.as_ref()).is_some_and(|endpoint| endpoint.tls);
        let urls = [&response.broker_service_url_tls, &response.broker_service_url];
        let named: Vec<Endpoint> = urls
            .into_iter()
            .flatten()
            .filter(|url| !url.is_empty())
            .filter_map(|url| Endpoint::pulsar(url).ok())
            .collect();
        let found = named.iter().find(|endpoint| endpoint.tls == tls);
        let found = found.or_else(|| named.first().filter(|_| !tls));
        let with = if tls { " with TLS" } else { "" };
        found
            .cloned()
            .ok_or_else(|| Refusal::not_ready(format!("the lookup's answer has no address of a broker{with}")))
    }
}

/// The same address with and without TLS: it is the name by which the client asks for the broker, and says nothing about how
/// the client reaches the proxy.
fn through_here(request_id: u64, endpoint: &Endpoint) -> Frame {
    let url = Some(endpoint.pulsar_url());
    Frame::new(proto::CommandLookupTopicResponse {
        broker_service_url: url.clone(),
        broker_service_url_tls: url,
        response: Some(LookupType::Connect as i32),
        request_id,
        authoritative: Some(true),
        proxy_through_service_url: Some(true),
        ..Default::default()
    })
}

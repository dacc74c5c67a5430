use geminga_wire_pulsar::proto::ServerError;
use geminga_wire_pulsar::proto::command_lookup_topic_response::LookupType;
use std::time::{Duration, Instant};

use super::requests::Requests;
use super::*;

const HOME: LinkId = LinkId(0);
const SECOND: LinkId = LinkId(1);

/// A client's session, with the frames that came out of it.
struct Session {
    lookups: Lookups,
    now: Instant,
}

impl Session {
    /// Before the first broker has agreed.
    fn fresh() -> Self {
        let connect = proto::CommandConnect {
            client_version: "test".into(),
            auth_method_name: Some("token".into()),
            auth_data: Some("old".into()),
            proxy_to_broker_url: None,
            ..Default::default()
        };
        let now = Instant::now();
        let mut session = Self { lookups: Lookups::new(connect, now), now };
        assert_eq!(session.actions(), [Action::Dial(HOME, None)]);
        session
    }

    /// With a home that is reached without TLS.
    fn at_home() -> Self {
        Self::at("pulsar://home:6650")
    }

    fn at(home: &str) -> Self {
        let mut session = Self::fresh();
        session.agree(HOME, home);
        let connected = session.actions();
        assert!(matches!(&command(&connected[0]), Command::Connected(_)), "{connected:?}");
        session
    }

    /// A link is connected and its broker agrees; what the client is told stays in the actions.
    fn agree(&mut self, link: LinkId, endpoint: &str) -> proto::CommandConnect {
        self.lookups.dialed(link, Endpoint::pulsar(endpoint).unwrap(), self.now);
        let actions = self.actions();
        let [Action::ToBroker(to, _)] = &actions[..] else { panic!("expected a greeting, got {actions:?}") };
        assert_eq!(*to, link);
        let Command::Connect(connect) = command(&actions[0]) else { panic!("expected CONNECT") };
        self.broker(link, proto::CommandConnected { server_version: "b".into(), ..Default::default() }).unwrap();
        *connect
    }

    fn actions(&mut self) -> Vec<Action> {
        self.lookups.take_actions()
    }

    fn client(&mut self, command: impl Into<Command>) -> Result<(), End> {
        self.lookups.client_sent(Frame::new(command), self.now)
    }

    fn broker(&mut self, link: LinkId, command: impl Into<Command>) -> Result<(), End> {
        self.lookups.broker_sent(link, Frame::new(command), self.now)
    }

    fn lost(&mut self, link: LinkId, reached: bool) -> Result<(), End> {
        self.lookups.lost(link, "test", reached, self.now)
    }

    fn pass(&mut self, time: Duration) -> Result<(), End> {
        self.now += time;
        self.lookups.tick(self.now)
    }
}

fn command(action: &Action) -> Command {
    let (Action::ToClient(bytes) | Action::ToBroker(_, bytes)) = action else { panic!("not a frame: {action:?}") };
    let mut buffer = bytes::BytesMut::from(&bytes[..]);
    Frame::take(&mut buffer, usize::MAX).unwrap().expect("a whole frame").command
}

fn lookup(request_id: u64) -> proto::CommandLookupTopic {
    proto::CommandLookupTopic { topic: "persistent://public/default/t".into(), request_id, ..Default::default() }
}

fn answer(request_id: u64, kind: LookupType, url: &str) -> proto::CommandLookupTopicResponse {
    proto::CommandLookupTopicResponse {
        broker_service_url: Some(url.into()),
        response: Some(kind as i32),
        request_id,
        authoritative: Some(true),
        ..Default::default()
    }
}

fn lookup_response(action: &Action) -> proto::CommandLookupTopicResponse {
    match command(action) {
        Command::LookupResponse(response) => *response,
        other => panic!("expected LOOKUP_RESPONSE, got {other:?}"),
    }
}

/// The client is told that the lookup has failed, in a way that makes it try again.
fn assert_failed(action: &Action, request_id: u64) {
    let response = lookup_response(action);
    assert_eq!((response.request_id, response.response()), (request_id, LookupType::Failed));
    assert_eq!(response.error(), ServerError::ServiceNotReady);
}

#[test]
fn an_answer_leads_through_the_proxy_and_lets_the_broker_in() {
    let mut session = Session::at_home();
    session.client(lookup(7)).unwrap();
    let asked = session.actions();
    assert_eq!(command(&asked[0]), Command::from(lookup(7)));
    session.broker(HOME, answer(7, LookupType::Connect, "pulsar://b:6650")).unwrap();
    let actions = session.actions();
    assert_eq!(actions[0], Action::LookedUp(Endpoint::pulsar("pulsar://b:6650").unwrap()));
    let response = lookup_response(&actions[1]);
    assert_eq!(response.broker_service_url.as_deref(), Some("pulsar://b:6650"));
    assert_eq!(response.broker_service_url_tls.as_deref(), Some("pulsar://b:6650"));
    assert_eq!(response.proxy_through_service_url, Some(true));
    session.broker(HOME, answer(7, LookupType::Connect, "pulsar://evil:1")).unwrap();
    assert_eq!(session.actions(), [], "an answer that nobody waits for");
}

#[test]
fn other_answers_pass_as_they_are() {
    let mut session = Session::at_home();
    let request = proto::CommandPartitionedTopicMetadata { topic: "t".into(), request_id: 3, ..Default::default() };
    session.client(request).unwrap();
    session.actions();
    let response = Frame::new(proto::CommandPartitionedTopicMetadataResponse {
        request_id: 3,
        partitions: Some(4),
        ..Default::default()
    });
    let bytes = response.bytes.clone();
    session.lookups.broker_sent(HOME, response, session.now).unwrap();
    assert_eq!(session.actions(), [Action::ToClient(bytes)]);
    assert_eq!(session.lookups.held_bytes(), 0);
}

#[test]
fn a_redirect_is_followed_with_the_clients_credentials() {
    let mut session = Session::at_home();
    session.client(lookup(7)).unwrap();
    session.actions();
    session.broker(HOME, answer(7, LookupType::Redirect, "pulsar://b:6650")).unwrap();
    let b = Endpoint::pulsar("pulsar://b:6650").unwrap();
    assert_eq!(session.actions(), [Action::Dial(SECOND, Some(b.clone()))]);
    let connect = session.agree(SECOND, "pulsar://b:6650");
    assert_eq!(connect.auth_data.as_deref(), Some(&b"old"[..]));
    let actions = session.actions();
    assert_eq!(actions.len(), 1, "the client has been greeted before: {actions:?}");
    let Command::Lookup(again) = command(&actions[0]) else { panic!("expected LOOKUP") };
    assert_eq!((again.request_id, again.authoritative), (7, Some(true)));
    session.broker(SECOND, answer(7, LookupType::Connect, "pulsar://b:6650")).unwrap();
    assert_eq!(session.actions()[0], Action::LookedUp(b));

    // The link stays for a while: the next redirect to the same broker uses it.
    session.client(lookup(8)).unwrap();
    session.broker(HOME, answer(8, LookupType::Redirect, "pulsar://b:6650")).unwrap();
    let actions = session.actions();
    assert!(matches!(actions[..], [_, Action::ToBroker(SECOND, _)]), "{actions:?}");
    session.broker(SECOND, answer(8, LookupType::Connect, "pulsar://b:6650")).unwrap();
    session.actions();
    session.pass(Duration::from_secs(31)).unwrap();
    assert!(session.actions().contains(&Action::HangUp(SECOND)));
}

#[test]
fn redirects_in_circles_end() {
    let mut session = Session::at_home();
    session.client(lookup(7)).unwrap();
    let mut rounds = 0;
    loop {
        session.actions();
        session.broker(HOME, answer(7, LookupType::Redirect, "pulsar://home:6650")).unwrap();
        let actions = session.actions();
        if matches!(actions[..], [Action::ToClient(_)]) {
            assert_failed(&actions[0], 7);
            break;
        }
        rounds += 1;
        assert!(rounds < 100);
    }
    assert_eq!(rounds, 20);
}

#[test]
fn tls_is_kept() {
    let mut session = Session::at("pulsar+ssl://home:6651");
    session.client(lookup(1)).unwrap();
    let mut both = answer(1, LookupType::Connect, "pulsar://b:6650");
    both.broker_service_url_tls = Some("pulsar+ssl://b:6651".into());
    session.actions();
    session.broker(HOME, both).unwrap();
    assert_eq!(session.actions()[0], Action::LookedUp(Endpoint::pulsar("pulsar+ssl://b:6651").unwrap()));
    session.client(lookup(2)).unwrap();
    session.actions();
    session.broker(HOME, answer(2, LookupType::Connect, "pulsar://b:6650")).unwrap();
    assert_failed(&session.actions()[0], 2);
}

#[test]
fn a_refusal_of_the_broker_is_the_clients() {
    let mut session = Session::fresh();
    session.lookups.dialed(HOME, Endpoint::pulsar("a:1").unwrap(), session.now);
    session.actions();
    let error = proto::CommandError {
        request_id: u64::MAX,
        error: ServerError::AuthenticationError as i32,
        message: "who are you".into(),
    };
    assert_eq!(session.broker(HOME, error.clone()), Err(End::Refused("who are you".into())));
    assert_eq!(command(&session.actions()[0]), Command::from(error));
}

#[test]
fn challenges_and_their_answers_find_each_other() {
    let mut session = Session::fresh();
    session.lookups.dialed(HOME, Endpoint::pulsar("a:1").unwrap(), session.now);
    session.actions();
    let data = |bytes: &'static [u8]| {
        Some(proto::AuthData { auth_method_name: Some("token".into()), auth_data: Some(bytes.into()) })
    };
    let challenge = |bytes| proto::CommandAuthChallenge { challenge: data(bytes), ..Default::default() };
    let response = |bytes| proto::CommandAuthResponse { response: data(bytes), ..Default::default() };
    session.broker(HOME, challenge(b"riddle")).unwrap();
    assert_eq!(command(&session.actions()[0]), Command::from(challenge(b"riddle")));
    session.client(response(b"answer")).unwrap();
    assert!(matches!(session.actions()[..], [Action::ToBroker(HOME, _)]));
    session.broker(HOME, proto::CommandConnected { server_version: "b".into(), ..Default::default() }).unwrap();
    session.actions();

    // Both links want new credentials; a third link, later, is greeted with them.
    session.client(lookup(1)).unwrap();
    session.broker(HOME, answer(1, LookupType::Redirect, "pulsar://b:1")).unwrap();
    session.actions();
    let connect = session.agree(SECOND, "pulsar://b:1");
    assert_eq!(connect.auth_data.as_deref(), Some(&b"old"[..]), "the answer to a riddle is no credential");
    session.broker(SECOND, challenge(b"PulsarAuthRefresh")).unwrap();
    session.broker(HOME, challenge(b"PulsarAuthRefresh")).unwrap();
    session.actions();
    session.client(response(b"new")).unwrap();
    session.client(response(b"newer")).unwrap();
    let answers = session.actions();
    assert!(matches!(answers[..], [Action::ToBroker(SECOND, _), Action::ToBroker(HOME, _)]), "{answers:?}");
    session.lost(HOME, true).unwrap();
    session.client(lookup(2)).unwrap();
    assert_eq!(session.actions(), [Action::Dial(LinkId(2), None)]);
    assert_eq!(session.agree(LinkId(2), "c:1").auth_data.as_deref(), Some(&b"newer"[..]));
}

#[test]
fn what_a_lost_broker_has_not_answered_is_asked_again() {
    let mut session = Session::at_home();
    session.client(lookup(1)).unwrap();
    session.client(lookup(2)).unwrap();
    session.broker(HOME, answer(1, LookupType::Connect, "pulsar://b:6650")).unwrap();
    session.actions();
    session.lost(HOME, true).unwrap();
    assert_eq!(session.actions(), [Action::Dial(SECOND, None)]);
    session.agree(SECOND, "pulsar://other:6650");
    let actions = session.actions();
    assert_eq!(actions.len(), 1, "{actions:?}");
    assert_eq!(command(&actions[0]), Command::from(lookup(2)));
    session.lost(SECOND, true).unwrap();
    session.actions();
    // The third time it is enough.
    session.lost(LinkId(2), true).unwrap();
    assert_failed(&session.actions()[0], 2);
}

#[test]
fn without_any_broker_requests_fail_and_later_ones_try_again() {
    let mut session = Session::at_home();
    session.lost(HOME, true).unwrap();
    assert_eq!(session.actions(), [], "nothing is under way");
    session.client(lookup(1)).unwrap();
    assert_eq!(session.actions(), [Action::Dial(SECOND, None)]);
    session.lost(SECOND, false).unwrap();
    assert_failed(&session.actions()[0], 1);
    session.client(lookup(2)).unwrap();
    assert_eq!(session.actions(), [Action::Dial(LinkId(2), None)]);
}

#[test]
fn a_client_that_comes_while_no_broker_is_there_is_told_so() {
    let mut session = Session::fresh();
    assert_eq!(session.lost(HOME, false), Err(End::NoBroker("test".into())));
    assert!(matches!(command(&session.actions()[0]), Command::Error(_)));

    // One that accepts and closes is tried at another one, a few times.
    let mut session = Session::fresh();
    session.lost(HOME, true).unwrap();
    session.lost(SECOND, true).unwrap();
    assert_eq!(session.lost(LinkId(2), true), Err(End::NoBroker("test".into())));
}

#[test]
fn a_watch_ends_with_its_broker() {
    let watch = |request_id| proto::CommandWatchTopicList {
        request_id,
        watcher_id: 5,
        namespace: "public/default".into(),
        topics_pattern: "t.*".into(),
        ..Default::default()
    };
    let mut session = Session::at_home();
    session.client(watch(1)).unwrap();
    session.actions();
    let success = proto::CommandWatchTopicListSuccess { request_id: 1, watcher_id: 5, ..Default::default() };
    session.broker(HOME, success).unwrap();
    session.broker(HOME, proto::CommandWatchTopicUpdate { watcher_id: 5, ..Default::default() }).unwrap();
    session.broker(HOME, proto::CommandWatchTopicUpdate { watcher_id: 6, ..Default::default() }).unwrap();
    let actions = session.actions();
    assert_eq!(actions.len(), 2, "an update of a watch that there is not: {actions:?}");
    assert_eq!(session.lost(HOME, true), Err(End::WatchLost("test".into())));

    let mut session = Session::at_home();
    session.client(watch(1)).unwrap();
    session.client(proto::CommandWatchTopicListClose { request_id: 2, watcher_id: 5 }).unwrap();
    session.lost(HOME, true).unwrap();
}

#[test]
fn a_broker_that_answers_nothing_is_left() {
    let mut session = Session::at_home();
    session.client(lookup(1)).unwrap();
    session.actions();
    session.pass(KEEP_ALIVE).unwrap();
    let pings: Vec<Command> = session.actions().iter().map(command).collect();
    assert_eq!(pings, [Command::from(proto::CommandPing {}), Command::from(proto::CommandPing {})]);
    session.client(proto::CommandPong {}).unwrap();
    session.pass(KEEP_ALIVE - Duration::from_secs(1)).unwrap();
    assert_eq!(session.actions(), []);
    session.pass(Duration::from_secs(1)).unwrap();
    let actions = session.actions();
    // The request is a minute old then, and fails with the broker that does not answer it.
    assert!(actions.contains(&Action::HangUp(HOME)), "{actions:?}");
    let is_answer = |action: &&Action| {
        matches!(action, Action::ToClient(_)) && matches!(command(action), Command::LookupResponse(_))
    };
    assert_failed(actions.iter().find(is_answer).unwrap(), 1);
}

#[test]
fn a_silent_client_is_left() {
    let mut session = Session::at_home();
    session.pass(KEEP_ALIVE).unwrap();
    session.broker(HOME, proto::CommandPong {}).unwrap();
    assert_eq!(session.pass(KEEP_ALIVE), Err(End::Silent));
}

#[test]
fn a_broker_that_does_not_agree_is_not_waited_for() {
    let mut session = Session::fresh();
    session.lookups.dialed(HOME, Endpoint::pulsar("a:1").unwrap(), session.now);
    assert_eq!(session.pass(GREETING_LIMIT), Err(End::GreetingLimit));
    assert!(matches!(command(session.actions().last().unwrap()), Command::Error(_)));
}

#[test]
fn what_belongs_to_a_connection_to_a_broker_is_refused() {
    let mut session = Session::at_home();
    let producer = proto::CommandProducer { topic: "t".into(), request_id: 4, ..Default::default() };
    session.client(producer).unwrap();
    let Command::Error(error) = command(&session.actions()[0]) else { panic!("expected ERROR") };
    assert_eq!((error.request_id, error.error()), (4, ServerError::NotAllowedError));
    for (request_id, answered) in [(Some(6), 6), (None, NO_REQUEST)] {
        session.client(Command::Unknown { id: 70, request_id }).unwrap();
        let Command::Error(error) = command(&session.actions()[0]) else { panic!("expected ERROR") };
        assert_eq!((error.request_id, &*error.message), (answered, "command 70 is not supported"));
    }
    assert_eq!(session.client(proto::CommandSend::default()), Err(End::Unexpected("SEND")));
    assert_eq!(session.client(proto::CommandConnect::default()), Err(End::Unexpected("CONNECT")));
    session.client(lookup(5)).unwrap();
    assert_eq!(session.client(lookup(5)), Err(End::DuplicateRequest(5)));
}

#[test]
fn a_client_with_much_under_way_is_not_read() {
    let mut session = Session::at_home();
    let mut asked = 0;
    while session.lookups.takes_more() {
        session.client(lookup(asked)).unwrap();
        asked += 1;
    }
    assert_eq!(asked, 1000);
    assert!(session.lookups.held_bytes() > 0);
    session.broker(HOME, answer(0, LookupType::Connect, "pulsar://b:1")).unwrap();
    assert!(session.lookups.takes_more());
    assert_eq!(Requests::default().bytes(), 0);
}

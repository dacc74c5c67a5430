use bytes::{Bytes, BytesMut};
use geminga_wire_bookkeeper::{
    Add, Answer, BatchRead, Code, Incoming, Read, ReplyTo, Request, Response, Wait, WireVersion, WriteLac,
    decode_request, decode_response, encode_request, encode_response, take_frame,
};
use proptest::prelude::*;

const CODES: [Code; 11] = [
    Code::Ok,
    Code::NoLedger,
    Code::NoEntry,
    Code::BadRequest,
    Code::Io,
    Code::Unauthorized,
    Code::BadVersion,
    Code::Fenced,
    Code::ReadOnly,
    Code::TooManyRequests,
    Code::UnknownLedgerState,
];

fn body() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

/// An add's body begins with its ledger and entry.
fn add() -> impl Strategy<Value = Add> {
    (any::<i64>(), any::<i64>(), any::<[u8; 20]>(), any::<[bool; 3]>(), body()).prop_map(
        |(ledger, entry, master_key, [recovery, high_priority, deferred_sync], rest)| {
            let body = [&ledger.to_be_bytes()[..], &entry.to_be_bytes(), &rest].concat().into();
            Add { ledger, entry, master_key, recovery, high_priority, deferred_sync, body }
        },
    )
}

fn read() -> impl Strategy<Value = Read> {
    let wait = (any::<i64>(), any::<Option<i64>>(), any::<bool>())
        .prop_map(|(previous_lac, timeout_ms, piggyback)| Wait { previous_lac, timeout_ms, piggyback });
    (any::<i64>(), any::<i64>(), any::<Option<[u8; 20]>>(), any::<bool>(), prop::option::of(wait)).prop_map(
        |(ledger, entry, key, high_priority, wait)| Read {
            ledger,
            entry,
            fence: key.is_some(),
            master_key: key,
            high_priority,
            wait: wait.filter(|_| key.is_none()),
        },
    )
}

fn batch_read() -> impl Strategy<Value = BatchRead> {
    (any::<[i64; 4]>(), any::<i32>(), any::<Option<[u8; 20]>>()).prop_map(
        |([ledger, entry, request_id, max_bytes], max_count, key)| BatchRead {
            ledger,
            entry,
            request_id,
            max_count,
            max_bytes,
            fence: key.is_some(),
            master_key: key,
        },
    )
}

fn compact_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        add().prop_map(|add| Request::Add(Add { deferred_sync: false, ..add })),
        read().prop_map(|read| Request::Read(Read { wait: None, ..read })),
        batch_read().prop_map(Request::BatchRead),
        ("[a-z.]{1,30}", body()).prop_map(|(plugin, payload)| Request::Authenticate { plugin, payload }),
    ]
}

fn protobuf_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        add().prop_map(Request::Add),
        read().prop_map(Request::Read),
        (any::<i64>(), any::<i64>(), any::<[u8; 20]>(), body()).prop_map(
            |(ledger, last_add_confirmed, master_key, body)| {
                Request::WriteLac(WriteLac { ledger, last_add_confirmed, master_key, body })
            }
        ),
        any::<i64>().prop_map(|ledger| Request::ReadLac { ledger }),
        any::<i64>().prop_map(|ledger| Request::ForceLedger { ledger }),
        any::<i64>().prop_map(|ledger| Request::ListEntries { ledger }),
        any::<i64>().prop_map(|requested| Request::NodeInfo { requested }),
        ("[a-z.]{1,30}", body()).prop_map(|(plugin, payload)| Request::Authenticate { plugin, payload }),
        Just(Request::StartTls),
    ]
}

fn sent(version: WireVersion, txn_id: u64, request: &Request) -> Incoming {
    let mut bytes = BytesMut::new();
    encode_request(version, txn_id, request, &mut bytes);
    let frame = take_frame(&mut bytes, 1 << 20).expect("not too large").expect("whole");
    assert!(bytes.is_empty(), "the length counts what follows it");
    decode_request(frame).expect("it is a request")
}

fn answered(reply_to: &ReplyTo, code: Code, response: &Response) -> Answer {
    let mut bytes = BytesMut::new();
    encode_response(reply_to, code, response, &mut bytes);
    let frame = take_frame(&mut bytes, 1 << 20).expect("not too large").expect("whole");
    assert!(bytes.is_empty(), "the length counts what follows it");
    decode_response(frame).expect("it is an answer")
}

proptest! {
    #[test]
    fn compact_requests(request in compact_request()) {
        prop_assert_eq!(sent(WireVersion::Compact, 0, &request).request, Ok(request));
    }

    #[test]
    fn protobuf_requests(request in protobuf_request(), txn: u64) {
        let incoming = sent(WireVersion::Protobuf, txn, &request);
        prop_assert_eq!(incoming.request, Ok(request));
        let has_txn = matches!(incoming.reply_to, ReplyTo::Protobuf { txn_id, .. } if txn_id == txn);
        prop_assert!(has_txn);
    }

    #[test]
    fn answers_to_reads(body in body(), max_lac: Option<i64>, ledger: i64, entry: i64, txn_id: u64) {
        let compact = ReplyTo::Compact { version: 2, operation: 2, ledger, entry, request_id: 0 };
        let response = Response::Entry { body: Some(body), max_lac: None, lac_updated: None, entry: None };
        let answer = answered(&compact, Code::Ok, &response);
        prop_assert_eq!(answer, Answer { reply_to: compact, code: Code::Ok, response: response.clone() });
        let protobuf = ReplyTo::Protobuf { operation: 1, txn_id, ledger, entry };
        let Response::Entry { body, .. } = response else { unreachable!() };
        let response = Response::Entry { body, max_lac, lac_updated: max_lac, entry: None };
        let answer = answered(&protobuf, Code::Ok, &response);
        prop_assert_eq!(answer, Answer { reply_to: protobuf, code: Code::Ok, response });
    }

    #[test]
    fn answers_to_batch_reads(bodies in prop::collection::vec(body(), 1..6), ledger: i64, entry: i64, request_id: i64) {
        let reply_to = ReplyTo::Compact { version: 2, operation: 7, ledger, entry, request_id };
        let response = Response::Entries(bodies);
        let answer = answered(&reply_to, Code::Ok, &response);
        prop_assert_eq!(answer, Answer { reply_to, code: Code::Ok, response });
    }

    #[test]
    fn other_answers(request in protobuf_request(), one in body(), other in prop::option::of(body()), number: Option<i64>, txn: u64) {
        let reply_to = sent(WireVersion::Protobuf, txn, &request).reply_to;
        let response = match &request {
            Request::ReadLac { .. } => Response::Lac { explicit: Some(one), last_entry: other },
            Request::ListEntries { .. } => Response::EntryList(one),
            Request::NodeInfo { .. } => {
                Response::NodeInfo { total: number, free: number, id: number.map(|number| number.to_string()) }
            }
            Request::Authenticate { plugin, .. } => Response::Authenticate { plugin: plugin.clone(), payload: one },
            _ => Response::Empty,
        };
        let answer = answered(&reply_to, Code::Ok, &response);
        prop_assert_eq!(answer.response, response);
        prop_assert_eq!(answer.code, Code::Ok);
    }

    #[test]
    fn failures(request in protobuf_request(), compact in compact_request(), code in prop::sample::select(&CODES[..]), txn: u64) {
        let protobuf = sent(WireVersion::Protobuf, txn, &request).reply_to;
        let answer = answered(&protobuf, code, &Response::Empty);
        prop_assert_eq!(answer.code, code);
        if !matches!(compact, Request::Authenticate { .. }) {
            let reply_to = sent(WireVersion::Compact, 0, &compact).reply_to;
            let answer = answered(&reply_to, code, &Response::Empty);
            prop_assert_eq!((answer.code, answer.reply_to), (code, reply_to));
        }
    }
}

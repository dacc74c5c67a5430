//! Names of topics and namespaces: what is accepted is stable.

#![no_main]

use geminga_model::{NamespaceName, TopicName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(namespace) = text.parse::<NamespaceName>() {
        assert_eq!(namespace.as_str(), text);
        assert_eq!(format!("{}/{}", namespace.tenant(), namespace.local_name()), text);
    }
    let Ok(name) = TopicName::parse(text) else { return };
    let again = TopicName::parse(name.as_str()).expect("a full name");
    assert_eq!(again, name);
    assert_eq!(again.local_name(), name.local_name());
    assert!(name.encoded_local_name().is_ascii());
    let base = name.partitioned_base();
    assert_eq!(TopicName::parse(base.as_str()).expect("a full name").local_name(), base.local_name());
    // The base may itself be named like that partition of something.
    if let Some(index) = name.partition_index().filter(|index| base != name && base.partition_index() != Some(*index)) {
        assert_eq!(base.partition(index), name);
    }
    let third = name.partition(3);
    assert_eq!(third.partition_index(), Some(3));
    assert!(third == name || third.partitioned_base() == name);
    assert_eq!((third.domain(), third.namespace()), (name.domain(), name.namespace()));
});

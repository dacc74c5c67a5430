//! What a key that has changed is about, for those who follow metadata as a whole.

use geminga_model::{NamespaceName, TopicName};

use super::{configuration, namespaces, partitioned, topic_policies, topics};

/// Something that brokers have to know of, though another one has changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataChange {
    /// A topic or a partitioned topic of the namespace came, went or changed.
    TopicList(NamespaceName),
    NamespacePolicies(NamespaceName),
    /// Of a topic, or of a partitioned topic and all its partitions.
    TopicPolicies(TopicName),
    Configuration,
}

impl MetadataChange {
    /// None: brokers don't care, or only the one that has changed it does.
    pub fn of_key(key: &str) -> Option<Self> {
        let (kind, rest) = key.split_once('/')?;
        match &key[..=kind.len()] {
            topics::PREFIX | partitioned::PREFIX => {
                topics::of_path(rest).map(|topic| Self::TopicList(topic.namespace().clone()))
            }
            topic_policies::PREFIX => topics::of_path(rest).map(Self::TopicPolicies),
            namespaces::PREFIX => NamespaceName::parse(rest).ok().map(Self::NamespacePolicies),
            configuration::PREFIX => Some(Self::Configuration),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_they_are_about() {
        let namespace: NamespaceName = "public/default".parse().unwrap();
        let topic = TopicName::parse("persistent://public/default/a").unwrap();
        for (key, change) in [
            ("topics/public/default/persistent/a", Some(MetadataChange::TopicList(namespace.clone()))),
            ("partitioned/public/default/persistent/a", Some(MetadataChange::TopicList(namespace.clone()))),
            ("topic-policies/public/default/persistent/a", Some(MetadataChange::TopicPolicies(topic))),
            ("namespaces/public/default", Some(MetadataChange::NamespacePolicies(namespace))),
            ("configuration/x", Some(MetadataChange::Configuration)),
            ("ledgers/7", None),
            ("nothing", None),
        ] {
            assert_eq!(MetadataChange::of_key(key), change, "{key}");
        }
    }
}

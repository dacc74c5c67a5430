//! Deletions of which nobody knows what became, and those of partitions.

use std::sync::Arc;

use geminga_broker::{Broker, BrokerConfig, BrokerError};
use geminga_ledger_client::MemoryLedgers;

use crate::fixture::{self, Client, LateStore, Told, name, publish};

#[tokio::test]
async fn a_topic_that_may_be_gone_is_not_served_from_memory() {
    for comes_true in [true, false] {
        let store = Arc::new(LateStore::default());
        let metadata = fixture::metadata_in(store.clone()).await;
        let broker =
            Broker::start(BrokerConfig::default(), metadata, Arc::new(MemoryLedgers::default())).await.unwrap();
        let client = Client::new();
        let topic = fixture::topic(&broker, "t").await;
        let producer = client.produce(&topic, "p").await.unwrap();
        publish(&client, &producer, &["a"]).await;

        store.hold("garbage/");
        broker.delete_topic(&name("t"), true).await.unwrap_err();
        let closed = client.told().into_iter().any(|told| matches!(told, Told::ProducerClosed(..)));
        assert!(closed, "what it published now could be deleted with the topic");
        if comes_true {
            store.release().await.unwrap();
            let again = broker.delete_topic(&name("t"), true).await;
            assert!(matches!(again, Err(BrokerError::TopicNotFound(_))), "{again:?}");
        } else {
            let topic = broker.topic(&name("t"), false).await.unwrap();
            assert!(store.release().await.unwrap_err().is_conflict(), "it is too late");
            let producer = client.produce(&topic, "p").await.unwrap();
            publish(&client, &producer, &["b"]).await;
        }
    }
}

#[tokio::test]
async fn partitions_do_not_come_back_while_they_are_deleted() {
    let broker = fixture::broker().await;
    let parts = name("parts");
    broker.create_new_partitioned(&parts, 2, Default::default()).await.unwrap();
    let deletion = async {
        broker.delete_topic(&parts.partition(0), true).await?;
        let back = broker.topic(&parts.partition(0), true).await.map(drop);
        assert!(matches!(back, Err(BrokerError::TopicNotFound(_))), "{back:?}");
        let count = broker.partitions(&parts, true).await;
        assert!(matches!(count, Err(BrokerError::TopicNotFound(_))), "{count:?}");
        Err::<(), _>(BrokerError::PreconditionFailed("somebody is connected".into()))
    };
    broker.delete_partitions_first(&parts, deletion).await.unwrap_err();
    assert_eq!(broker.partitions(&parts, false).await.unwrap(), 2, "it was not deleted after all");
    broker.topic(&parts.partition(0), true).await.unwrap();
    broker.delete_partitioned(&parts, false).await.unwrap();
    assert!(matches!(broker.delete_partitioned(&parts, false).await, Err(BrokerError::NotFound(_))));
}

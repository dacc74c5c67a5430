package geminga.clients;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.BatchReceivePolicy;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.ConsumerEventListener;
import org.apache.pulsar.client.api.DeadLetterPolicy;
import org.apache.pulsar.client.api.KeySharedPolicy;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Range;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.common.policies.data.AutoSubscriptionCreationOverride;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class ConsumerTest extends Server {

    @Test
    void exclusiveIsExclusive() throws Exception {
        consumer(SubscriptionType.Exclusive).subscribe();
        for (var type : SubscriptionType.values()) {
            assertThrows(PulsarClientException.ConsumerBusyException.class, () -> consumer(type).subscribe());
        }
    }

    @ParameterizedTest
    @EnumSource(SubscriptionType.class)
    void positionSurvivesTheConsumer(SubscriptionType type) throws Exception {
        var consumer = consumer(type).isAckReceiptEnabled(true).subscribe();
        produce(producer().enableBatching(false).create(), 0, 50);
        var messages = receive(consumer, 50);
        for (int i = 0; i < 50; i++) {
            if (i < 20 || i % 2 == 0) {
                consumer.acknowledge(messages.get(i));
            }
        }
        consumer.close();
        var again = consumer(type).subscribe();
        var left = series(20, 50).stream().filter(m -> Integer.parseInt(m.substring(1)) % 2 == 1).toList();
        assertEquals(left, texts(receiveAll(again, 2000)));
    }

    @ParameterizedTest
    @EnumSource(value = SubscriptionType.class, names = {"Exclusive", "Shared"})
    void batchIndexAcknowledgement(SubscriptionType type) throws Exception {
        var consumer = consumer(type).enableBatchIndexAcknowledgment(true).isAckReceiptEnabled(true).subscribe();
        produce(producer().batchingMaxMessages(20).batchingMaxPublishDelay(1, TimeUnit.SECONDS).create(), 0, 20);
        var left = new ArrayList<String>();
        for (var m : receive(consumer, 20)) {
            if (numberOf(m) % 3 == 0) {
                consumer.acknowledge(m);
            } else {
                left.add(text(m));
            }
        }
        consumer.close();
        var again = consumer(type).enableBatchIndexAcknowledgment(true).subscribe();
        assertEquals(left, texts(receiveAll(again, 1000)));
    }

    @Test
    void cumulativeAcknowledgementInsideABatch() throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive).enableBatchIndexAcknowledgment(true).isAckReceiptEnabled(true).subscribe();
        produce(producer().batchingMaxMessages(10).create(), 0, 30);
        consumer.acknowledgeCumulative(receive(consumer, 30).get(14));
        consumer.close();
        assertEquals(series(15, 30), texts(receiveAll(consumer(SubscriptionType.Exclusive).enableBatchIndexAcknowledgment(true).subscribe(), 1000)));
    }

    @Test
    void acknowledgementsOfAList() throws Exception {
        var consumer = consumer(SubscriptionType.Shared).isAckReceiptEnabled(true).subscribe();
        produce(producer().enableBatching(false).create(), 0, 30);
        consumer.acknowledge(receive(consumer, 30).stream().map(m -> m.getMessageId()).toList());
        assertEquals(0, admin.topics().getStats(topic).getSubscriptions().get("s").getMsgBacklog());
    }

    @Test
    void sharedSpreads() throws Exception {
        var consumers = new ArrayList<Consumer<byte[]>>();
        for (int i = 0; i < 3; i++) {
            consumers.add(consumer(SubscriptionType.Shared).receiverQueueSize(10).subscribe());
        }
        produce(producer().enableBatching(false).create(), 0, 300);
        var all = new HashSet<String>();
        var shares = new int[3];
        for (int idle = 0; all.size() < 300 && idle < 200;) {
            for (int i = 0; i < 3; i++) {
                var m = consumers.get(i).receive(20, TimeUnit.MILLISECONDS);
                if (m == null) {
                    idle++;
                } else {
                    assertTrue(all.add(text(m)), "twice: " + text(m));
                    consumers.get(i).acknowledge(m);
                    shares[i]++;
                }
            }
        }
        assertEquals(new HashSet<>(series(0, 300)), all);
        assertTrue(shares[0] > 0 && shares[1] > 0 && shares[2] > 0);
    }

    @Test
    void priorities() throws Exception {
        var high = consumer(SubscriptionType.Shared).priorityLevel(0).receiverQueueSize(5).subscribe();
        var low = consumer(SubscriptionType.Shared).priorityLevel(1).receiverQueueSize(100).subscribe();
        produce(producer().enableBatching(false).create(), 0, 5);
        assertEquals(5, receive(high, 5).size());
        nothingMore(low);
    }

    @Test
    void activeConsumerChanges() throws Exception {
        var events = new ConcurrentLinkedQueue<String>();
        var listener = new ConsumerEventListener() {
            @Override
            public void becameActive(Consumer<?> consumer, int partition) {
                events.add(consumer.getConsumerName() + "+");
            }

            @Override
            public void becameInactive(Consumer<?> consumer, int partition) {
                events.add(consumer.getConsumerName() + "-");
            }
        };
        var a = consumer(SubscriptionType.Failover).consumerName("a").priorityLevel(1).consumerEventListener(listener).subscribe();
        until("a is active", () -> events.contains("a+"));
        var b = consumer(SubscriptionType.Failover).consumerName("b").priorityLevel(0).consumerEventListener(listener).subscribe();
        until("b takes over by its priority", () -> events.contains("b+") && events.contains("a-"));
        b.close();
        until("a is active again", () -> events.stream().filter("a+"::equals).count() == 2);
        produce(producer().create(), 0, 10);
        assertEquals(series(0, 10), texts(receiveAndAck(a, 10)));
    }

    @Test
    void keySharedKeepsOrder() throws Exception {
        var consumers = new ArrayList<Consumer<byte[]>>();
        for (int i = 0; i < 3; i++) {
            consumers.add(consumer(SubscriptionType.Key_Shared).subscribe());
        }
        produce(producer().enableBatching(false).create(), 0, 300, i -> "key-" + i % 30);
        var owner = new HashMap<String, Integer>();
        var numbers = new HashMap<String, List<Integer>>();
        for (int i = 0; i < 3; i++) {
            for (var m : receiveAll(consumers.get(i), 1000)) {
                owner.putIfAbsent(m.getKey(), i);
                assertEquals(i, owner.get(m.getKey()), "two consumers got key " + m.getKey());
                numbers.computeIfAbsent(m.getKey(), k -> new ArrayList<>()).add(numberOf(m));
            }
        }
        assertEquals(300, numbers.values().stream().mapToInt(List::size).sum());
        assertRising(numbers);
    }

    @Test
    void stickyRanges() throws Exception {
        var low = consumer(SubscriptionType.Key_Shared).keySharedPolicy(KeySharedPolicy.stickyHashRange().ranges(Range.of(0, 32767))).subscribe();
        var high = consumer(SubscriptionType.Key_Shared).keySharedPolicy(KeySharedPolicy.stickyHashRange().ranges(Range.of(32768, 65535))).subscribe();
        assertThrows(PulsarClientException.class, () -> consumer(SubscriptionType.Key_Shared)
            .keySharedPolicy(KeySharedPolicy.stickyHashRange().ranges(Range.of(10, 20))).subscribe());
        produce(producer().enableBatching(false).create(), 0, 200, i -> "key-" + i);
        var first = receiveAll(low, 1000);
        var second = receiveAll(high, 1000);
        assertEquals(200, first.size() + second.size());
        assertFalse(first.isEmpty() || second.isEmpty());
    }

    @Test
    void negativeAcknowledgement() throws Exception {
        var consumer = consumer(SubscriptionType.Shared).negativeAckRedeliveryDelay(100, TimeUnit.MILLISECONDS).subscribe();
        produce(producer().enableBatching(false).create(), 0, 10);
        for (int count = 0; count < 3; count++) {
            var messages = receive(consumer, 10);
            assertEquals(new HashSet<>(series(0, 10)), new HashSet<>(texts(messages)));
            for (var m : messages) {
                assertEquals(count, m.getRedeliveryCount());
                consumer.negativeAcknowledge(m);
            }
        }
    }

    /** By epochs: what has that of an earlier redelivery is dropped by the client. */
    @ParameterizedTest
    @EnumSource(value = SubscriptionType.class, names = {"Exclusive", "Failover"})
    void redeliveryOfAllKeepsOrder(SubscriptionType type) throws Exception {
        var consumer = consumer(type).subscribe();
        produce(producer().enableBatching(false).create(), 0, 100);
        for (int begin = 0; begin < 30; begin += 10) {
            int queued = 100 - begin - 30;
            var messages = receive(consumer, 30);
            assertEquals(series(begin, begin + 30), texts(messages));
            consumer.acknowledgeCumulative(messages.get(9));
            // A client that asks for all while it takes a message in may keep that one.
            until("all have come", () -> consumer.getStats().getMsgNumInReceiverQueue() == queued);
            consumer.redeliverUnacknowledgedMessages();
        }
        assertEquals(series(30, 100), texts(receiveAndAck(consumer, 70)));
        nothingMore(consumer);
    }

    @Test
    void acknowledgementTimeout() throws Exception {
        var consumer = consumer(SubscriptionType.Shared).ackTimeout(1, TimeUnit.SECONDS).ackTimeoutTickTime(200, TimeUnit.MILLISECONDS).subscribe();
        produce(producer().create(), 0, 5);
        receive(consumer, 5);
        assertEquals(new HashSet<>(series(0, 5)), new HashSet<>(texts(receiveAndAck(consumer, 5))));
    }

    @Test
    void deadLetters() throws Exception {
        var policy = DeadLetterPolicy.builder().maxRedeliverCount(2).build();
        var consumer = consumer(SubscriptionType.Shared).deadLetterPolicy(policy).negativeAckRedeliveryDelay(50, TimeUnit.MILLISECONDS).subscribe();
        var letters = client.newConsumer().topic(topic + "-s-DLQ").subscriptionName("r").subscribe();
        produce(producer().create(), 0, 1);
        for (int i = 0; i < 3; i++) {
            consumer.negativeAcknowledge(receive(consumer, 1).get(0));
        }
        var letter = receive(letters, 1).get(0);
        assertEquals("m0", text(letter));
        nothingMore(consumer);
        // They are bytes, without a schema that would keep others out.
        assertNull(letter.getSchemaVersion());
        assertEquals(List.of(), admin.schemas().getAllSchemas(topic + "-s-DLQ"));
    }

    @Test
    void reconsumeLater() throws Exception {
        var consumer = consumer(SubscriptionType.Shared).enableRetry(true)
            .deadLetterPolicy(DeadLetterPolicy.builder().maxRedeliverCount(3).build()).subscribe();
        produce(producer().create(), 0, 1);
        consumer.reconsumeLater(receive(consumer, 1).get(0), 500, TimeUnit.MILLISECONDS);
        var again = receive(consumer, 1).get(0);
        assertEquals("m0", text(again));
        assertNotEquals(topic, again.getTopicName());
        assertEquals("1", again.getProperty("RECONSUMETIMES"));
    }

    @Test
    void delayedDelivery() throws Exception {
        var consumer = consumer(SubscriptionType.Shared).subscribe();
        var producer = producer().create();
        long begin = System.currentTimeMillis();
        producer.newMessage().value("late".getBytes()).deliverAfter(2, TimeUnit.SECONDS).send();
        producer.send("now".getBytes());
        assertEquals(List.of("now", "late"), texts(receiveAndAck(consumer, 2)));
        long took = System.currentTimeMillis() - begin;
        assertTrue(took >= 1500 && took < 8000, "delivered after " + took + " ms");
    }

    @Test
    void batchReceive() throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive)
            .batchReceivePolicy(BatchReceivePolicy.builder().maxNumMessages(10).timeout(2, TimeUnit.SECONDS).build()).subscribe();
        produce(producer().create(), 0, 35);
        var got = new ArrayList<String>();
        while (got.size() < 35) {
            var batch = consumer.batchReceive();
            assertTrue(batch.size() <= 10);
            batch.forEach(m -> got.add(text(m)));
            consumer.acknowledge(batch);
        }
        assertEquals(series(0, 35), got);
    }

    @Test
    void seek() throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive).startMessageIdInclusive().subscribe();
        var producer = producer().batchingMaxMessages(4).create();
        var ids = produce(producer, 0, 20);
        receiveAndAck(consumer, 20);
        consumer.seek(ids.get(13));
        assertEquals(series(13, 20), texts(receive(consumer, 7)));
        consumer.seek(MessageId.earliest);
        assertEquals(series(0, 20), texts(receiveAndAck(consumer, 20)));
        Thread.sleep(50);
        long middle = System.currentTimeMillis();
        Thread.sleep(50);
        produce(producer, 20, 5);
        consumer.seek(middle);
        assertEquals(series(20, 25), texts(receive(consumer, 5)));
        consumer.seek(MessageId.latest);
        nothingMore(consumer);
        consumer.seek(-1);
        assertEquals(series(0, 25), texts(receive(consumer, 25)));
    }

    @Test
    void lastMessageIds() throws Exception {
        var consumer = consumer(SubscriptionType.Exclusive).subscribe();
        var ids = produce(producer().batchingMaxMessages(4).create(), 0, 10);
        assertEquals(0, consumer.getLastMessageIds().get(0).compareTo(ids.get(9)));
    }

    @Test
    void endOfATerminatedTopic() throws Exception {
        var ended = new java.util.concurrent.CountDownLatch(1);
        var consumer = consumer(SubscriptionType.Exclusive).messageListener(new org.apache.pulsar.client.api.MessageListener<byte[]>() {
            @Override
            public void received(Consumer<byte[]> consumer, org.apache.pulsar.client.api.Message<byte[]> message) {
                consumer.acknowledgeAsync(message);
            }

            @Override
            public void reachedEndOfTopic(Consumer<byte[]> consumer) {
                ended.countDown();
            }
        }).subscribe();
        var producer = producer().create();
        var ids = produce(producer, 0, 5);
        var last = (org.apache.pulsar.client.api.MessageIdAdv) admin.topics().terminateTopicAsync(topic).get(WAIT_S, TimeUnit.SECONDS);
        assertEquals(((org.apache.pulsar.client.api.MessageIdAdv) ids.get(4)).getEntryId(), last.getEntryId());
        assertTrue(ended.await(WAIT_S, TimeUnit.SECONDS));
        assertTrue(consumer.hasReachedEndOfTopic());
        assertThrows(PulsarClientException.class, () -> producer.send("late".getBytes()));
        assertThrows(PulsarClientException.TopicTerminatedException.class, () -> producer().create());
    }

    @Test
    void unsubscribe() throws Exception {
        var first = consumer(SubscriptionType.Shared).subscribe();
        var second = consumer(SubscriptionType.Shared).subscribe();
        assertThrows(PulsarClientException.class, first::unsubscribe);
        second.close();
        first.unsubscribe();
        assertEquals(List.of(), admin.topics().getSubscriptions(topic));
    }

    @Test
    void forcedUnsubscribe() throws Exception {
        var namespace = newNamespace();
        var off = AutoSubscriptionCreationOverride.builder().allowAutoSubscriptionCreation(false).build();
        admin.namespaces().setAutoSubscriptionCreation(namespace, off);
        topic = "persistent://" + namespace + "/t";
        admin.topics().createNonPartitionedTopic(topic);
        admin.topics().createSubscription(topic, "s", MessageId.earliest);
        var first = consumer(SubscriptionType.Shared).subscribe();
        var second = consumer(SubscriptionType.Shared).subscribe();
        first.unsubscribe(true);
        assertEquals(List.of(), admin.topics().getSubscriptions(topic));
        until("the other consumer is sent away", () -> !second.isConnected());
        second.close();
    }

    @Test
    void consumerStatsInTopicStats() throws Exception {
        var consumer = consumer(SubscriptionType.Shared).consumerName("c").receiverQueueSize(100).subscribe();
        produce(producer().enableBatching(false).create(), 0, 10);
        receive(consumer, 10);
        until("stats", () -> admin.topics().getStats(topic).getSubscriptions().get("s").getConsumers().get(0).getUnackedMessages() == 10);
        var stats = admin.topics().getStats(topic).getSubscriptions().get("s").getConsumers().get(0);
        assertEquals("c", stats.getConsumerName());
        assertEquals(10, stats.getMsgOutCounter());
    }

    @Test
    void pausedListenerReceivesNothing() throws Exception {
        var got = new ConcurrentLinkedQueue<String>();
        var consumer = consumer(SubscriptionType.Exclusive).receiverQueueSize(5).messageListener((c, m) -> {
            got.add(text(m));
            c.acknowledgeAsync(m);
        }).startPaused(true).subscribe();
        produce(producer().create(), 0, 20);
        Thread.sleep(300);
        assertTrue(got.isEmpty());
        consumer.resume();
        until("all messages", () -> got.size() == 20);
        assertEquals(series(0, 20), List.copyOf(got));
    }

    @Test
    void initialPositions() throws Exception {
        produce(producer().create(), 0, 10);
        var earliest = client.newConsumer().topic(topic).subscriptionName("e").subscriptionInitialPosition(SubscriptionInitialPosition.Earliest).subscribe();
        var latest = client.newConsumer().topic(topic).subscriptionName("l").subscribe();
        produce(producer().create(), 10, 2);
        assertEquals(series(0, 12), texts(receive(earliest, 12)));
        assertEquals(series(10, 12), texts(receive(latest, 2)));
    }
}

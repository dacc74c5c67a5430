package geminga.clients;

import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.IntFunction;
import java.util.stream.IntStream;
import org.apache.pulsar.client.admin.PulsarAdmin;
import org.apache.pulsar.client.api.ClientBuilder;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.ConsumerBuilder;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.ProducerBuilder;
import org.apache.pulsar.client.api.PulsarClient;
import org.apache.pulsar.client.api.SubscriptionType;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.TestInfo;

/** What all tests share: a client, an admin client and a topic of its own per test, on the server that PULSAR_URL and ADMIN_URL name. */
abstract class Server {
    static final int WAIT_S = 15;
    static final String PULSAR_URL = System.getenv().getOrDefault("PULSAR_URL", "pulsar://127.0.0.1:6650");
    static final String ADMIN_URL = System.getenv().getOrDefault("ADMIN_URL", "http://127.0.0.1:8080");

    /** Whom to trust when the URLs are with TLS; empty otherwise. */
    static final String TLS_CA = System.getenv().getOrDefault("TLS_CA", "");

    /** One client for all tests, open until the JVM ends: to make one costs more than most tests. */
    static PulsarClient client;
    static PulsarAdmin admin;
    String topic;

    @BeforeAll
    static void connect() throws Exception {
        if (client == null) {
            client = clientBuilder().operationTimeout(10, TimeUnit.SECONDS).build();
            admin = PulsarAdmin.builder().serviceHttpUrl(ADMIN_URL).tlsTrustCertsFilePath(TLS_CA).build();
        }
    }

    @BeforeEach
    void nameTopic(TestInfo info) {
        topic = "persistent://public/default/" + info.getTestMethod().orElseThrow().getName() + "-" + UUID.randomUUID().toString().substring(0, 8);
    }

    /** A namespace of its own; it stays, as it costs nothing. */
    String newNamespace() throws Exception {
        var name = "public/java-" + UUID.randomUUID().toString().substring(0, 8);
        admin.namespaces().createNamespace(name);
        return name;
    }

    static ClientBuilder clientBuilder() {
        return PulsarClient.builder().serviceUrl(PULSAR_URL).tlsTrustCertsFilePath(TLS_CA);
    }

    ProducerBuilder<byte[]> producer() {
        return client.newProducer().topic(topic);
    }

    ConsumerBuilder<byte[]> consumer(SubscriptionType type) {
        return client.newConsumer().topic(topic).subscriptionName("s").subscriptionType(type).acknowledgmentGroupTime(0, TimeUnit.MILLISECONDS);
    }

    static List<MessageId> produce(Producer<byte[]> producer, int first, int count) throws Exception {
        return produce(producer, first, count, null);
    }

    /** Sends m[first] to m[first + count - 1], with keys when given, and returns their ids. */
    static List<MessageId> produce(Producer<byte[]> producer, int first, int count, IntFunction<String> key) throws Exception {
        var sent = new ArrayList<CompletableFuture<MessageId>>();
        for (int i = first; i < first + count; i++) {
            var message = producer.newMessage().value(("m" + i).getBytes(StandardCharsets.UTF_8));
            if (key != null) {
                message.key(key.apply(i));
            }
            sent.add(message.sendAsync());
        }
        producer.flush();
        var ids = new ArrayList<MessageId>();
        for (var one : sent) {
            ids.add(one.get(WAIT_S, TimeUnit.SECONDS));
        }
        return ids;
    }

    static List<Message<byte[]>> receive(Consumer<byte[]> consumer, int count) throws Exception {
        var messages = new ArrayList<Message<byte[]>>();
        for (int i = 0; i < count; i++) {
            var message = consumer.receive(WAIT_S, TimeUnit.SECONDS);
            assertTrue(message != null, "only " + i + " of " + count + " messages came");
            messages.add(message);
        }
        return messages;
    }

    static List<Message<byte[]>> receiveAndAck(Consumer<byte[]> consumer, int count) throws Exception {
        var messages = receive(consumer, count);
        for (var message : messages) {
            consumer.acknowledge(message);
        }
        return messages;
    }

    /** All that comes until it has been quiet for a while, acknowledged. */
    static List<Message<byte[]>> receiveAll(Consumer<byte[]> consumer, int quietMs) throws Exception {
        var messages = new ArrayList<Message<byte[]>>();
        for (Message<byte[]> m; (m = consumer.receive(quietMs, TimeUnit.MILLISECONDS)) != null;) {
            consumer.acknowledge(m);
            messages.add(m);
        }
        return messages;
    }

    static void nothingMore(Consumer<byte[]> consumer) throws Exception {
        var message = consumer.receive(500, TimeUnit.MILLISECONDS);
        assertNull(message, () -> "unexpected: " + text(message) + " " + message.getMessageId());
    }

    static String text(Message<byte[]> message) {
        return new String(message.getData(), StandardCharsets.UTF_8);
    }

    static List<String> texts(List<Message<byte[]>> messages) {
        return messages.stream().map(Server::text).toList();
    }

    /** m[first] to m[end - 1]. */
    static List<String> series(int first, int end) {
        return IntStream.range(first, end).mapToObj(i -> "m" + i).toList();
    }

    static int numberOf(Message<byte[]> message) {
        return Integer.parseInt(text(message).substring(1));
    }

    static void until(String what, Callable<Boolean> condition) throws Exception {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(WAIT_S);
        while (!condition.call()) {
            assertTrue(System.nanoTime() < end, "not in time: " + what);
            Thread.sleep(20);
        }
    }

    /** Checks that the numbers rise within each group. */
    static void assertRising(Map<String, List<Integer>> numbers) {
        numbers.forEach((group, list) -> assertTrue(list.equals(list.stream().sorted().toList()), group + " is out of order: " + list));
    }
}

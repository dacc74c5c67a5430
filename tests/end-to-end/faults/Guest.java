import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.BatcherBuilder;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageIdAdv;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClient;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.client.api.SubscriptionType;

/** A client in another language: as guest.py, which says what the arguments are and what is printed. */
public class Guest {
    /** What the client logs goes to stderr instead. */
    private static final PrintStream OUTPUT = System.out;

    private static final long LIFE_MS = 10_000;

    private final PulsarClient client;
    private final String topic;
    private final String name;
    private final String subscription;
    private final int pauseMs;
    private final CountDownLatch producing = new CountDownLatch(1);
    private final CountDownLatch consuming = new CountDownLatch(1);

    private Guest(String[] arguments) throws PulsarClientException {
        client = PulsarClient.builder().serviceUrl(arguments[0]).operationTimeout(10, TimeUnit.SECONDS)
            .connectionTimeout(3, TimeUnit.SECONDS).keepAliveInterval(3, TimeUnit.SECONDS)
            .maxBackoffInterval(1, TimeUnit.SECONDS).build();
        topic = arguments[1];
        name = arguments[2];
        subscription = arguments[3];
        pauseMs = (int) Double.parseDouble(arguments[4]);
    }

    private interface Action<T> {
        T run() throws PulsarClientException;
    }

    private static <T> T untilItWorks(Action<T> action) throws InterruptedException {
        while (true) {
            try {
                return action.run();
            } catch (PulsarClientException e) {
                Thread.sleep(300);
            }
        }
    }

    private static synchronized void say(String line) {
        OUTPUT.println(line);
    }

    private static String position(MessageIdAdv id) {
        return id.getLedgerId() + " " + id.getEntryId() + " " + id.getBatchIndex();
    }

    private void produce() throws InterruptedException {
        Producer<byte[]> producer = untilItWorks(() -> client.newProducer().topic(topic).producerName(name)
            .sendTimeout(0, TimeUnit.SECONDS).blockIfQueueFull(true).maxPendingMessages(300).enableBatching(true)
            .batcherBuilder(BatcherBuilder.KEY_BASED).batchingMaxPublishDelay(3, TimeUnit.MILLISECONDS).create());
        Random random = new Random();
        int number = 0;
        while (producing.getCount() > 0) {
            for (int burst = 1 + random.nextInt(19); burst > 0; burst--) {
                String key = "k" + (number * 7919L % 1009 % 16);
                String text = name + "|" + key + "|" + number + "|" + "x".repeat(20 + random.nextInt(280));
                int sent = number++;
                producer.newMessage().key(key).value(text.getBytes(StandardCharsets.UTF_8)).sendAsync()
                    .thenAccept(id -> say("published " + sent + " " + position((MessageIdAdv) id)));
            }
            Thread.sleep((long) (random.nextDouble() * pauseMs));
        }
        untilItWorks(() -> {
            producer.flush();
            return null;
        });
        say("flushed");
    }

    /** With one consumer after the other: what has a receipt does not come to the next one. */
    private void consume() throws InterruptedException {
        boolean first = true;
        while (consuming.getCount() > 0) {
            say("subscribing");
            // Without acknowledgement of batch indexes, this client reports success for parts of batches of which it sends nothing; if it
            // sends them in groups, it leaves out messages (README.md).
            Consumer<byte[]> consumer = untilItWorks(() -> client.newConsumer().topic(topic).subscriptionName(subscription)
                .subscriptionType(SubscriptionType.Failover).subscriptionInitialPosition(SubscriptionInitialPosition.Earliest)
                .isAckReceiptEnabled(true).enableBatchIndexAcknowledgment(true)
                .acknowledgmentGroupTime(0, TimeUnit.MILLISECONDS).subscribe());
            if (first) {
                say("subscribed");
            }
            first = false;
            consumeFor(consumer, LIFE_MS);
            consumer.closeAsync().handle((done, error) -> null).join();
        }
    }

    private void consumeFor(Consumer<byte[]> consumer, long lifeMs) throws InterruptedException {
        long end = System.currentTimeMillis() + lifeMs;
        while (consuming.getCount() > 0 && System.currentTimeMillis() < end) {
            try {
                Message<byte[]> message = consumer.receive(200, TimeUnit.MILLISECONDS);
                if (message == null) {
                    continue;
                }
                String[] parts = new String(message.getData(), StandardCharsets.UTF_8).split("\\|", 4);
                String at = position((MessageIdAdv) message.getMessageId());
                say("received " + parts[0] + " " + parts[2] + " " + parts[1] + " " + at);
                // Not waited for: an acknowledgement that fails brings the message again.
                consumer.acknowledgeAsync(message).thenRun(() -> say("acknowledged " + at));
            } catch (PulsarClientException e) {
                Thread.sleep(100);
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        System.setOut(System.err);
        Guest guest = new Guest(arguments);
        Thread producer = new Thread(() -> orEnd(guest::produce), "produce");
        Thread consumer = new Thread(() -> orEnd(guest::consume), "consume");
        producer.setDaemon(true);
        consumer.setDaemon(true);
        producer.start();
        consumer.start();
        readLine();
        guest.producing.countDown();
        readLine();
        guest.consuming.countDown();
        producer.join(10_000);
        consumer.join(10_000);
        OUTPUT.flush();
        System.exit(0);
    }

    private interface Work {
        void run() throws InterruptedException;
    }

    private static void orEnd(Work work) {
        try {
            work.run();
        } catch (InterruptedException | RuntimeException e) {
            e.printStackTrace();
            System.exit(1);
        }
    }

    private static void readLine() throws IOException {
        int read;
        do {
            read = System.in.read();
        } while (read != '\n' && read != -1);
    }
}

import io.netty.buffer.ByteBuf;
import io.netty.buffer.PooledByteBufAllocator;
import io.netty.buffer.Unpooled;
import io.netty.channel.epoll.EpollEventLoopGroup;
import io.netty.util.ReferenceCountUtil;
import io.netty.util.ReferenceCounted;
import io.netty.util.concurrent.DefaultThreadFactory;
import java.net.UnknownHostException;
import java.util.EnumSet;
import java.util.Locale;
import java.util.Random;
import java.util.concurrent.Executors;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.HdrHistogram.ConcurrentHistogram;
import org.apache.bookkeeper.client.api.WriteFlag;
import org.apache.bookkeeper.common.util.OrderedExecutor;
import org.apache.bookkeeper.conf.ClientConfiguration;
import org.apache.bookkeeper.net.BookieId;
import org.apache.bookkeeper.net.BookieSocketAddress;
import org.apache.bookkeeper.proto.BookieClientImpl;
import org.apache.bookkeeper.proto.BookieProtocol;
import org.apache.bookkeeper.proto.DataFormats.LedgerMetadataFormat.DigestType;
import org.apache.bookkeeper.proto.checksum.DigestManager;
import org.apache.bookkeeper.stats.NullStatsLogger;

/**
 * Adds entries to one node through BookKeeper's own wire client, a window of them under way, and prints a line of JSON.
 * Arguments: HOST:PORT, v2 or v3, bytes of payload, window, seconds; the first two of these warm up and do not count.
 */
public final class Load {
    private static final double WARM_UP_S = 2;

    public static void main(String[] args) throws Exception {
        BookieId node = BookieId.parse(args[0]);
        boolean v2 = args[1].equals("v2");
        int size = Integer.parseInt(args[2]);
        int window = Integer.parseInt(args[3]);
        double seconds = Double.parseDouble(args[4]);
        OrderedExecutor workers = OrderedExecutor.newBuilder().name("load").numThreads(1).build();
        ClientConfiguration conf = new ClientConfiguration();
        conf.setUseV2WireProtocol(v2).setNumChannelsPerBookie(1).setNettyMaxFrameSizeBytes(6 << 20).setAddEntryTimeout(60);
        BookieClientImpl client = new BookieClientImpl(conf, new EpollEventLoopGroup(1, new DefaultThreadFactory("io")), PooledByteBufAllocator.DEFAULT,
                workers, Executors.newSingleThreadScheduledExecutor(new DefaultThreadFactory("timer")), NullStatsLogger.INSTANCE, id -> {
            try {
                return new BookieSocketAddress(id.toString());
            } catch (UnknownHostException e) {
                throw new IllegalStateException(e);
            }
        });
        byte[] key = DigestManager.generateMasterKey("load".getBytes());
        long ledger = System.currentTimeMillis();
        DigestManager digest = DigestManager.instantiate(ledger, "load".getBytes(), DigestType.CRC32C, PooledByteBufAllocator.DEFAULT, v2);
        byte[] bytes = new byte[size];
        new Random(1).nextBytes(bytes);
        ByteBuf payload = Unpooled.unreleasableBuffer(Unpooled.directBuffer(size).writeBytes(bytes));
        ConcurrentHistogram latency = new ConcurrentHistogram(TimeUnit.MINUTES.toNanos(2), 3);
        Semaphore room = new Semaphore(window);
        AtomicLong failed = new AtomicLong();
        long begin = System.nanoTime(), warm = begin + (long) (WARM_UP_S * 1e9), end = begin + (long) (seconds * 1e9), entry = 0;
        for (;; entry++) {
            room.acquire();
            long since = System.nanoTime();
            if (since > end) {
                room.release();
                break;
            }
            ReferenceCounted packet = digest.computeDigestAndPackageForSending(entry, entry - 1, (entry + 1) * size, payload.retainedDuplicate(), key, BookieProtocol.FLAG_NONE);
            client.addEntry(node, ledger, key, entry, packet, (rc, l, e, address, ctx) -> {
                if (rc != 0) {
                    failed.incrementAndGet();
                } else if (since >= warm) {
                    latency.recordValue(Math.min(System.nanoTime() - since, TimeUnit.MINUTES.toNanos(2)));
                }
                room.release();
            }, null, BookieProtocol.FLAG_NONE, false, EnumSet.noneOf(WriteFlag.class));
            ReferenceCountUtil.release(packet);
        }
        room.tryAcquire(window, 60, TimeUnit.SECONDS);
        double took = seconds - WARM_UP_S;
        System.out.printf(Locale.ROOT, "{\"adds\":%d,\"failed\":%d,\"adds_s\":%.0f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f}%n", entry, failed.get(),
                latency.getTotalCount() / took, latency.getValueAtPercentile(50) / 1e6, latency.getValueAtPercentile(99) / 1e6, latency.getValueAtPercentile(99.9) / 1e6);
        System.exit(failed.get() == 0 ? 0 : 1);
    }
}

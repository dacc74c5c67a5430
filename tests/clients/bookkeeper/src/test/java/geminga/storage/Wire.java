package geminga.storage;

import io.netty.buffer.ByteBuf;
import io.netty.buffer.ByteBufUtil;
import io.netty.buffer.PooledByteBufAllocator;
import io.netty.buffer.Unpooled;
import io.netty.channel.EventLoopGroup;
import io.netty.channel.nio.NioEventLoopGroup;
import io.netty.util.ReferenceCountUtil;
import io.netty.util.ReferenceCounted;
import io.netty.util.concurrent.DefaultThreadFactory;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.bookkeeper.client.BKException;
import org.apache.bookkeeper.client.BookieInfoReader.BookieInfo;
import org.apache.bookkeeper.client.api.WriteFlag;
import org.apache.bookkeeper.common.util.OrderedExecutor;
import org.apache.bookkeeper.conf.ClientConfiguration;
import org.apache.bookkeeper.net.BookieId;
import org.apache.bookkeeper.net.BookieSocketAddress;
import org.apache.bookkeeper.proto.BookieClientImpl;
import org.apache.bookkeeper.proto.BookieProtocol;
import org.apache.bookkeeper.proto.BookkeeperInternalCallbacks.ReadEntryCallbackCtx;
import org.apache.bookkeeper.proto.BookkeeperProtocol;
import org.apache.bookkeeper.proto.DataFormats.LedgerMetadataFormat.DigestType;
import org.apache.bookkeeper.proto.checksum.DigestManager;
import org.apache.bookkeeper.stats.NullStatsLogger;
import org.apache.bookkeeper.util.AvailabilityOfEntriesOfLedger;
import org.apache.bookkeeper.util.ByteBufList;

/** BookKeeper's own wire client towards one node, each operation on its own, with the client's result codes. */
final class Wire implements AutoCloseable {
    static final byte[] PASSWORD = "password".getBytes();
    private static final AtomicLong NEXT_LEDGER = new AtomicLong(1000);

    final byte[] key;
    private final BookieId node;
    private final boolean v2;
    private final EventLoopGroup io = new NioEventLoopGroup(1, new DefaultThreadFactory("io"));
    private final OrderedExecutor workers = OrderedExecutor.newBuilder().name("wire").numThreads(1).build();
    private final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor(new DefaultThreadFactory("timer"));
    private final BookieClientImpl client;

    Wire(String address, boolean v2) throws Exception {
        this.v2 = v2;
        node = BookieId.parse(address);
        key = DigestManager.generateMasterKey(PASSWORD);
        ClientConfiguration conf = new ClientConfiguration().setUseV2WireProtocol(v2).setNettyMaxFrameSizeBytes(5 * 1024 * 1024 + 64 * 1024).setAddEntryTimeout(20).setReadEntryTimeout(20);
        client = new BookieClientImpl(conf, io, PooledByteBufAllocator.DEFAULT, workers, timer, NullStatsLogger.INSTANCE, id -> {
            try {
                return new BookieSocketAddress(id.toString());
            } catch (java.net.UnknownHostException e) {
                throw new IllegalStateException(e);
            }
        });
    }

    static long newLedger() {
        return NEXT_LEDGER.getAndIncrement();
    }

    /** What came back of an operation. */
    record Result(int rc, byte[] payload, long lac) {}

    private DigestManager digest(long ledger) throws Exception {
        return DigestManager.instantiate(ledger, PASSWORD, DigestType.CRC32C, PooledByteBufAllocator.DEFAULT, v2);
    }

    static byte[] payload(long ledger, long entry) {
        return ("payload of " + ledger + ":" + entry).getBytes();
    }

    CompletableFuture<Integer> addAsync(long ledger, long entry, byte[] key, int flags, byte[] payload) throws Exception {
        CompletableFuture<Integer> done = new CompletableFuture<>();
        ReferenceCounted packet = digest(ledger).computeDigestAndPackageForSending(entry, entry - 1, (entry + 1) * 10, Unpooled.wrappedBuffer(payload), key, flags);
        client.addEntry(node, ledger, key, entry, packet, (rc, l, e, address, ctx) -> done.complete(rc), null, flags, false, EnumSet.noneOf(WriteFlag.class));
        ReferenceCountUtil.release(packet);
        return done;
    }

    int add(long ledger, long entry) throws Exception {
        return get(addAsync(ledger, entry, key, BookieProtocol.FLAG_NONE, payload(ledger, entry)));
    }

    int recoveryAdd(long ledger, long entry) throws Exception {
        return get(addAsync(ledger, entry, key, BookieProtocol.FLAG_RECOVERY_ADD, payload(ledger, entry)));
    }

    Result read(long ledger, long entry) throws Exception {
        return read(ledger, entry, BookieProtocol.FLAG_NONE, null);
    }

    Result fence(long ledger) throws Exception {
        return read(ledger, BookieProtocol.LAST_ADD_CONFIRMED, BookieProtocol.FLAG_DO_FENCING, key);
    }

    /** The payload is checked with its digest; of entry -1 with that of the entry that came. */
    Result read(long ledger, long entry, int flags, byte[] key) throws Exception {
        CompletableFuture<Result> done = new CompletableFuture<>();
        client.readEntry(node, ledger, entry, (rc, l, e, buffer, ctx) -> done.complete(open(rc, ledger, entry, buffer)), null, flags, key);
        return get(done);
    }

    private Result open(int rc, long ledger, long entry, ByteBuf buffer) {
        if (rc != BKException.Code.OK || buffer == null || !buffer.isReadable()) {
            return new Result(rc, null, -1);
        }
        try {
            long of = entry == BookieProtocol.LAST_ADD_CONFIRMED ? buffer.getLong(buffer.readerIndex() + 8) : entry;
            long lac = buffer.getLong(buffer.readerIndex() + 16);
            return new Result(rc, ByteBufUtil.getBytes(digest(ledger).verifyDigestAndReturnData(of, buffer)), lac);
        } catch (Exception e) {
            return new Result(BKException.Code.DigestMatchException, null, -1);
        }
    }

    /** The result's lac is the one that came beside the entry. */
    CompletableFuture<Result> readAfter(long ledger, long previousLac, long timeoutMs) {
        CompletableFuture<Result> done = new CompletableFuture<>();
        AtomicLong lac = new AtomicLong(-1);
        ReadEntryCallbackCtx context = new ReadEntryCallbackCtx() {
            @Override
            public void setLastAddConfirmed(long value) {
                lac.set(value);
            }

            @Override
            public long getLastAddConfirmed() {
                return lac.get();
            }
        };
        client.readEntryWaitForLACUpdate(node, ledger, BookieProtocol.LAST_ADD_CONFIRMED, previousLac, timeoutMs, true, (rc, l, e, buffer, ctx) -> {
            Result opened = open(rc, ledger, e, buffer);
            done.complete(new Result(opened.rc(), opened.payload(), lac.get()));
        }, context);
        return done;
    }

    int writeLac(long ledger, long lac) throws Exception {
        CompletableFuture<Integer> done = new CompletableFuture<>();
        ByteBufList packet = digest(ledger).computeDigestAndPackageForSendingLac(lac);
        client.writeLac(node, ledger, key, lac, packet, (rc, l, address, ctx) -> done.complete(rc), null);
        packet.release();
        return get(done);
    }

    /** The explicit last add confirmed, -1 without one; its payload is that of the last entry. */
    Result readLac(long ledger) throws Exception {
        CompletableFuture<Result> done = new CompletableFuture<>();
        client.readLac(node, ledger, (rc, l, lac, last, ctx) -> {
            try {
                long explicit = rc == 0 && lac != null && lac.readableBytes() > 0 ? digest(ledger).verifyDigestAndReturnLac(lac) : -1;
                byte[] payload = rc == 0 && last != null && last.readableBytes() > 0
                        ? ByteBufUtil.getBytes(digest(ledger).verifyDigestAndReturnData(last.getLong(last.readerIndex() + 8), last)) : null;
                done.complete(new Result(rc, payload, explicit));
            } catch (Exception e) {
                done.completeExceptionally(e);
            }
        }, null);
        return get(done);
    }

    int force(long ledger) throws Exception {
        CompletableFuture<Integer> done = new CompletableFuture<>();
        client.forceLedger(node, ledger, (rc, l, address, ctx) -> done.complete(rc), null);
        return get(done);
    }

    AvailabilityOfEntriesOfLedger entries(long ledger) throws Exception {
        return get(client.getListOfEntriesOfLedger(node, ledger));
    }

    BookieInfo info() throws Exception {
        CompletableFuture<BookieInfo> done = new CompletableFuture<>();
        long both = BookkeeperProtocol.GetBookieInfoRequest.Flags.TOTAL_DISK_CAPACITY_VALUE | BookkeeperProtocol.GetBookieInfoRequest.Flags.FREE_DISK_SPACE_VALUE;
        client.getBookieInfo(node, both, (rc, info, ctx) -> done.complete(rc == 0 ? info : null), null);
        return get(done);
    }

    List<byte[]> batch(long ledger, long first, int count, long bytes) throws Exception {
        CompletableFuture<List<byte[]>> done = new CompletableFuture<>();
        client.batchReadEntries(node, ledger, first, count, bytes, (rc, l, start, list, ctx) -> {
            List<byte[]> found = new ArrayList<>();
            for (int i = 0; rc == 0 && i < list.size(); i++) {
                found.add(open(0, ledger, start + i, list.getBuffer(i)).payload());
            }
            done.complete(rc == 0 ? found : null);
        }, null, BookieProtocol.FLAG_NONE);
        return get(done);
    }

    static <T> T get(CompletableFuture<T> future) throws Exception {
        return future.get(30, TimeUnit.SECONDS);
    }

    @Override
    public void close() throws Exception {
        // The client's I/O thread takes an operation off its list only after it has handed its answer to the worker, which may
        // have called back by then; closing in between makes the client trip over it.
        io.submit(() -> {}).get(30, TimeUnit.SECONDS);
        client.close();
        workers.shutdown();
        timer.shutdown();
        io.shutdownGracefully(0, 1, TimeUnit.SECONDS);
    }
}

package geminga.storage;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.bookkeeper.client.BKException;
import org.apache.bookkeeper.client.DefaultEnsemblePlacementPolicy;
import org.apache.bookkeeper.client.api.BookKeeper;
import org.apache.bookkeeper.client.api.DigestType;
import org.apache.bookkeeper.client.api.LedgerEntries;
import org.apache.bookkeeper.client.api.LedgerEntry;
import org.apache.bookkeeper.client.api.ReadHandle;
import org.apache.bookkeeper.client.api.WriteHandle;
import org.apache.bookkeeper.conf.ClientConfiguration;
import org.apache.bookkeeper.meta.MetadataDrivers;
import org.apache.bookkeeper.net.BookieId;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** BookKeeper's whole client on an ensemble of our nodes. */
class LedgerTest {
    private Nodes nodes;

    static {
        MetadataDrivers.registerClientDriver("memory", MemoryMetadata.class);
    }

    @BeforeEach
    void start() throws Exception {
        nodes = new Nodes(4);
        MemoryMetadata.NODES.clear();
        nodes.all.forEach(node -> MemoryMetadata.NODES.add(BookieId.parse(node.address)));
    }

    @AfterEach
    void stop() throws Exception {
        nodes.close();
    }

    private static BookKeeper client(boolean v2) throws Exception {
        ClientConfiguration conf = new ClientConfiguration();
        conf.setMetadataServiceUri(MemoryMetadata.URI);
        conf.setUseV2WireProtocol(v2).setNumIOThreads(1).setNumWorkerThreads(1).setEnsemblePlacementPolicy(DefaultEnsemblePlacementPolicy.class);
        conf.setBatchReadEnabled(v2);
        return BookKeeper.newBuilder(conf).build();
    }

    private static WriteHandle create(BookKeeper client, DigestType digest, int ensemble, int write, int ack) throws Exception {
        return client.newCreateLedgerOp().withEnsembleSize(ensemble).withWriteQuorumSize(write).withAckQuorumSize(ack)
                .withDigestType(digest).withPassword("secret".getBytes()).execute().get(20, TimeUnit.SECONDS);
    }

    private static ReadHandle open(BookKeeper client, long ledger, DigestType digest, boolean recovery) throws Exception {
        return client.newOpenLedgerOp().withLedgerId(ledger).withDigestType(digest).withPassword("secret".getBytes()).withRecovery(recovery)
                .execute().get(60, TimeUnit.SECONDS);
    }

    private static byte[] content(long entry) {
        return ("content " + entry).getBytes();
    }

    private static void append(WriteHandle writer, long from, long to) throws Exception {
        List<CompletableFuture<Long>> adds = new ArrayList<>();
        for (long entry = from; entry < to; entry++) {
            adds.add(writer.appendAsync(content(entry)));
        }
        for (long entry = from; entry < to; entry++) {
            assertEquals(entry, adds.get((int) (entry - from)).get(60, TimeUnit.SECONDS));
        }
    }

    private static void check(ReadHandle reader, long count) throws Exception {
        assertEquals(count - 1, reader.getLastAddConfirmed());
        try (LedgerEntries entries = reader.read(0, count - 1)) {
            long next = 0;
            for (LedgerEntry entry : entries) {
                assertEquals(next, entry.getEntryId());
                assertArrayEquals(content(next++), entry.getEntryBytes());
            }
            assertEquals(count, next);
        }
    }

    @ParameterizedTest
    @EnumSource(DigestType.class)
    void aLedgerIsWrittenClosedAndRead(DigestType digest) throws Exception {
        for (boolean v2 : new boolean[] {true, false}) {
            try (BookKeeper client = client(v2)) {
                WriteHandle writer = create(client, digest, 3, 2, 2);
                append(writer, 0, 500);
                writer.close();
                check(open(client, writer.getId(), digest, false), 500);
            }
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void recoveryFencesTheWriterAndFindsTheEnd(boolean v2) throws Exception {
        try (BookKeeper client = client(v2)) {
            WriteHandle writer = create(client, DigestType.CRC32C, 3, 3, 2);
            append(writer, 0, 300);
            check(open(client, writer.getId(), DigestType.CRC32C, true), 300);
            int refusal = refusal(writer);
            assertEquals(BKException.Code.LedgerFencedException, refusal);
        }
    }

    /**
     * Why a fenced writer's append is refused. An answer may recycle the client's own record of a request before the client is through with
     * sending it (apache/bookkeeper 4610 and its kind): it throws NullPointerException then, and has closed its writer as it does for a
     * fenced one.
     */
    private static int refusal(WriteHandle writer) throws Exception {
        boolean recycled = false;
        for (int attempt = 0; attempt < 5; attempt++) {
            try {
                writer.append(content(300));
                return BKException.Code.OK;
            } catch (NullPointerException of) {
                recycled = true;
            } catch (BKException refused) {
                boolean closed = recycled && refused.getCode() == BKException.Code.LedgerClosedException;
                return closed ? BKException.Code.LedgerFencedException : refused.getCode();
            }
        }
        throw new AssertionError("the client fails each time");
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void theWriterGoesOnWithoutANodeAndTheReaderFindsAllOfIt(boolean v2) throws Exception {
        try (BookKeeper client = client(v2)) {
            WriteHandle writer = create(client, DigestType.CRC32C, 3, 3, 2);
            append(writer, 0, 200);
            BookieId lost = writer.getLedgerMetadata().getEnsembleAt(0).get(0);
            MemoryMetadata.NODES.remove(lost);
            nodes.at(lost.toString()).kill();
            append(writer, 200, 400);
            assertTrue(writer.getLedgerMetadata().getAllEnsembles().size() > 1, "the ensemble was changed");
            check(open(client, writer.getId(), DigestType.CRC32C, true), 400);
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void aLedgerWhoseNodesWereKilledIsRecovered(boolean v2) throws Exception {
        long ledger;
        try (BookKeeper client = client(v2)) {
            WriteHandle writer = create(client, DigestType.CRC32C, 3, 3, 3);
            ledger = writer.getId();
            append(writer, 0, 300);
            for (Nodes.Node node : nodes.all) {
                node.restart();
            }
        }
        try (BookKeeper client = client(v2)) {
            check(open(client, ledger, DigestType.CRC32C, true), 300);
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void aTailingReaderFollows(boolean v2) throws Exception {
        try (BookKeeper client = client(v2)) {
            WriteHandle writer = create(client, DigestType.CRC32C, 3, 3, 2);
            append(writer, 0, 10);
            ReadHandle reader = open(client, writer.getId(), DigestType.CRC32C, false);
            append(writer, 10, 20);
            append(writer, 20, 21);   // it says that those before it are confirmed
            assertEquals(19, reader.readLastAddConfirmed());
            try (LedgerEntries entries = reader.readUnconfirmed(0, 20)) {
                assertArrayEquals(content(20), entries.getEntry(20).getEntryBytes());
            }
        }
    }

    @Test
    void batchesAreRead() throws Exception {
        try (BookKeeper client = client(true)) {
            WriteHandle writer = create(client, DigestType.CRC32C, 3, 3, 2);
            append(writer, 0, 100);
            writer.close();
            ReadHandle reader = open(client, writer.getId(), DigestType.CRC32C, false);
            try (LedgerEntries entries = reader.batchRead(5, 20, 1 << 20)) {
                int count = 0;
                for (LedgerEntry entry : entries) {
                    assertArrayEquals(content(5 + count++), entry.getEntryBytes());
                }
                assertEquals(20, count);
            }
        }
    }
}

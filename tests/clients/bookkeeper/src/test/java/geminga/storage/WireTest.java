package geminga.storage;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import org.apache.bookkeeper.client.BKException.Code;
import org.apache.bookkeeper.proto.BookieProtocol;
import org.apache.bookkeeper.proto.checksum.DigestManager;
import org.apache.bookkeeper.util.AvailabilityOfEntriesOfLedger;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Each operation of the protocol, by BookKeeper's own wire client, in both versions where both have it. */
class WireTest {
    private static Nodes nodes;

    @BeforeAll
    static void start() throws Exception {
        nodes = new Nodes(1);
    }

    @AfterAll
    static void stop() throws Exception {
        nodes.close();
    }

    private static Wire connect(boolean v2) throws Exception {
        return new Wire(nodes.all.get(0).address, v2);
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void entriesComeBackAsTheyWent(boolean v2) throws Exception {
        try (Wire wire = connect(v2)) {
            long ledger = Wire.newLedger();
            for (long entry = 0; entry < 50; entry++) {
                assertEquals(Code.OK, wire.add(ledger, entry));
            }
            for (long entry = 0; entry < 50; entry++) {
                assertArrayEquals(Wire.payload(ledger, entry), wire.read(ledger, entry).payload());
            }
            Wire.Result last = wire.read(ledger, BookieProtocol.LAST_ADD_CONFIRMED);
            assertArrayEquals(Wire.payload(ledger, 49), last.payload());
            assertEquals(48, last.lac());
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void whatIsNotThereIsToldApart(boolean v2) throws Exception {
        try (Wire wire = connect(v2)) {
            long ledger = Wire.newLedger();
            assertEquals(Code.NoSuchLedgerExistsException, wire.read(ledger, 0).rc());
            assertEquals(Code.OK, wire.add(ledger, 3));
            assertEquals(Code.NoSuchEntryException, wire.read(ledger, 0).rc());
            assertEquals(Code.NoSuchEntryException, wire.read(ledger, 4).rc());
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void entriesComeInAnyOrderWithGapsAndAgain(boolean v2) throws Exception {
        try (Wire wire = connect(v2)) {
            long ledger = Wire.newLedger();
            for (long entry : new long[] {5, 6, 2, 9, 2, 3, 7, 5}) {
                assertEquals(Code.OK, wire.add(ledger, entry));
            }
            for (long entry = 0; entry < 11; entry++) {
                boolean there = List.of(2L, 3L, 5L, 6L, 7L, 9L).contains(entry);
                assertEquals(there ? Code.OK : Code.NoSuchEntryException, wire.read(ledger, entry).rc(), "entry " + entry);
            }
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void aFenceKeepsTheWriterOutAndLetsTheRecoveryIn(boolean v2) throws Exception {
        try (Wire wire = connect(v2)) {
            long ledger = Wire.newLedger();
            assertEquals(Code.OK, wire.add(ledger, 0));
            Wire.Result fence = wire.fence(ledger);
            assertEquals(Code.OK, fence.rc());
            assertArrayEquals(Wire.payload(ledger, 0), fence.payload());
            assertEquals(Code.LedgerFencedException, wire.add(ledger, 1));
            assertEquals(Code.OK, wire.recoveryAdd(ledger, 1));
            assertEquals(Code.LedgerFencedException, wire.add(ledger, 2));
            assertArrayEquals(Wire.payload(ledger, 1), wire.read(ledger, 1).payload());
            assertEquals(Code.OK, wire.fence(ledger).rc());

            long empty = Wire.newLedger();
            assertEquals(Code.NoSuchEntryException, wire.fence(empty).rc());
            assertEquals(Code.LedgerFencedException, wire.add(empty, 0));
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void anotherKeyIsRefused(boolean v2) throws Exception {
        try (Wire wire = connect(v2)) {
            long ledger = Wire.newLedger();
            byte[] other = DigestManager.generateMasterKey("guessed".getBytes());
            assertEquals(Code.OK, wire.add(ledger, 0));
            assertEquals(Code.UnauthorizedAccessException, Wire.get(wire.addAsync(ledger, 1, other, BookieProtocol.FLAG_NONE, new byte[3])));
            assertEquals(Code.UnauthorizedAccessException, wire.read(ledger, 0, BookieProtocol.FLAG_DO_FENCING, other).rc());
            assertEquals(Code.OK, wire.add(ledger, 1));
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void aNodeThatDrainsTakesNothingButRepairs(boolean v2) throws Exception {
        try (Nodes own = new Nodes(1, "--control-addr", "127.0.0.1:0"); Wire wire = new Wire(own.all.get(0).address, v2)) {
            long ledger = Wire.newLedger();
            assertEquals(Code.OK, wire.add(ledger, 0));
            own.all.get(0).control("drain");
            assertEquals(Code.WriteOnReadOnlyBookieException, wire.add(ledger, 1));
            assertEquals(Code.OK, wire.recoveryAdd(ledger, 1));
            assertArrayEquals(Wire.payload(ledger, 1), wire.read(ledger, 1).payload());
            if (!v2) {
                assertEquals(Code.WriteOnReadOnlyBookieException, wire.writeLac(ledger, 0));
            }
            own.all.get(0).control("undrain");
            assertEquals(Code.OK, wire.add(ledger, 2));
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void whatWasOnADiskThatIsMissingIsUnknown(boolean v2) throws Exception {
        Path disk = Files.createTempDirectory("geminga-disk");
        try (Nodes own = new Nodes(1, "--data-dir", disk.toString())) {
            own.all.get(0).kill();
            Nodes.delete(disk);
            own.all.get(0).start();
            try (Wire wire = new Wire(own.all.get(0).address, v2)) {
                long ledger = Wire.newLedger();
                if (v2) {
                    // A bookie's code in this version, which BookKeeper's client does not know: it ends the connection.
                    assertEquals(Code.BookieHandleNotAvailableException, wire.read(ledger, 0).rc());
                    return;
                }
                assertEquals(Code.DataUnknownException, wire.read(ledger, 0).rc());
                assertEquals(Code.DataUnknownException, wire.fence(ledger).rc());
                assertEquals(Code.DataUnknownException, wire.add(ledger, 0));
                assertEquals(Code.DataUnknownException, wire.writeLac(ledger, 0));
                assertEquals(Code.DataUnknownException, wire.readLac(ledger).rc());
            }
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void nothingIsForgottenInAKill(boolean v2) throws Exception {
        try (Nodes own = new Nodes(1)) {
            long fenced = Wire.newLedger();
            long open = Wire.newLedger();
            try (Wire wire = new Wire(own.all.get(0).address, v2)) {
                List<CompletableFuture<Integer>> adds = new ArrayList<>();
                for (long entry = 0; entry < 2000; entry++) {
                    adds.add(wire.addAsync(fenced, entry, wire.key, BookieProtocol.FLAG_NONE, Wire.payload(fenced, entry)));
                    adds.add(wire.addAsync(open, entry, wire.key, BookieProtocol.FLAG_NONE, Wire.payload(open, entry)));
                }
                for (CompletableFuture<Integer> add : adds) {
                    assertEquals(Code.OK, Wire.get(add));
                }
                assertEquals(Code.OK, wire.fence(fenced).rc());
            }
            own.all.get(0).restart();
            try (Wire wire = new Wire(own.all.get(0).address, v2)) {
                for (long entry = 0; entry < 2000; entry++) {
                    assertArrayEquals(Wire.payload(fenced, entry), wire.read(fenced, entry).payload());
                    assertArrayEquals(Wire.payload(open, entry), wire.read(open, entry).payload());
                }
                assertEquals(Code.LedgerFencedException, wire.add(fenced, 2000));
                assertEquals(Code.OK, wire.add(open, 2000));
                byte[] other = DigestManager.generateMasterKey("guessed".getBytes());
                assertEquals(Code.UnauthorizedAccessException, Wire.get(wire.addAsync(open, 2001, other, BookieProtocol.FLAG_NONE, new byte[3])));
            }
        }
    }

    @Test
    void largeEntriesAndTooLargeOnes() throws Exception {
        try (Wire wire = connect(true)) {
            long ledger = Wire.newLedger();
            byte[] large = new byte[5 << 20];
            large[large.length - 1] = 7;
            assertEquals(Code.OK, Wire.get(wire.addAsync(ledger, 0, wire.key, BookieProtocol.FLAG_NONE, large)));
            assertArrayEquals(large, wire.read(ledger, 0).payload());
            assertFalse(Wire.get(wire.addAsync(ledger, 1, wire.key, BookieProtocol.FLAG_NONE, new byte[6 << 20])) == Code.OK);
            for (int i = 0; wire.add(ledger, 1) != Code.OK; i++) {
                assertTrue(i < 100, "the client connects again");
                Thread.sleep(20);
            }
            assertArrayEquals(Wire.payload(ledger, 1), wire.read(ledger, 1).payload());
        }
    }

    @Test
    void batchesEndAtTheirCountTheirBytesAndTheLedgersEnd() throws Exception {
        try (Wire wire = connect(true)) {
            long ledger = Wire.newLedger();
            for (long entry = 0; entry < 10; entry++) {
                assertEquals(Code.OK, wire.add(ledger, entry));
            }
            List<byte[]> some = wire.batch(ledger, 2, 4, 1 << 20);
            assertEquals(4, some.size());
            assertArrayEquals(Wire.payload(ledger, 5), some.get(3));
            assertEquals(3, wire.batch(ledger, 7, 100, 1 << 20).size());
            assertEquals(1, wire.batch(ledger, 0, 100, 1).size(), "at least one");
            assertEquals(10, wire.batch(ledger, 0, 0, 1 << 20).size(), "0 is any number");
            assertNull(wire.batch(ledger, 10, 1, 1 << 20));
        }
    }

    @Test
    void anExplicitLastAddConfirmedIsKept() throws Exception {
        try (Nodes own = new Nodes(1)) {
            long ledger = Wire.newLedger();
            try (Wire wire = new Wire(own.all.get(0).address, false)) {
                assertEquals(Code.NoSuchLedgerExistsException, wire.readLac(ledger).rc());
                assertEquals(Code.OK, wire.add(ledger, 0));
                Wire.Result before = wire.readLac(ledger);
                assertEquals(-1, before.lac());
                assertArrayEquals(Wire.payload(ledger, 0), before.payload());
                assertEquals(Code.OK, wire.writeLac(ledger, 0));
                assertEquals(0, wire.readLac(ledger).lac());
            }
            own.all.get(0).restart();
            try (Wire wire = new Wire(own.all.get(0).address, false)) {
                assertEquals(0, wire.readLac(ledger).lac());
            }
        }
    }

    @Test
    void aReaderWaitsForTheLedgerToGrow() throws Exception {
        try (Wire wire = connect(false)) {
            long ledger = Wire.newLedger();
            assertEquals(Code.OK, wire.add(ledger, 0));
            CompletableFuture<Wire.Result> read = wire.readAfter(ledger, -1, 20_000);
            Thread.sleep(100);
            assertFalse(read.isDone());
            assertEquals(Code.OK, wire.add(ledger, 1));
            Wire.Result grown = Wire.get(read);
            assertEquals(0, grown.lac());
            assertArrayEquals(Wire.payload(ledger, 0), grown.payload());
            Wire.Result late = Wire.get(wire.readAfter(ledger, 0, 100));
            assertEquals(Code.OK, late.rc());
            assertNull(late.payload());
            CompletableFuture<Wire.Result> explicit = wire.readAfter(ledger, 0, 20_000);
            assertEquals(Code.OK, wire.writeLac(ledger, 1));
            assertArrayEquals(Wire.payload(ledger, 1), Wire.get(explicit).payload());
        }
    }

    @Test
    void listsSayWhatIsThere() throws Exception {
        try (Wire wire = connect(false)) {
            long ledger = Wire.newLedger();
            for (long entry : new long[] {0, 1, 3, 4, 6, 7, 20}) {
                assertEquals(Code.OK, wire.add(ledger, entry));
            }
            AvailabilityOfEntriesOfLedger list = wire.entries(ledger);
            assertEquals(7, list.getTotalNumOfAvailableEntries());
            for (long entry = 0; entry < 30; entry++) {
                assertEquals(List.of(0L, 1L, 3L, 4L, 6L, 7L, 20L).contains(entry), list.isEntryAvailable(entry), "entry " + entry);
            }
            assertThrows(ExecutionException.class, () -> wire.entries(Wire.newLedger()));
        }
    }

    @Test
    void forceAndFigures() throws Exception {
        try (Wire wire = connect(false)) {
            long ledger = Wire.newLedger();
            assertEquals(Code.OK, wire.add(ledger, 0));
            assertEquals(Code.OK, wire.force(ledger));
            assertNotNull(wire.info());
            assertTrue(wire.info().getFreeDiskSpace() > 0 && wire.info().getFreeDiskSpace() <= wire.info().getTotalDiskSpace());
        }
    }
}

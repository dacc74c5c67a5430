package geminga.storage;

import java.util.HashSet;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.bookkeeper.client.BKException;
import org.apache.bookkeeper.client.api.LedgerMetadata;
import org.apache.bookkeeper.conf.ClientConfiguration;
import org.apache.bookkeeper.discover.RegistrationClient;
import org.apache.bookkeeper.meta.LayoutManager;
import org.apache.bookkeeper.meta.LedgerIdGenerator;
import org.apache.bookkeeper.meta.LedgerManager;
import org.apache.bookkeeper.meta.LedgerManagerFactory;
import org.apache.bookkeeper.meta.MetadataClientDriver;
import org.apache.bookkeeper.meta.NullMetadataBookieDriver;
import org.apache.bookkeeper.net.BookieId;
import org.apache.bookkeeper.proto.BookkeeperInternalCallbacks.GenericCallback;
import org.apache.bookkeeper.proto.BookkeeperInternalCallbacks.LedgerMetadataListener;
import org.apache.bookkeeper.proto.BookkeeperInternalCallbacks.Processor;
import org.apache.bookkeeper.stats.StatsLogger;
import org.apache.bookkeeper.versioning.LongVersion;
import org.apache.bookkeeper.versioning.Version;
import org.apache.bookkeeper.versioning.Versioned;
import org.apache.zookeeper.AsyncCallback;

/** Metadata of BookKeeper's client in this process: which nodes there are, and the ledgers with compare-and-set. */
public final class MemoryMetadata implements MetadataClientDriver {
    static final String URI = "memory://tests";
    static final Set<BookieId> NODES = ConcurrentHashMap.newKeySet();
    private static final TreeMap<Long, Versioned<LedgerMetadata>> LEDGERS = new TreeMap<>();
    private static final AtomicLong NEXT = new AtomicLong(1);
    private static final ConcurrentHashMap<Long, Set<LedgerMetadataListener>> LISTENERS = new ConcurrentHashMap<>();

    private static <T> CompletableFuture<T> fail(Exception e) {
        return CompletableFuture.failedFuture(e);
    }

    private static final class Ledgers implements LedgerManager {
        @Override
        public CompletableFuture<Versioned<LedgerMetadata>> createLedgerMetadata(long id, LedgerMetadata metadata) {
            synchronized (LEDGERS) {
                Versioned<LedgerMetadata> first = new Versioned<>(metadata, new LongVersion(0));
                return LEDGERS.putIfAbsent(id, first) == null ? CompletableFuture.completedFuture(first) : fail(new BKException.BKLedgerExistException());
            }
        }

        @Override
        public CompletableFuture<Void> removeLedgerMetadata(long id, Version version) {
            synchronized (LEDGERS) {
                return LEDGERS.remove(id) != null ? CompletableFuture.completedFuture(null)
                        : fail(new BKException.BKNoSuchLedgerExistsOnMetadataServerException());
            }
        }

        @Override
        public CompletableFuture<Versioned<LedgerMetadata>> readLedgerMetadata(long id) {
            synchronized (LEDGERS) {
                Versioned<LedgerMetadata> found = LEDGERS.get(id);
                return found != null ? CompletableFuture.completedFuture(found) : fail(new BKException.BKNoSuchLedgerExistsOnMetadataServerException());
            }
        }

        @Override
        public CompletableFuture<Versioned<LedgerMetadata>> writeLedgerMetadata(long id, LedgerMetadata metadata, Version version) {
            Versioned<LedgerMetadata> next;
            synchronized (LEDGERS) {
                Versioned<LedgerMetadata> now = LEDGERS.get(id);
                if (now == null || now.getVersion().compare(version) != Version.Occurred.CONCURRENTLY) {
                    return fail(new BKException.BKMetadataVersionException());
                }
                next = new Versioned<>(metadata, new LongVersion(((LongVersion) version).getLongVersion() + 1));
                LEDGERS.put(id, next);
            }
            LISTENERS.getOrDefault(id, Set.of()).forEach(listener -> listener.onChanged(id, next));
            return CompletableFuture.completedFuture(next);
        }

        @Override
        public void registerLedgerMetadataListener(long id, LedgerMetadataListener listener) {
            LISTENERS.computeIfAbsent(id, key -> ConcurrentHashMap.newKeySet()).add(listener);
        }

        @Override
        public void unregisterLedgerMetadataListener(long id, LedgerMetadataListener listener) {
            LISTENERS.getOrDefault(id, new HashSet<>()).remove(listener);
        }

        @Override
        public void asyncProcessLedgers(Processor<Long> processor, AsyncCallback.VoidCallback end, Object context, int ok, int failed) {
            throw new UnsupportedOperationException("the tests do not walk all ledgers");
        }

        @Override
        public LedgerRangeIterator getLedgerRanges(long timeoutMs) {
            throw new UnsupportedOperationException("the tests do not walk all ledgers");
        }

        @Override
        public void close() {}
    }

    private static final class Factory extends NullMetadataBookieDriver.NullLedgerManagerFactory {
        @Override
        public LedgerManager newLedgerManager() {
            return new Ledgers();
        }

        @Override
        public LedgerIdGenerator newLedgerIdGenerator() {
            return new LedgerIdGenerator() {
                @Override
                public void generateLedgerId(GenericCallback<Long> callback) {
                    callback.operationComplete(BKException.Code.OK, NEXT.getAndIncrement());
                }

                @Override
                public void close() {}
            };
        }
    }

    private static final class Registrations implements RegistrationClient {
        private static Versioned<Set<BookieId>> now() {
            return new Versioned<>(new HashSet<>(NODES), new LongVersion(0));
        }

        @Override
        public CompletableFuture<Versioned<Set<BookieId>>> getWritableBookies() {
            return CompletableFuture.completedFuture(now());
        }

        @Override
        public CompletableFuture<Versioned<Set<BookieId>>> getAllBookies() {
            return getWritableBookies();
        }

        @Override
        public CompletableFuture<Versioned<Set<BookieId>>> getReadOnlyBookies() {
            return CompletableFuture.completedFuture(new Versioned<>(new HashSet<>(), new LongVersion(0)));
        }

        @Override
        public CompletableFuture<Void> watchWritableBookies(RegistrationListener listener) {
            listener.onBookiesChanged(now());
            return CompletableFuture.completedFuture(null);
        }

        @Override
        public void unwatchWritableBookies(RegistrationListener listener) {}

        @Override
        public CompletableFuture<Void> watchReadOnlyBookies(RegistrationListener listener) {
            listener.onBookiesChanged(new Versioned<>(new HashSet<>(), new LongVersion(0)));
            return CompletableFuture.completedFuture(null);
        }

        @Override
        public void unwatchReadOnlyBookies(RegistrationListener listener) {}

        @Override
        public void close() {}
    }

    @Override
    public MetadataClientDriver initialize(ClientConfiguration conf, ScheduledExecutorService scheduler, StatsLogger stats, Optional<Object> context) {
        return this;
    }

    @Override
    public String getScheme() {
        return "memory";
    }

    @Override
    public RegistrationClient getRegistrationClient() {
        return new Registrations();
    }

    @Override
    public LedgerManagerFactory getLedgerManagerFactory() {
        return new Factory();
    }

    @Override
    public LayoutManager getLayoutManager() {
        return new NullMetadataBookieDriver.NullLayoutManager();
    }

    @Override
    public void setSessionStateListener(SessionStateListener listener) {}

    @Override
    public void close() {}

    /** The ledgers that there are. */
    static Set<Long> ledgers() {
        synchronized (LEDGERS) {
            return new TreeSet<>(LEDGERS.keySet());
        }
    }
}

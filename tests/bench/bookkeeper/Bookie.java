import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.bookkeeper.bookie.BookieException;
import org.apache.bookkeeper.conf.ServerConfiguration;
import org.apache.bookkeeper.discover.RegistrationManager;
import org.apache.bookkeeper.meta.MetadataBookieDriver;
import org.apache.bookkeeper.meta.NullMetadataBookieDriver;
import org.apache.bookkeeper.net.BookieId;
import org.apache.bookkeeper.stats.StatsLogger;
import org.apache.bookkeeper.versioning.LongVersion;
import org.apache.bookkeeper.versioning.Version;
import org.apache.bookkeeper.versioning.Versioned;

/** A real bookie without ZooKeeper: its cookie is kept in memory. Arguments are those of BookKeeper's own server. */
public final class Bookie {
    public static final class Driver extends NullMetadataBookieDriver {
        private final Map<BookieId, Versioned<byte[]>> cookies = new ConcurrentHashMap<>();

        @Override
        public MetadataBookieDriver initialize(ServerConfiguration conf, StatsLogger stats) {
            return this;
        }

        @Override
        public String getScheme() {
            return "memory";
        }

        @Override
        public RegistrationManager createRegistrationManager() {
            return new NullMetadataBookieDriver.NullRegistrationManager() {
                @Override
                public String getClusterInstanceId() {
                    return "memory";
                }

                @Override
                public void writeCookie(BookieId id, Versioned<byte[]> data) {
                    cookies.put(id, new Versioned<>(data.getValue(), new LongVersion(0)));
                }

                @Override
                public Versioned<byte[]> readCookie(BookieId id) throws BookieException {
                    Versioned<byte[]> found = cookies.get(id);
                    if (found == null) {
                        throw new BookieException.CookieNotFoundException(id.toString());
                    }
                    return found;
                }

                @Override
                public void removeCookie(BookieId id, Version version) {
                    cookies.remove(id);
                }
            };
        }
    }

    public static void main(String[] args) {
        System.setProperty("bookkeeper.metadata.bookie.drivers", "Bookie$Driver");
        org.apache.bookkeeper.server.Main.main(args);
    }
}

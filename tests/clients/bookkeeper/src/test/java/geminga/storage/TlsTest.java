package geminga.storage;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.bookkeeper.auth.AuthCallbacks.GenericCallback;
import org.apache.bookkeeper.auth.AuthToken;
import org.apache.bookkeeper.auth.ClientAuthProvider;
import org.apache.bookkeeper.client.BKException.Code;
import org.apache.bookkeeper.client.DefaultEnsemblePlacementPolicy;
import org.apache.bookkeeper.client.api.BookKeeper;
import org.apache.bookkeeper.client.api.LedgerEntries;
import org.apache.bookkeeper.client.api.ReadHandle;
import org.apache.bookkeeper.client.api.WriteHandle;
import org.apache.bookkeeper.conf.ClientConfiguration;
import org.apache.bookkeeper.meta.MetadataDrivers;
import org.apache.bookkeeper.net.BookieId;
import org.apache.bookkeeper.proto.ClientConnectionPeer;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** BookKeeper's client on nodes that take nothing in the clear, and know their clients by certificates. */
class TlsTest {
    @TempDir
    Path folder;

    static {
        MetadataDrivers.registerClientDriver("memory", MemoryMetadata.class);
    }

    private void openssl(String... arguments) throws Exception {
        String[] command = new String[arguments.length + 1];
        command[0] = "openssl";
        System.arraycopy(arguments, 0, command, 1, arguments.length);
        Process process = new ProcessBuilder(command).directory(folder.toFile()).redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes());
        if (process.waitFor() != 0) {
            throw new IllegalStateException(String.join(" ", command) + ": " + output);
        }
    }

    /** NAME.pem and NAME.key, of the authority. */
    private void certificate(String name) throws Exception {
        Files.writeString(folder.resolve("extensions"), "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n");
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", name + ".key", "-out", name + ".csr", "-subj", "/CN=" + name);
        openssl("x509", "-req", "-in", name + ".csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile",
                "extensions", "-out", name + ".pem");
    }

    private String path(String name) {
        return folder.resolve(name).toString();
    }

    /** A client's part of the node's plugin: it has nothing to say but the name, once there is TLS. */
    public static class ByCertificate implements ClientAuthProvider.Factory {
        static final AtomicInteger ANSWERS = new AtomicInteger();

        @Override
        public void init(ClientConfiguration conf) {}

        @Override
        public String getPluginName() {
            return "BookieAuthZFactory";
        }

        @Override
        public ClientAuthProvider newProvider(ClientConnectionPeer peer, GenericCallback<Void> authenticated) {
            return new ClientAuthProvider() {
                private GenericCallback<AuthToken> send;

                @Override
                public void init(GenericCallback<AuthToken> send) {
                    this.send = send;
                }

                @Override
                public void onProtocolUpgrade() {
                    send.operationComplete(Code.OK, AuthToken.wrap(new byte[0]));
                }

                @Override
                public void process(AuthToken answer, GenericCallback<AuthToken> send) {
                    ANSWERS.incrementAndGet();
                    authenticated.operationComplete(Code.OK, null);
                }
            };
        }
    }

    /** One that the node does not have. */
    public static class ByAnotherName extends ByCertificate {
        @Override
        public String getPluginName() {
            return "sasl";
        }
    }

    private BookKeeper client(boolean v2, boolean withCertificate) throws Exception {
        return client(v2, withCertificate, null);
    }

    private BookKeeper client(boolean v2, boolean withCertificate, Class<? extends ClientAuthProvider.Factory> plugin) throws Exception {
        ClientConfiguration conf = new ClientConfiguration();
        conf.setMetadataServiceUri(MemoryMetadata.URI);
        conf.setUseV2WireProtocol(v2).setNumIOThreads(1).setNumWorkerThreads(1).setEnsemblePlacementPolicy(DefaultEnsemblePlacementPolicy.class);
        conf.setTLSProviderFactoryClass("org.apache.bookkeeper.tls.TLSContextFactory");
        conf.setProperty("tlsProvider", "JDK");
        conf.setTLSTrustStoreType("PEM");
        conf.setTLSTrustStore(path("ca.pem"));
        if (withCertificate) {
            conf.setTLSClientAuthentication(true);
            conf.setTLSKeyStoreType("PEM");
            conf.setTLSKeyStore(path("client.key"));
            conf.setTLSCertificatePath(path("client.pem"));
        }
        if (plugin != null) {
            conf.setClientAuthProviderFactoryClass(plugin.getName());
        }
        return BookKeeper.newBuilder(conf).build();
    }

    private static WriteHandle create(BookKeeper client) throws Exception {
        return client.newCreateLedgerOp().withEnsembleSize(3).withWriteQuorumSize(3).withAckQuorumSize(2).withPassword(new byte[0]).execute()
                .get(30, TimeUnit.SECONDS);
    }

    private Nodes start() throws Exception {
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=authority");
        certificate("server");
        certificate("client");
        Nodes nodes = new Nodes(3, "--tls-cert", path("server.pem"), "--tls-key", path("server.key"), "--tls-client-ca", path("ca.pem"),
                "--require-tls");
        MemoryMetadata.NODES.clear();
        nodes.all.forEach(node -> MemoryMetadata.NODES.add(BookieId.parse(node.address)));
        return nodes;
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void authenticatesWithTheNodesPluginAndNoOther(boolean v2) throws Exception {
        try (Nodes nodes = start()) {
            ByCertificate.ANSWERS.set(0);
            try (BookKeeper client = client(v2, true, ByCertificate.class); WriteHandle writer = create(client)) {
                writer.append("content".getBytes());
                assertTrue(ByCertificate.ANSWERS.get() >= 2, "an ack quorum has let the client in");
            }
            try (BookKeeper other = client(v2, true, ByAnotherName.class)) {
                WriteHandle writer = create(other);
                assertThrows(Exception.class, () -> writer.append("x".getBytes()), "a plugin that the node does not have is let in");
            }
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void writesAndReadsBehindTls(boolean v2) throws Exception {
        try (Nodes nodes = start()) {
            try (BookKeeper client = client(v2, true); WriteHandle writer = create(client)) {
                byte[] large = new byte[1 << 20];
                for (int i = 0; i < 20; i++) {
                    writer.append(i == 7 ? large : ("content " + i).getBytes());
                }
                ReadHandle reader = client.newOpenLedgerOp().withLedgerId(writer.getId()).withPassword(new byte[0]).withRecovery(true).execute()
                        .get(60, TimeUnit.SECONDS);
                try (LedgerEntries entries = reader.read(0, 19)) {
                    assertArrayEquals(large, entries.getEntry(7).getEntryBytes());
                    assertArrayEquals("content 19".getBytes(), entries.getEntry(19).getEntryBytes());
                }
            }
            try (BookKeeper stranger = client(v2, false)) {
                WriteHandle writer = create(stranger);
                assertThrows(Exception.class, () -> writer.append("x".getBytes()), "a client without a certificate is served");
            }
        }
    }
}

package geminga.storage;

import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** Processes of {@code geminga storage-node}, each on a folder of its own, all gone when closed. */
final class Nodes implements AutoCloseable {
    /** One node; it keeps its port over a restart. */
    static final class Node {
        final Path folder;
        final String address = "127.0.0.1:" + freePort();
        final List<String> more;
        Process process;

        Node(Path folder, List<String> more) {
            this.folder = folder;
            this.more = more;
        }

        void start() throws Exception {
            Path ready = folder.resolve("ready");
            Files.deleteIfExists(ready);
            List<String> command = new ArrayList<>(List.of(System.getenv("GEMINGA_BINARY"), "storage-node", "--data-dir",
                    folder.resolve("data").toString(), "--addr", address, "--http-addr", "127.0.0.1:0", "--metadata-url", "none",
                    "--ready-file", ready.toString()));
            command.addAll(more);
            process = new ProcessBuilder(command)
                    .redirectErrorStream(true).redirectOutput(ProcessBuilder.Redirect.appendTo(folder.resolve("log").toFile())).start();
            for (long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(20); !Files.exists(ready); Thread.sleep(5)) {
                if (!process.isAlive() || System.nanoTime() > end) {
                    throw new IllegalStateException("the node did not start: " + Files.readString(folder.resolve("log")));
                }
            }
        }

        /** Nobody listens there, and the kernel does not give it to outgoing connections: it stays free over a restart. */
        private static int freePort() {
            while (true) {
                int port = ThreadLocalRandom.current().nextInt(20_000, 32_000);
                try (ServerSocket probe = new ServerSocket()) {
                    probe.bind(new InetSocketAddress("127.0.0.1", port));
                    return port;
                } catch (IOException e) {
                    // taken
                }
            }
        }

        /** As by SIGKILL. */
        void kill() throws InterruptedException {
            process.destroyForcibly().waitFor();
        }

        void restart() throws Exception {
            kill();
            start();
        }

        /** Tells it something over its gRPC port, which it has with {@code --control-addr}. */
        void control(String command) throws Exception {
            Matcher address = Pattern.compile("\"control\":\\s*\"([^\"]+)\"").matcher(Files.readString(folder.resolve("ready")));
            if (!address.find() || new ProcessBuilder(System.getenv("GEMINGA_BINARY"), "storage-node-ctl", command, "--control-addr", address.group(1))
                    .redirectErrorStream(true).redirectOutput(ProcessBuilder.Redirect.appendTo(folder.resolve("log").toFile())).start().waitFor() != 0) {
                throw new IllegalStateException("the node was not told: " + Files.readString(folder.resolve("log")));
            }
        }
    }

    final Path folder;
    final List<Node> all = new ArrayList<>();
    private final List<String> more;

    /** {@code more} arguments for each. */
    Nodes(int count, String... more) throws Exception {
        this.more = List.of(more);
        folder = Files.createTempDirectory("geminga-nodes");
        for (int i = 0; i < count; i++) {
            add();
        }
    }

    Node add() throws Exception {
        Path own = Files.createDirectory(folder.resolve("node" + all.size()));
        Node node = new Node(own, more);
        node.start();
        all.add(node);
        return node;
    }

    Node at(String address) {
        return all.stream().filter(node -> node.address.equals(address)).findAny().orElseThrow();
    }

    @Override
    public void close() throws IOException, InterruptedException {
        for (Node node : all) {
            node.kill();
        }
        delete(folder);
    }

    static void delete(Path folder) throws IOException {
        try (Stream<Path> files = Files.walk(folder)) {
            for (Path file : files.sorted(Comparator.reverseOrder()).toList()) {
                Files.delete(file);
            }
        }
    }
}

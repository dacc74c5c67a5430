"""An address that leads to one server or another, as a service of Kubernetes does."""
import socket
import threading


class Address:
    """Connections to `port` go to the server at `target` (a port of this machine) as of when they were made."""

    def __init__(self, target):
        self.target, self.connections, self.lock = target, set(), threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def lead_to(self, target):
        """From now on; what is connected is cut off."""
        with self.lock:
            self.target = target
            for connection in self.connections:
                cut(connection)
            self.connections.clear()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self.connections |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    def pump(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for connection in (source, sink):
            cut(connection)
        with self.lock:
            self.connections -= {source, sink}

    def close(self):
        cut(self.listener)
        self.listener.close()
        self.lead_to(self.target)


def cut(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass

"""Certificates for tests, by the machine's openssl."""
import subprocess


def make_certificates(folder):
    """An authority (ca.pem), and a certificate for 127.0.0.1 that it has signed (cert.pem, key.pem)."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "rsa:2048", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test authority")
    openssl("req", *key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=geminga")
    (folder / "extensions").write_text("subjectAltName = IP:127.0.0.1,DNS:localhost\n")
    openssl("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "cert.pem",
            "-days", "2", "-extfile", "extensions")

"""Tokens as Pulsar's token authentication takes them (JWT, HS256)."""
import base64
import hashlib
import hmac
import json
import time


def token(key, subject, lasts_s):
    """Whoever has it is `subject` for so long."""
    claims = {"sub": subject, "exp": int(time.time() + lasts_s)}
    content = b".".join(encoded(json.dumps(part).encode()) for part in [{"alg": "HS256"}, claims])
    return (content + b"." + encoded(hmac.digest(key, content, hashlib.sha256))).decode()


def encoded(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=")

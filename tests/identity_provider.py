"""An OpenID Connect provider on this machine: discovery, keys, and a sign-in that always lets Ada in."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

Document = dict[str, Any]
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Provider:
    """Tokens are RS256; `claims` are added to those that it signs. It remembers which paths it was asked for."""

    def __init__(self, audience: str) -> None:
        self.audience = audience
        self.claims: Document = {"incipit_role": "operator", "project": "lab"}
        self.asked: list[str] = []
        self._nonces: dict[str, str] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                provider.asked.append(parts.path)
                if parts.path != "/authorize":
                    return self._answer(provider.document(parts.path))
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                provider._nonces["a-code"] = query.get("nonce", "")
                self.send_response(302)
                sent_back = urlencode({"code": "a-code", "state": query["state"]})
                self.send_header("Location", f"{query['redirect_uri']}?{sent_back}")
                return self.end_headers()

            def do_POST(self) -> None:
                provider.asked.append(urlsplit(self.path).path)
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                nonce = provider._nonces.pop(form["code"][0])
                token = provider.token(provider.good_claims(nonce=nonce))
                self._answer({"id_token": token, "access_token": token, "token_type": "Bearer", "expires_in": 600})

            def _answer(self, document: Document) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def document(self, path: str) -> Document:
        """What is published at a path: the discovery document, or the keys."""
        if path == "/.well-known/openid-configuration":
            names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
            return {"issuer": self.issuer} | {name: f"{self.issuer}/{where}" for name, where in names.items()}
        key = jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": "one", "use": "sig", "alg": "RS256"}]}

    def good_claims(self, **changes: object) -> Document:
        """The claims of a valid token with some changed; None leaves one out."""
        now = int(time.time())
        good = {"iss": self.issuer, "aud": self.audience, "sub": "ada", "exp": now + 600, "iat": now, "nbf": now - 10}
        return {name: value for name, value in (good | self.claims | changes).items() if value is not None}

    def token(self, claims: Document, *, key: rsa.RSAPrivateKey = KEY, kid: str | None = "one") -> str:
        """A signed token."""
        return jwt.encode(claims, key, algorithm="RS256", headers={"kid": kid} if kid else {})

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()

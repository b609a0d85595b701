"""`python swift_process.py FOLDER PORT`: a real object store with S3's interface, OpenStack Swift, in one process on loopback.

It runs in an environment of its own (`make s3`) and knows nothing of Incipit. All four of Swift's servers are real, with one replica
on one device below FOLDER; multipart uploads, signatures and signed addresses are Swift's own.
"""

import os
import sys
from pathlib import Path

from eventlet import GreenPool, listen, patcher, wsgi
from swift.common import utils
from swift.common.ring import RingBuilder
from swift.common.wsgi import loadapp

KEY, SECRET = "incipit:tester", "canary-secret-of-the-store"

_ETC = """[swift-hash]
swift_hash_path_prefix = incipit
swift_hash_path_suffix = tests
[storage-policy:0]
name = only
default = yes
"""
_BACKEND = """[DEFAULT]
devices = {devices}
mount_check = false
swift_dir = {etc}
bind_ip = 127.0.0.1
bind_port = {port}
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
disk_chunk_size = 1048576
fallocate_reserve = 0
"""
_PROXY = """[DEFAULT]
swift_dir = {etc}
bind_ip = 127.0.0.1
bind_port = {port}
[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth slo proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
paste.filter_factory = swift_process:no_cache
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = eu-test-1
[filter:tempauth]
use = egg:swift#tempauth
user_incipit_tester = {secret} .admin
[filter:slo]
use = egg:swift#slo
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
"""


class _NoCache:
    """Where Swift would ask memcached: nothing is remembered between requests."""

    def get(self, key, **_):
        return None

    def set(self, key, value, **_):
        pass

    def incr(self, key, **_):
        return 0

    def delete(self, key, **_):
        pass


def no_cache(_global_conf, **_):
    """Filter of the pipeline above."""

    def around(app):
        def with_cache(env, start_response):
            env["swift.cache"] = _NoCache()
            return app(env, start_response)

        return with_cache

    return around


def main() -> None:
    """Serve until the process is ended; one line on stdout says that it listens."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    patcher.monkey_patch(os=False)
    etc, devices = folder / "etc", folder / "devices"
    etc.mkdir(parents=True, exist_ok=True)
    (devices / "sda").mkdir(parents=True, exist_ok=True)
    (etc / "swift.conf").write_text(_ETC)
    utils.SWIFT_CONF_FILE = str(etc / "swift.conf")
    utils.validate_configuration()
    sockets = {}
    for kind, name in (("account", "account"), ("container", "container"), ("object", "object")):
        sockets[kind] = listen(("127.0.0.1", 0))
        bound = sockets[kind].getsockname()[1]
        ring = RingBuilder(0, 1, 0)
        ring.add_dev(
            {"id": 0, "region": 1, "zone": 1, "weight": 1.0, "ip": "127.0.0.1", "port": bound, "device": "sda"}
        )
        ring.rebalance()
        ring.get_ring().save(str(etc / f"{name}.ring.gz"))
        conf = _BACKEND.format(kind=kind, devices=devices, etc=etc, port=bound)
        (etc / f"{kind}.conf").write_text(conf)
    (etc / "proxy.conf").write_text(_PROXY.format(etc=etc, port=port, secret=SECRET))
    sockets["proxy"] = listen(("127.0.0.1", port))
    pool = GreenPool()
    log = Path(os.devnull).open("w")  # noqa: SIM115  # as long as the process
    for kind, socket in sockets.items():
        app = loadapp(str(etc / f"{kind}.conf"), global_conf={"log_requests": "false"})
        pool.spawn(wsgi.server, socket, app, log=log, log_output=False, capitalize_response_headers=False)
    print("listening", flush=True)
    pool.waitall()


if __name__ == "__main__":
    sys.modules["swift_process"] = sys.modules["__main__"]
    main()

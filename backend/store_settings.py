"""Where the files of runs are kept: the folder below INCIPIT_HOME, or a bucket. A setting of the servers; no client names it."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

_S3_URL = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9])(/(?P<prefix>[A-Za-z0-9._\-/]*[A-Za-z0-9._\-]))?/?"
)


class StoreSettings(BaseModel):
    """Settings of the artifact store, INCIPIT_STORE__…; the same for the API, the control process and every worker."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: str = ""
    """`s3://bucket/prefix`; empty is the folder below INCIPIT_HOME, which all machines then share."""
    endpoint: str = ""
    """Address of an S3-compatible server, such as `http://minio:9000`; empty is Amazon's."""
    public_endpoint: str = ""
    """The same server's address for browsers and other clients, who are sent there for downloads; empty is `endpoint`."""
    region: str = ""
    """Region of the bucket; empty is what AWS_REGION or the AWS configuration says."""
    access_key_file: Path | None = None
    """File with the access key, such as a mounted secret; without it AWS_ACCESS_KEY_ID, or the machine's role."""
    secret_key_file: Path | None = None
    """File with the secret key; without it AWS_SECRET_ACCESS_KEY, or the machine's role."""

    @property
    def is_s3(self) -> bool:
        """Whether files are kept in a bucket."""
        return bool(self.url)

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return s3_parts(self.url)[0]

    @property
    def prefix(self) -> str:
        """What every key begins with: empty, or a name with a slash behind it."""
        return s3_parts(self.url)[1]

    def problem(self) -> str | None:
        """What is wrong with the settings, one sentence; None when nothing is. No server is asked."""
        others = {name: value for name, value in self if name != "url" and value}
        if not self.url:
            if others:
                return f"INCIPIT_STORE__{next(iter(others)).upper()} is set but INCIPIT_STORE__URL is empty; set it to s3://bucket/prefix."
            return None
        try:
            s3_parts(self.url)
        except ValueError as error:
            return f"INCIPIT_STORE__URL is {self.url[:200]!r}: {error}"
        for name in ("endpoint", "public_endpoint"):
            address = str(getattr(self, name))
            if address and not _is_address(address):
                return f"INCIPIT_STORE__{name.upper()} is {_shown(address)!r}, which is no address of a server; write it as https://host:port."
        if (self.access_key_file is None) != (self.secret_key_file is None):
            missing = "ACCESS" if self.access_key_file is None else "SECRET"
            return f"INCIPIT_STORE__{missing}_KEY_FILE is empty but the other is not; set both, or neither."
        for name in ("access_key_file", "secret_key_file"):
            path = getattr(self, name)
            wrong = None if path is None else _why_not_a_secret(path)
            if wrong is not None:
                return f"INCIPIT_STORE__{name.upper()} is {str(path)!r}, which {wrong}; mount the secret, and let this user read it."
        return None

    def keys(self) -> tuple[str, str] | None:
        """Access key and secret key from their files; None leaves them to the environment or the machine's role."""
        if self.access_key_file is None or self.secret_key_file is None:
            return None
        return self.access_key_file.read_text().strip(), self.secret_key_file.read_text().strip()


def s3_parts(url: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; the prefix is empty or ends with a slash. Raises ValueError with what to write."""
    found = _S3_URL.fullmatch(url)
    if found is None or ".." in url or "//" in url.removeprefix("s3://"):
        raise ValueError(
            "the files of runs are kept in s3://bucket/prefix, a bucket of 3 to 63 of a-z, 0-9, dot and dash, or, when it is empty, in "
            "the folder below INCIPIT_HOME; correct it."
        )
    prefix = found["prefix"] or ""
    return found["bucket"], f"{prefix}/" if prefix else ""


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        return False


def _shown(address: str) -> str:
    """An address without what may be a password."""
    return re.sub("//[^/@]*@", "//…@", address)[:200]


def _why_not_a_secret(path: Path) -> str | None:
    try:
        return None if path.read_text().strip() else "is empty"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:
        return "is no text"

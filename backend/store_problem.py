"""What is wrong between us and a bucket, in one sentence with the fix; never with a secret."""

from collections.abc import Mapping
from typing import Any

from backend.store_settings import StoreSettings


class StoreProblem(Exception):
    """The store did not do what was asked; the message says why and what to do."""


_RIGHTS = "s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload"
_WRONG_KEYS = {
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
}
_FORBIDDEN = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"}
_OTHER_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "307",
}
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507", "413"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}


def store_problem(error: BaseException, settings: StoreSettings, doing: str) -> StoreProblem:
    """The problem behind what s3fs or botocore raised while we were `doing` something, such as `storing runs/x`."""
    answer = _answer_of(error)
    where = f"the bucket {settings.bucket!r} of {_lower(_server(settings))}"
    if answer is None:
        return StoreProblem(_without_answer(error, settings, doing))
    code = str(answer.get("Error", {}).get("Code", ""))
    said = str(answer.get("Error", {}).get("Message", ""))[:200]
    if code in _WRONG_KEYS:
        return StoreProblem(
            f"{_server(settings)} refuses the keys of {_keys(settings)} ({code}) while {doing}; correct them there."
        )
    if code in _FORBIDDEN:
        return StoreProblem(
            f"The keys of {_keys(settings)} may not do this in {where} ({code}, {doing}); grant them {_RIGHTS}, or correct them."
        )
    if code == "NoSuchBucket":
        return StoreProblem(
            f"There is no bucket {settings.bucket!r} at {_lower(_server(settings))} ({doing}); create it, or correct INCIPIT_STORE__URL."
        )
    if code in _OTHER_REGION:
        return StoreProblem(
            f"{_upper(where)} is not in the region {settings.region or 'of the AWS configuration'!r} ({code}, {doing}); correct "
            "INCIPIT_STORE__REGION."
        )
    if code in _FULL:
        return StoreProblem(
            f"{_upper(where)} takes nothing more ({code}, {doing}); raise its quota, or lower checkpoints.keep_last of the runs."
        )
    if code in _CLOCK:
        return StoreProblem(
            f"{_server(settings)} says that this machine's clock is wrong ({code}, {doing}); set it, as by NTP."
        )
    return StoreProblem(
        f"{_upper(where)} answered {code or 'with an error'} ({said or 'no message'}) while {doing}; see the server's log."
    )


def _without_answer(error: BaseException, settings: StoreSettings, doing: str) -> str:
    kind = type(error).__name__
    if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return (
            f"INCIPIT_STORE__URL is {settings.url!r}, but there are no keys for it; set INCIPIT_STORE__ACCESS_KEY_FILE and "
            "INCIPIT_STORE__SECRET_KEY_FILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if kind in ("NoRegionError", "InvalidRegionError"):
        return f"INCIPIT_STORE__REGION is {settings.region!r}, which names no region; set it to that of the bucket {settings.bucket!r}."
    return (
        f"{_server(settings)} does not answer ({kind}, {doing}); see whether it runs and can be reached from this machine, or correct "
        "INCIPIT_STORE__ENDPOINT."
    )


def _answer_of(error: BaseException | None) -> Mapping[str, Any] | None:
    """s3fs raises an OSError behind which botocore's error with the server's answer is."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, Mapping):
            return answer
        error = error.__cause__
    return None


def _server(settings: StoreSettings) -> str:
    return f"The store at {settings.endpoint}" if settings.endpoint else "Amazon S3"


def _keys(settings: StoreSettings) -> str:
    if settings.access_key_file is not None:
        return f"{str(settings.access_key_file)!r} and {str(settings.secret_key_file)!r}"
    return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or of this machine's role"


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _lower(text: str) -> str:
    return text.replace("The store", "the store", 1)

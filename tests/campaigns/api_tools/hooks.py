"""What schemathesis cannot know from the document: how NDJSON is written, the rules that no schema can say, and that a
key which is rotated or revoked is gone."""

import json
import os

import schemathesis
from hypothesis import strategies

# Which operations end a key. They get one of their own; else the identities would be out after the first.
ROTATE, REVOKE = "POST /api/keys/rotate", "DELETE /api/keys/{id}"

with open(os.environ["MILLRACE_IDENTITIES"], encoding="utf-8") as file:
    IDENTITIES = {user["fixedHeaders"][0]["value"] for user in json.load(file)["auth"]}
IDENTITY_IDS = {key.split("_")[1] for key in IDENTITIES}
spare = os.environ["MILLRACE_SPARE_KEY"]


@schemathesis.serializer("application/x-ndjson")
def lines(_context, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


# Of most URLs a schema cannot say whether a public server may be there.
schemathesis.openapi.format(
    "uri", strategies.from_regex(r"\Ahttps://[a-z]{1,20}\.example(/[A-Za-z0-9._~-]{1,20}){0,3}\Z")
)


@schemathesis.hook
def before_call(_context, case, _kwargs):
    if case.headers.get("X-API-Key") not in IDENTITIES:
        return
    if case.operation.label == ROTATE:
        case.headers["X-API-Key"] = spare
    if case.operation.label == REVOKE and case.path_parameters.get("id") in IDENTITY_IDS:
        case.path_parameters["id"] = "000000000000"


@schemathesis.hook
def after_call(_context, case, response):
    global spare
    if case.operation.label == ROTATE and response.status_code == 200:
        spare = response.json()["api_key"]


def _refused_by_a_rule_beyond_schemas(problem):
    # As many as there may be; a schema does not count what is stored.
    if problem["code"] in ("too_many_endpoints", "too_many_keys"):
        return True
    beyond = {
        "url": "",  # where it may lead
        "until": "must not be before `since`",
        "dedup_id": "differs from the Idempotency-Key header",
        "Idempotency-Key": "came with other events before",
    }
    errors = problem.get("errors", [])
    return bool(errors) and all(
        error["field"] in beyond and error["message"].startswith(beyond[error["field"]]) for error in errors
    )


@schemathesis.hook
def filter_failure(_context, failure, case, response):
    """False where what looks like a failure is none."""
    name = type(failure).__name__
    # A cursor is opaque: only those that a page gave are taken.
    if name == "RejectedPositiveData" and response.status_code == 400:
        return not response.json()["detail"].startswith("`cursor` must be a next_cursor")
    # To the document lines are text, whatever is in them.
    if name == "RejectedPositiveData" and case.media_type == "application/x-ndjson" and response.status_code == 422:
        return False
    if name == "RejectedPositiveData" and response.status_code == 422:
        return not _refused_by_a_rule_beyond_schemas(response.json())
    # Each event of a batch is judged by itself.
    if name == "AcceptedNegativeData" and case.operation.label == "POST /api/events/batch":
        return response.json()["rejected"] == 0
    return True

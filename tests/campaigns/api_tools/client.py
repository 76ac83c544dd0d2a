"""A client that openapi-python-client made: `python3 client.py URL KEY`, with the package beside it."""

import sys

from millrace_client import AuthenticatedClient
from millrace_client.api.deliveries import list_deliveries
from millrace_client.api.endpoints import create_endpoint, test_endpoint, update_endpoint
from millrace_client.api.events import get_event, post_event, post_event_batch
from millrace_client.models import (
    Accepted,
    AcceptedItem,
    BatchResult,
    DeliveryPage,
    EndpointChange,
    EndpointInput,
    EndpointWithSecret,
    ErrorCode,
    EventInput,
    Problem,
    RejectedItem,
)

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key, prefix="", auth_header_name="X-API-Key")


def expect(answer, kind):
    assert isinstance(answer, kind), f"{kind.__name__} was expected: {answer}"
    return answer


accepted = expect(post_event.sync(client=client, body=EventInput(type_="user.login", payload={"user": "ada"})), Accepted)
batch = [EventInput(type_="tick", payload=1), EventInput(type_="", payload=None)]
result = expect(post_event_batch.sync(client=client, body=batch), BatchResult)
taken, rejected = result.results
expect(taken, AcceptedItem)
assert expect(rejected, RejectedItem).error.code == ErrorCode.INVALID_EVENT, rejected

made = expect(create_endpoint.sync(client=client, body=EndpointInput(url="https://example.com/hooks")), EndpointWithSecret)
assert made.enabled and made.secret.startswith("whsec_")
update_endpoint.sync(made.id, client=client, body=EndpointChange(enabled=False))

# Every refusal is a Problem, whatever its status.
assert expect(test_endpoint.sync(made.id, client=client), Problem).code == ErrorCode.ENDPOINT_DISABLED
wrong = expect(post_event.sync(client=client, body=EventInput(type_="", payload=None)), Problem)
assert (wrong.status, wrong.errors[0].field) == (422, "type"), wrong
assert expect(get_event.sync(made.id, client=client), Problem).status == 404
stranger = AuthenticatedClient(base_url=url, token="nonsense", prefix="", auth_header_name="X-API-Key")
assert expect(list_deliveries.sync(client=stranger), Problem).code == ErrorCode.INVALID_API_KEY
# What was posted first may have been stored, and so planned, after the endpoint was made.
deliveries = expect(list_deliveries.sync(client=client), DeliveryPage).data
assert all(delivery.endpoint_id == made.id for delivery in deliveries), deliveries

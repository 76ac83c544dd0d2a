//! What becomes of each route: the label it is counted under, and what it asks of the control room, if anything.

use millrace_control::Request;
use millrace_metrics::Route as RouteLabel;
use millrace_wire::routes::Route;

/// The request that the control room answers; `None` for a route that a shard answers itself. Bodies are still to be
/// read.
pub(super) fn request(route: Route, query: impl FnOnce() -> String) -> Option<Request> {
    Some(match route {
        Route::Options(_)
        | Route::Root
        | Route::PostEvent
        | Route::PostEventBatch
        | Route::Health
        | Route::Ready
        | Route::Metrics
        | Route::OpenApi => return None,
        Route::GetEvent(id) => Request::GetEvent(id),
        Route::ListEvents => Request::ListEvents(query()),
        Route::ListEventDeliveries(id) => Request::ListEventDeliveries(id, query()),
        Route::ListDeliveries => Request::ListDeliveries(query()),
        Route::RetryDelivery(id) => Request::RetryDelivery(id),
        Route::CreateEndpoint => Request::CreateEndpoint(Vec::new()),
        Route::ListEndpoints => Request::ListEndpoints(query()),
        Route::GetEndpoint(id) => Request::GetEndpoint(id),
        Route::UpdateEndpoint(id) => Request::UpdateEndpoint(id, Vec::new()),
        Route::DeleteEndpoint(id) => Request::DeleteEndpoint(id),
        Route::RotateEndpointSecret(id) => Request::RotateEndpointSecret(id, Vec::new()),
        Route::TestEndpoint(id) => Request::TestEndpoint(id),
        Route::RecoverEndpoint(id) => Request::RecoverEndpoint(id, Vec::new()),
        Route::ListKeys => Request::ListKeys,
        Route::RotateKey => Request::RotateKey(Vec::new()),
        Route::DeleteKey(id) => Request::DeleteKey(id),
    })
}

/// The label of `http_requests_total`.
pub(super) const fn label(route: Route) -> RouteLabel {
    match route {
        Route::Options(_) => RouteLabel::Other,
        Route::Root => RouteLabel::Root,
        Route::PostEvent => RouteLabel::EventsPost,
        Route::PostEventBatch => RouteLabel::EventsBatch,
        Route::ListEvents => RouteLabel::EventsList,
        Route::GetEvent(_) => RouteLabel::EventGet,
        Route::ListEventDeliveries(_) => RouteLabel::EventDeliveries,
        Route::ListDeliveries => RouteLabel::Deliveries,
        Route::RetryDelivery(_) => RouteLabel::DeliveryRetry,
        Route::CreateEndpoint | Route::ListEndpoints => RouteLabel::Endpoints,
        Route::GetEndpoint(_) | Route::UpdateEndpoint(_) | Route::DeleteEndpoint(_) => RouteLabel::Endpoint,
        Route::RotateEndpointSecret(_) => RouteLabel::EndpointRotateSecret,
        Route::TestEndpoint(_) => RouteLabel::EndpointTest,
        Route::RecoverEndpoint(_) => RouteLabel::EndpointRecover,
        Route::ListKeys => RouteLabel::Keys,
        Route::RotateKey => RouteLabel::KeysRotate,
        Route::DeleteKey(_) => RouteLabel::KeyDelete,
        Route::Health => RouteLabel::Health,
        Route::Ready => RouteLabel::Ready,
        Route::Metrics => RouteLabel::Metrics,
        Route::OpenApi => RouteLabel::Openapi,
    }
}

//! The one table of routes: which method on which path means what.
//!
//! Runs on the shards for every request and on the ops listener, so it neither allocates nor locks, and asks for
//! `POST /api/events` first. Paths are compared as bytes, exactly as sent and without the query: no
//! percent-decoding, no trailing slash, no case folding. An id that is not one is a path that is not there: 404.
//!
//! [`TABLE`] is the same table for people; `tests/it/openapi` holds it, [`route`] and the OpenAPI document together.

use uuid::Uuid;

use millrace_base::event::{DeliveryId, EndpointId, EventId};
use millrace_base::key::KeyId;
use millrace_base::problem::Problem;

/// The OpenAPI 3.1 document of every route here, served as `application/json` at `/openapi.json`.
pub const OPENAPI_JSON: &str = include_str!("openapi.json");

/// A request method this server can tell from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`: answered as `GET`, without the body.
    Head,
    /// `POST`
    Post,
    /// `PUT`: known, taken nowhere.
    Put,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
    /// `OPTIONS`: answered with the methods that a path takes.
    Options,
    /// `TRACE`: known, taken nowhere.
    Trace,
    /// `QUERY`: known, taken nowhere.
    Query,
    /// `CONNECT`: known, taken nowhere; it ends its connection.
    Connect,
    /// Any other token: 501.
    Other,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `OPTIONS` on a path that is there, or on `*`: the methods it takes, as `Allow` has them.
    Options(&'static str),
    /// `GET /`
    Root,
    /// `POST /api/events`
    PostEvent,
    /// `POST /api/events/batch`
    PostEventBatch,
    /// `GET /api/events`
    ListEvents,
    /// `GET /api/events/{id}`
    GetEvent(EventId),
    /// `GET /api/events/{id}/deliveries`
    ListEventDeliveries(EventId),
    /// `GET /api/deliveries`
    ListDeliveries,
    /// `POST /api/deliveries/{id}/retry`
    RetryDelivery(DeliveryId),
    /// `POST /api/endpoints`
    CreateEndpoint,
    /// `GET /api/endpoints`
    ListEndpoints,
    /// `GET /api/endpoints/{id}`
    GetEndpoint(EndpointId),
    /// `PATCH /api/endpoints/{id}`
    UpdateEndpoint(EndpointId),
    /// `DELETE /api/endpoints/{id}`
    DeleteEndpoint(EndpointId),
    /// `POST /api/endpoints/{id}/rotate-secret`
    RotateEndpointSecret(EndpointId),
    /// `POST /api/endpoints/{id}/test`
    TestEndpoint(EndpointId),
    /// `POST /api/endpoints/{id}/recover`
    RecoverEndpoint(EndpointId),
    /// `GET /api/keys`
    ListKeys,
    /// `POST /api/keys/rotate`
    RotateKey,
    /// `DELETE /api/keys/{id}`
    DeleteKey(KeyId),
    /// `GET /health`
    Health,
    /// `GET /ready`
    Ready,
    /// `GET /metrics`
    Metrics,
    /// `GET /openapi.json`
    OpenApi,
}

/// What `GET /` says: enough for a person who looks, and for a balancer that asks for nothing else.
pub const ROOT_BODY: &str = r#"{"service":"millrace","ready":"/ready","api":"/openapi.json"}"#;

/// Method and path template of every route; a `GET` is also taken as `HEAD`, and every path takes `OPTIONS`.
pub const TABLE: &[(&str, &str)] = &[
    ("GET", "/"),
    ("POST", "/api/events"),
    ("GET", "/api/events"),
    ("POST", "/api/events/batch"),
    ("GET", "/api/events/{id}"),
    ("GET", "/api/events/{id}/deliveries"),
    ("GET", "/api/deliveries"),
    ("POST", "/api/deliveries/{id}/retry"),
    ("POST", "/api/endpoints"),
    ("GET", "/api/endpoints"),
    ("GET", "/api/endpoints/{id}"),
    ("PATCH", "/api/endpoints/{id}"),
    ("DELETE", "/api/endpoints/{id}"),
    ("POST", "/api/endpoints/{id}/rotate-secret"),
    ("POST", "/api/endpoints/{id}/test"),
    ("POST", "/api/endpoints/{id}/recover"),
    ("GET", "/api/keys"),
    ("POST", "/api/keys/rotate"),
    ("DELETE", "/api/keys/{id}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
];

impl Route {
    /// The path with its variables unfilled: safe as a metric label, for nothing in it comes from the request.
    pub const fn template(self) -> &'static str {
        match self {
            Self::Options(_) => "*",
            Self::Root => "/",
            Self::PostEvent | Self::ListEvents => "/api/events",
            Self::PostEventBatch => "/api/events/batch",
            Self::GetEvent(_) => "/api/events/{id}",
            Self::ListEventDeliveries(_) => "/api/events/{id}/deliveries",
            Self::ListDeliveries => "/api/deliveries",
            Self::RetryDelivery(_) => "/api/deliveries/{id}/retry",
            Self::CreateEndpoint | Self::ListEndpoints => "/api/endpoints",
            Self::GetEndpoint(_) | Self::UpdateEndpoint(_) | Self::DeleteEndpoint(_) => "/api/endpoints/{id}",
            Self::RotateEndpointSecret(_) => "/api/endpoints/{id}/rotate-secret",
            Self::TestEndpoint(_) => "/api/endpoints/{id}/test",
            Self::RecoverEndpoint(_) => "/api/endpoints/{id}/recover",
            Self::ListKeys => "/api/keys",
            Self::RotateKey => "/api/keys/rotate",
            Self::DeleteKey(_) => "/api/keys/{id}",
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
        }
    }
}

/// Finds the route of a request; `path` is the target without its query.
///
/// # Errors
/// [`Problem::UnknownMethod`] for a method outside [`Method`]'s names, [`Problem::NotFound`] where no route has this
/// path, [`Problem::MethodNotAllowed`] with the `Allow` value where one has it under another method.
#[inline]
pub fn route(method: Method, path: &[u8]) -> Result<Route, Problem> {
    if method == Method::Post && path == b"/api/events" {
        return Ok(Route::PostEvent);
    }
    other_route(method, path)
}

fn other_route(method: Method, path: &[u8]) -> Result<Route, Problem> {
    match method {
        Method::Other => return Err(Problem::UnknownMethod),
        Method::Options if path == b"*" => return Ok(Route::Options("DELETE, GET, HEAD, OPTIONS, PATCH, POST")),
        _ => {}
    }
    match by_path(method, path) {
        Err(Problem::MethodNotAllowed(allow)) if method == Method::Options => Ok(Route::Options(allow)),
        found => found,
    }
}

fn by_path(method: Method, path: &[u8]) -> Result<Route, Problem> {
    match path {
        b"/api/events" => match method {
            Method::Post => Ok(Route::PostEvent),
            Method::Get | Method::Head => Ok(Route::ListEvents),
            _ => Err(Problem::MethodNotAllowed("GET, HEAD, OPTIONS, POST")),
        },
        b"/api/events/batch" => post(method, Route::PostEventBatch),
        b"/api/deliveries" => get(method, Route::ListDeliveries),
        b"/api/endpoints" => match method {
            Method::Post => Ok(Route::CreateEndpoint),
            Method::Get | Method::Head => Ok(Route::ListEndpoints),
            _ => Err(Problem::MethodNotAllowed("GET, HEAD, OPTIONS, POST")),
        },
        b"/api/keys" => get(method, Route::ListKeys),
        b"/api/keys/rotate" => post(method, Route::RotateKey),
        b"/" => get(method, Route::Root),
        b"/health" => get(method, Route::Health),
        b"/ready" => get(method, Route::Ready),
        b"/metrics" => get(method, Route::Metrics),
        b"/openapi.json" => get(method, Route::OpenApi),
        _ => {
            if let Some(rest) = path.strip_prefix(b"/api/events/") {
                event_route(method, rest)
            } else if let Some(rest) = path.strip_prefix(b"/api/endpoints/") {
                endpoint_route(method, rest)
            } else if let Some(rest) = path.strip_prefix(b"/api/deliveries/") {
                match id_and_action(rest)? {
                    (id, b"/retry") => post(method, Route::RetryDelivery(DeliveryId(id))),
                    _ => Err(Problem::NotFound),
                }
            } else if let Some(id) = path.strip_prefix(b"/api/keys/") {
                delete(method, Route::DeleteKey(key_id(id).ok_or(Problem::NotFound)?))
            } else {
                Err(Problem::NotFound)
            }
        }
    }
}

/// What stands behind `/api/events/`.
fn event_route(method: Method, rest: &[u8]) -> Result<Route, Problem> {
    let (id, action) = id_and_action(rest)?;
    match action {
        b"" => get(method, Route::GetEvent(EventId(id))),
        b"/deliveries" => get(method, Route::ListEventDeliveries(EventId(id))),
        _ => Err(Problem::NotFound),
    }
}

/// What stands behind `/api/endpoints/`.
fn endpoint_route(method: Method, rest: &[u8]) -> Result<Route, Problem> {
    let (id, action) = id_and_action(rest)?;
    let id = EndpointId(id);
    match action {
        b"" => match method {
            Method::Get | Method::Head => Ok(Route::GetEndpoint(id)),
            Method::Patch => Ok(Route::UpdateEndpoint(id)),
            Method::Delete => Ok(Route::DeleteEndpoint(id)),
            _ => Err(Problem::MethodNotAllowed("DELETE, GET, HEAD, OPTIONS, PATCH")),
        },
        b"/rotate-secret" => post(method, Route::RotateEndpointSecret(id)),
        b"/test" => post(method, Route::TestEndpoint(id)),
        b"/recover" => post(method, Route::RecoverEndpoint(id)),
        _ => Err(Problem::NotFound),
    }
}

fn get(method: Method, route: Route) -> Result<Route, Problem> {
    match method {
        Method::Get | Method::Head => Ok(route),
        _ => Err(Problem::MethodNotAllowed("GET, HEAD, OPTIONS")),
    }
}

fn post(method: Method, route: Route) -> Result<Route, Problem> {
    if method == Method::Post { Ok(route) } else { Err(Problem::MethodNotAllowed("OPTIONS, POST")) }
}

fn delete(method: Method, route: Route) -> Result<Route, Problem> {
    if method == Method::Delete { Ok(route) } else { Err(Problem::MethodNotAllowed("DELETE, OPTIONS")) }
}

/// An id and what follows it. The hyphenated form only, in either case: the `uuid` crate would also take braces, URNs
/// and bare hex.
fn id_and_action(rest: &[u8]) -> Result<(Uuid, &[u8]), Problem> {
    const HYPHENATED_LEN: usize = uuid::fmt::Hyphenated::LENGTH;
    let (id, action) = rest.split_at_checked(HYPHENATED_LEN).ok_or(Problem::NotFound)?;
    Ok((Uuid::try_parse_ascii(id).map_err(|_| Problem::NotFound)?, action))
}

fn key_id(text: &[u8]) -> Option<KeyId> {
    std::str::from_utf8(text).ok().and_then(KeyId::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = "/api/events/01890a5d-ac96-774b-bcce-b302099a8057";
    const KEY: &str = "/api/keys/0aZ0aZ0aZ0aZ";
    const METHODS: [(Method, &str); 10] = [
        (Method::Get, "GET"),
        (Method::Head, "HEAD"),
        (Method::Post, "POST"),
        (Method::Put, "PUT"),
        (Method::Patch, "PATCH"),
        (Method::Delete, "DELETE"),
        (Method::Options, "OPTIONS"),
        (Method::Trace, "TRACE"),
        (Method::Query, "QUERY"),
        (Method::Connect, "CONNECT"),
    ];

    fn filled(template: &str) -> String {
        match template {
            "/api/keys/{id}" => KEY.to_owned(),
            template => template.replace("{id}", &EVENT[12..]),
        }
    }

    #[test]
    fn the_table_and_the_routes_agree_on_methods_and_allow() {
        for (_, template) in TABLE {
            let mut allowed: Vec<&str> = TABLE.iter().filter(|row| row.1 == *template).map(|row| row.0).collect();
            if allowed.contains(&"GET") {
                allowed.push("HEAD");
            }
            allowed.push("OPTIONS");
            allowed.sort_unstable();
            for (method, name) in METHODS {
                match route(method, filled(template).as_bytes()) {
                    Ok(Route::Options(allow)) => assert_eq!((name, allow), ("OPTIONS", &*allowed.join(", "))),
                    Ok(found) => {
                        assert!(allowed.contains(&name), "{name} {template}");
                        assert_eq!(found.template(), *template);
                    }
                    Err(refused) => {
                        assert!(!allowed.contains(&name), "{name} {template}");
                        let allow = allowed.join(", ");
                        assert!(
                            matches!(refused, Problem::MethodNotAllowed(a) if a == allow),
                            "{template}: {refused:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn ids_come_out_of_the_path() {
        let event = EventId(Uuid::parse_str(&EVENT[12..]).unwrap());
        assert_eq!(route(Method::Get, EVENT.as_bytes()), Ok(Route::GetEvent(event)));
        let upper = format!("/api/events/{}", EVENT[12..].to_uppercase());
        assert_eq!(route(Method::Head, upper.as_bytes()), Ok(Route::GetEvent(event)));
        let id = event.0;
        for (method, path, found) in [
            (Method::Get, "/api/events/{id}/deliveries", Route::ListEventDeliveries(event)),
            (Method::Post, "/api/deliveries/{id}/retry", Route::RetryDelivery(DeliveryId(id))),
            (Method::Get, "/api/endpoints/{id}", Route::GetEndpoint(EndpointId(id))),
            (Method::Patch, "/api/endpoints/{id}", Route::UpdateEndpoint(EndpointId(id))),
            (Method::Delete, "/api/endpoints/{id}", Route::DeleteEndpoint(EndpointId(id))),
            (Method::Post, "/api/endpoints/{id}/rotate-secret", Route::RotateEndpointSecret(EndpointId(id))),
            (Method::Post, "/api/endpoints/{id}/test", Route::TestEndpoint(EndpointId(id))),
            (Method::Post, "/api/endpoints/{id}/recover", Route::RecoverEndpoint(EndpointId(id))),
        ] {
            assert_eq!(route(method, filled(path).as_bytes()), Ok(found));
        }
        let key = KeyId::parse("0aZ0aZ0aZ0aZ").unwrap();
        assert_eq!(route(Method::Delete, KEY.as_bytes()), Ok(Route::DeleteKey(key)));
    }

    #[test]
    fn what_is_not_a_path_is_not_found_whatever_the_method() {
        for path in [
            "",
            "//",
            "/api",
            "/api/",
            "/api/events/",
            "/api/events/batch/",
            "/API/EVENTS",
            "//api/events",
            "/api/events/01890a5dac96774bbcceb302099a8057",
            "/api/events/{01890a5d-ac96-774b-bcce-b302099a8057}",
            "/api/events/urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057",
            "/api/events/01890a5d-ac96-774b-bcce-b302099a805g",
            "/api/events/01890a5d-ac96-774b-bcce-b302099a8057/",
            "/api/events/01890a5d-ac96-774b-bcce-b302099a8057/deliveries/",
            "/api/events/01890a5d-ac96-774b-bcce-b302099a8057deliveries",
            "/api/events/01890a5d-ac96-774b-bcce-b302099a8057/retry",
            "/api/deliveries/",
            "/api/deliveries/01890a5d-ac96-774b-bcce-b302099a8057",
            "/api/deliveries/01890a5d-ac96-774b-bcce-b302099a8057/deliveries",
            "/api/endpoints/",
            "/api/endpoints/01890a5d-ac96-774b-bcce-b302099a805",
            "/api/endpoints/01890a5d-ac96-774b-bcce-b302099a8057/",
            "/api/endpoints/01890a5d-ac96-774b-bcce-b302099a8057/rotate",
            "/api/endpoints/01890a5d-ac96-774b-bcce-b302099a8057/test/",
            "/api/keys/",
            "/api/keys/0aZ0aZ0aZ0a",
            "/api/keys/0aZ0aZ0aZ0aZ0",
            "/api/keys/0aZ0aZ0aZ0a-",
            "/health/",
            "/metrics?x",
            "/openapi",
            "/api/events/b%61tch",
        ] {
            for (method, _) in METHODS {
                assert_eq!(route(method, path.as_bytes()), Err(Problem::NotFound), "{path}");
            }
        }
        assert_eq!(
            route(Method::Delete, b"/api/keys/\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Err(Problem::NotFound)
        );
    }

    #[test]
    fn options_of_the_whole_server_are_those_of_all_paths() {
        let mut methods: Vec<&str> = TABLE.iter().map(|row| row.0).chain(["HEAD", "OPTIONS"]).collect();
        methods.sort_unstable();
        methods.dedup();
        let Ok(Route::Options(allow)) = route(Method::Options, b"*") else { panic!("no answer") };
        assert_eq!(allow, methods.join(", "));
        assert_eq!(route(Method::Get, b"*"), Err(Problem::NotFound));
    }

    #[test]
    fn an_unknown_method_is_501_on_every_path() {
        for path in ["/api/events", "/health", "/nowhere"] {
            assert_eq!(route(Method::Other, path.as_bytes()), Err(Problem::UnknownMethod));
        }
    }
}

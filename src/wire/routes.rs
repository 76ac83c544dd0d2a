//! The route table: one row a route, and everything that follows from a row.
//!
//! The rows are the argument of `routes!` below. The macro turns them into the enums [`ShardRoute`] and
//! [`ControlRoute`], the [`TABLE`], and the search in [`route`]. The label of `http_requests_total`, the limit of a
//! body and, for a route of the control pool, the key, the rate window and the line are read from the row. A route of the
//! shards identifies and admits its client itself, in `Connection::exchange`: its scope is what the documents say.
//!
//! A new route needs a row here, an operation in `openapi.json`, and an arm where the compiler then reports a missing
//! one: `Connection::exchange` in ingest for a route of the shards, `Handlers::answer` in control for one of the
//! control pool; and, if the database announces its change, one in `announced` of control's `changes.rs`.
//! `tests/it/openapi` holds the table and the document together.
//!
//! [`route`] runs on the shards for every request: it neither allocates nor locks, and compares with `POST /api/events`
//! first. Paths are compared as bytes, exactly as sent and without the query: no percent-decoding, no trailing slash,
//! no case folding. A path whose id does not parse is not found: 404.

use uuid::Uuid;

use millrace_base::event::{DeliveryId, EndpointId, EventId};
use millrace_base::key::KeyId;
use millrace_base::limits::{
    BATCH_BODY_BYTES_MAX as BATCH, CONTROL_BODY_BYTES_MAX as CONTROL, EVENT_BODY_BYTES_MAX as EVENT,
};
use millrace_base::problem::Problem;

/// The OpenAPI 3.1 document of every route here, served as `application/json` at `/openapi.json`.
pub const OPENAPI_JSON: &str = include_str!("openapi.json");

/// The body of `GET /`: enough for a person who looks, and for a balancer that asks for nothing else.
pub const ROOT_BODY: &str = r#"{"service":"millrace","ready":"/ready","api":"/openapi.json"}"#;

/// A request method that this server can tell from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`: answered as `GET`, without the body.
    Head,
    /// `POST`
    Post,
    /// `PUT`: known, but no route takes it.
    Put,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
    /// `OPTIONS`: answered with the methods that a path takes.
    Options,
    /// `TRACE`: known, but no route takes it.
    Trace,
    /// `QUERY`: known, but no route takes it.
    Query,
    /// `CONNECT`: known, but no route takes it; it ends its connection.
    Connect,
    /// Any other token: 501.
    Other,
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// A `GET` is also taken as `HEAD`, and every path takes `OPTIONS`.
    pub method: Method,
    /// The path, with `{id}` where a request has an id.
    pub path: &'static str,
    /// Label `route` of `http_requests_total`. Routes may share one.
    pub name: &'static str,
    /// The key it needs, and the rate window it counts against.
    pub scope: Scope,
    /// Whether it changes anything.
    pub effect: Effect,
    /// The body that it reads.
    pub body: Body,
    /// The status of an answer with nothing wrong.
    pub status: u16,
}

/// The key a route needs, and the rate window it counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Anybody, without a key and without a limit.
    Public,
    /// Any key; counts as an event.
    Ingest,
    /// Any key; counts as a control request.
    Control,
    /// Any key; counts as a request about keys, and goes before other control requests: a key may have leaked.
    Keys,
}

/// Whether a route changes anything. The answer to a read may still be dropped once it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It changes nothing.
    Read,
    /// It may change something.
    Write,
}

/// The body that a route reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// None: a body that is sent is dropped.
    None,
    /// JSON of at most this many bytes (a batch may also be NDJSON).
    Json(usize),
}

impl Body {
    /// The most bytes it may have.
    #[inline]
    pub const fn max(self) -> usize {
        match self {
            Self::None => 0,
            Self::Json(max) => max,
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `OPTIONS` on a path that exists, or on `*`: the methods it takes, as the value of `Allow`.
    Options(&'static str),
    /// A route that the shard answers itself.
    Shard(ShardRoute),
    /// A route that a thread of the control pool answers.
    Control(ControlRoute),
}

/// Makes the enums, the table and the search of the rows.
macro_rules! routes {
    (
        shard { $(
            $shard:ident: $s_method:ident $s_path:literal $s_name:literal
                $s_scope:ident $s_effect:ident $s_body:ident $(($s_max:ident))? $s_status:literal;
        )* }
        control { $(
            $control:ident $(($id:ident))?: $c_method:ident $c_path:literal $c_name:literal
                $c_scope:ident $c_effect:ident $c_body:ident $(($c_max:ident))? $c_status:literal;
        )* }
    ) => {
        /// A route that the shard answers itself.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ShardRoute {
            $(#[doc = concat!(stringify!($s_method), " `", $s_path, "`")] $shard,)*
        }

        /// A route that a thread of the control pool answers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ControlRoute {
            $(#[doc = concat!(stringify!($c_method), " `", $c_path, "`")] $control $(($id))?,)*
        }

        /// Every route, those of the shards first.
        pub const TABLE: &[Row] = &[
            $(Row {
                method: Method::$s_method, path: $s_path, name: $s_name, scope: Scope::$s_scope,
                effect: Effect::$s_effect, body: Body::$s_body $(($s_max))?, status: $s_status,
            },)*
            $(Row {
                method: Method::$c_method, path: $c_path, name: $c_name, scope: Scope::$c_scope,
                effect: Effect::$c_effect, body: Body::$c_body $(($c_max))?, status: $c_status,
            },)*
        ];

        /// The position of each row in [`TABLE`].
        enum Position { $($shard,)* $($control,)* }

        impl ShardRoute {
            #[inline]
            const fn position(self) -> usize {
                match self { $(Self::$shard => Position::$shard as usize,)* }
            }
        }

        impl ControlRoute {
            const fn position(self) -> usize {
                match self { $(Self::$control { .. } => Position::$control as usize,)* }
            }
        }

        /// The route of a path and method, or the methods that the path takes.
        fn find(method: Method, path: &[u8]) -> Result<Route, Methods> {
            let mut taken = Methods::NONE;
            $(if path == $s_path.as_bytes() {
                if Method::$s_method.serves(method) {
                    return Ok(Route::Shard(ShardRoute::$shard));
                }
                taken = taken.with(Method::$s_method);
            })*
            $(if let Some(route) = control_route!(path, $c_path, $control $(, $id)?) {
                if Method::$c_method.serves(method) {
                    return Ok(Route::Control(route));
                }
                taken = taken.with(Method::$c_method);
            })*
            Err(taken)
        }
    };
}

/// The control route, if the path matches its template.
macro_rules! control_route {
    ($path:ident, $template:literal, $route:ident) => {
        ($path == $template.as_bytes()).then_some(ControlRoute::$route)
    };
    ($path:ident, $template:literal, $route:ident, $id:ident) => {
        id_in::<$id>($path, $template).map(ControlRoute::$route)
    };
}

routes! {
    // route                               method path                                  name                     scope
    // effect body          status
    shard {
        PostEvent:                         Post   "/api/events"                         "events_post"            Ingest  Write  Json(EVENT)   202;
        PostEventBatch:                    Post   "/api/events/batch"                   "events_batch"           Ingest  Write  Json(BATCH)   202;
        Root:                              Get    "/"                                   "root"                   Public  Read   None          200;
        Health:                            Get    "/health"                             "health"                 Public  Read   None          200;
        Ready:                             Get    "/ready"                              "ready"                  Public  Read   None          200;
        Metrics:                           Get    "/metrics"                            "metrics"                Public  Read   None          200;
        OpenApi:                           Get    "/openapi.json"                       "openapi"                Public  Read   None          200;
    }
    control {
        ListEvents:                        Get    "/api/events"                         "events_list"            Control Read   None          200;
        GetEvent(EventId):                 Get    "/api/events/{id}"                    "event_get"              Control Read   None          200;
        ListEventDeliveries(EventId):      Get    "/api/events/{id}/deliveries"         "event_deliveries"       Control Read   None          200;
        ListDeliveries:                    Get    "/api/deliveries"                     "deliveries"             Control Read   None          200;
        RetryDelivery(DeliveryId):         Post   "/api/deliveries/{id}/retry"          "delivery_retry"         Control Write  None          202;
        ListEndpoints:                     Get    "/api/endpoints"                      "endpoints"              Control Read   None          200;
        CreateEndpoint:                    Post   "/api/endpoints"                      "endpoints"              Control Write  Json(CONTROL) 201;
        GetEndpoint(EndpointId):           Get    "/api/endpoints/{id}"                 "endpoint"               Control Read   None          200;
        UpdateEndpoint(EndpointId):        Patch  "/api/endpoints/{id}"                 "endpoint"               Control Write  Json(CONTROL) 200;
        DeleteEndpoint(EndpointId):        Delete "/api/endpoints/{id}"                 "endpoint"               Control Write  None          204;
        RotateEndpointSecret(EndpointId):  Post   "/api/endpoints/{id}/rotate-secret"   "endpoint_rotate_secret" Control Write  Json(CONTROL) 200;
        TestEndpoint(EndpointId):          Post   "/api/endpoints/{id}/test"            "endpoint_test"          Control Write  None          202;
        RecoverEndpoint(EndpointId):       Post   "/api/endpoints/{id}/recover"         "endpoint_recover"       Control Write  Json(CONTROL) 202;
        ListKeys:                          Get    "/api/keys"                           "keys"                   Keys    Read   None          200;
        RotateKey:                         Post   "/api/keys/rotate"                    "keys_rotate"            Keys    Write  Json(CONTROL) 200;
        DeleteKey(KeyId):                  Delete "/api/keys/{id}"                      "key_delete"             Keys    Write  None          204;
    }
}

impl ShardRoute {
    /// Its row.
    #[inline]
    pub const fn row(self) -> &'static Row {
        &TABLE[self.position()]
    }

    /// Its name in metrics.
    #[inline]
    pub const fn name(self) -> RouteName {
        NAMES[self.position()]
    }
}

impl ControlRoute {
    /// Its row.
    pub const fn row(self) -> &'static Row {
        &TABLE[self.position()]
    }

    /// Its name in metrics.
    pub const fn name(self) -> RouteName {
        NAMES[self.position()]
    }
}

impl Route {
    /// Its row; `OPTIONS` has none.
    pub const fn row(self) -> Option<&'static Row> {
        match self {
            Self::Options(_) => None,
            Self::Shard(route) => Some(route.row()),
            Self::Control(route) => Some(route.row()),
        }
    }

    /// Its name in metrics.
    #[inline]
    pub const fn name(self) -> RouteName {
        match self {
            Self::Options(_) => RouteName::OTHER,
            Self::Shard(route) => route.name(),
            Self::Control(route) => route.name(),
        }
    }
}

/// The name of a route, or `other` for a request that reaches none: a value of the label `route` of
/// `http_requests_total`. Nothing in it comes from a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteName(u8);

impl RouteName {
    /// The name for a request that reaches no route.
    pub const OTHER: Self = Self(TABLE.len() as u8);
    /// One more than the highest [`Self::index`].
    pub const INDEX_END: usize = TABLE.len() + 1;

    /// Every name once.
    pub fn all() -> impl Iterator<Item = Self> {
        let first = |(position, name): (usize, &Self)| (name.index() == position).then_some(*name);
        NAMES.iter().enumerate().filter_map(first).chain([Self::OTHER])
    }

    /// A number below [`Self::INDEX_END`], another for each name; not every one is used.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The text of the label.
    pub fn as_str(self) -> &'static str {
        TABLE.get(self.index()).map_or("other", |row| row.name)
    }

    /// The status of an answer with nothing wrong; where routes share the name, that of the first.
    pub fn usual_status(self) -> u16 {
        TABLE.get(self.index()).map_or(404, |row| row.status)
    }
}

/// The name of each row: the position of the first row that has it.
const NAMES: [RouteName; TABLE.len()] = {
    let mut names = [RouteName::OTHER; TABLE.len()];
    let mut row = 0;
    while row < TABLE.len() {
        let mut first = 0;
        while !is_same(TABLE[first].name.as_bytes(), TABLE[row].name.as_bytes()) {
            first += 1;
        }
        names[row] = RouteName(first as u8);
        row += 1;
    }
    names
};

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// A set of methods that rows have.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Methods(usize);

impl Methods {
    const NONE: Self = Self(0);
    const ALL: Self = Self(15);

    const fn with(self, method: Method) -> Self {
        Self(
            self.0
                | match method {
                    Method::Get => 1,
                    Method::Post => 2,
                    Method::Patch => 4,
                    Method::Delete => 8,
                    _ => panic!("`allow` has no such method"),
                },
        )
    }

    /// The value of `Allow`.
    const fn allow(self) -> &'static str {
        const ALLOW: [&str; 16] = [
            "OPTIONS",
            "GET, HEAD, OPTIONS",
            "OPTIONS, POST",
            "GET, HEAD, OPTIONS, POST",
            "OPTIONS, PATCH",
            "GET, HEAD, OPTIONS, PATCH",
            "OPTIONS, PATCH, POST",
            "GET, HEAD, OPTIONS, PATCH, POST",
            "DELETE, OPTIONS",
            "DELETE, GET, HEAD, OPTIONS",
            "DELETE, OPTIONS, POST",
            "DELETE, GET, HEAD, OPTIONS, POST",
            "DELETE, OPTIONS, PATCH",
            "DELETE, GET, HEAD, OPTIONS, PATCH",
            "DELETE, OPTIONS, PATCH, POST",
            "DELETE, GET, HEAD, OPTIONS, PATCH, POST",
        ];
        ALLOW[self.0]
    }
}

/// Every row's method is one that [`Methods`] knows.
const _: () = {
    let mut row = 0;
    while row < TABLE.len() {
        let _ = Methods::NONE.with(TABLE[row].method);
        row += 1;
    }
};

impl Method {
    /// Whether a row with this method serves a request with the method `asked`.
    fn serves(self, asked: Self) -> bool {
        self == asked || (self == Self::Get && asked == Self::Head)
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
        return Ok(Route::Shard(ShardRoute::PostEvent));
    }
    other_route(method, path)
}

fn other_route(method: Method, path: &[u8]) -> Result<Route, Problem> {
    match method {
        Method::Other => return Err(Problem::UnknownMethod),
        Method::Options if path == b"*" => return Ok(Route::Options(Methods::ALL.allow())),
        _ => {}
    }
    match find(method, path) {
        Ok(route) => Ok(route),
        Err(Methods::NONE) => Err(Problem::NotFound),
        Err(taken) if method == Method::Options => Ok(Route::Options(taken.allow())),
        Err(taken) => Err(Problem::MethodNotAllowed(taken.allow())),
    }
}

/// An id in a path.
trait PathId: Sized {
    fn from_path(text: &[u8]) -> Option<Self>;
}

impl PathId for KeyId {
    fn from_path(text: &[u8]) -> Option<Self> {
        std::str::from_utf8(text).ok().and_then(Self::parse)
    }
}

impl PathId for EventId {
    fn from_path(text: &[u8]) -> Option<Self> {
        uuid(text).map(Self)
    }
}

impl PathId for EndpointId {
    fn from_path(text: &[u8]) -> Option<Self> {
        uuid(text).map(Self)
    }
}

impl PathId for DeliveryId {
    fn from_path(text: &[u8]) -> Option<Self> {
        uuid(text).map(Self)
    }
}

/// The hyphenated form only, in either case: the `uuid` crate would also take braces, URNs and bare hex.
fn uuid(text: &[u8]) -> Option<Uuid> {
    let is_hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
    is_hyphenated.then(|| Uuid::try_parse_ascii(text).ok())?
}

/// The id in a path of this template.
fn id_in<I: PathId>(path: &[u8], template: &str) -> Option<I> {
    let (before, behind) = template.split_once("{id}")?;
    I::from_path(path.strip_prefix(before.as_bytes())?.strip_suffix(behind.as_bytes())?)
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;

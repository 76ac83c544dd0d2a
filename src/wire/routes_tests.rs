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

fn name_of(method: Method) -> &'static str {
    METHODS.iter().find(|known| known.0 == method).expect("a method with a name").1
}

fn filled(template: &str) -> String {
    match template {
        "/api/keys/{id}" => KEY.to_owned(),
        template => template.replace("{id}", &EVENT[12..]),
    }
}

#[test]
fn the_table_and_the_routes_agree_on_methods_and_allow() {
    for Row { path: template, .. } in TABLE {
        let of_path = TABLE.iter().filter(|row| row.path == *template);
        let mut allowed: Vec<&str> = of_path.map(|row| name_of(row.method)).collect();
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
                    let row = found.row().expect("only `OPTIONS` has none");
                    assert_eq!((row.path, row.method.serves(method)), (*template, true));
                }
                Err(refused) => {
                    assert!(!allowed.contains(&name), "{name} {template}");
                    let allow = allowed.join(", ");
                    assert!(matches!(refused, Problem::MethodNotAllowed(a) if a == allow), "{template}: {refused:?}");
                }
            }
        }
    }
}

#[test]
fn ids_come_out_of_the_path() {
    let event = EventId(Uuid::parse_str(&EVENT[12..]).unwrap());
    assert_eq!(route(Method::Get, EVENT.as_bytes()), Ok(Route::Control(ControlRoute::GetEvent(event))));
    let upper = format!("/api/events/{}", EVENT[12..].to_uppercase());
    assert_eq!(route(Method::Head, upper.as_bytes()), Ok(Route::Control(ControlRoute::GetEvent(event))));
    let id = event.0;
    for (method, path, found) in [
        (Method::Get, "/api/events/{id}/deliveries", ControlRoute::ListEventDeliveries(event)),
        (Method::Post, "/api/deliveries/{id}/retry", ControlRoute::RetryDelivery(DeliveryId(id))),
        (Method::Get, "/api/endpoints/{id}", ControlRoute::GetEndpoint(EndpointId(id))),
        (Method::Patch, "/api/endpoints/{id}", ControlRoute::UpdateEndpoint(EndpointId(id))),
        (Method::Delete, "/api/endpoints/{id}", ControlRoute::DeleteEndpoint(EndpointId(id))),
        (Method::Post, "/api/endpoints/{id}/rotate-secret", ControlRoute::RotateEndpointSecret(EndpointId(id))),
        (Method::Post, "/api/endpoints/{id}/test", ControlRoute::TestEndpoint(EndpointId(id))),
        (Method::Post, "/api/endpoints/{id}/recover", ControlRoute::RecoverEndpoint(EndpointId(id))),
    ] {
        assert_eq!(route(method, filled(path).as_bytes()), Ok(Route::Control(found)));
    }
    let key = KeyId::parse("0aZ0aZ0aZ0aZ").unwrap();
    assert_eq!(route(Method::Delete, KEY.as_bytes()), Ok(Route::Control(ControlRoute::DeleteKey(key))));
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
    let mut methods: Vec<&str> = TABLE.iter().map(|row| name_of(row.method)).chain(["HEAD", "OPTIONS"]).collect();
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

#[test]
fn every_name_has_an_index_of_its_own_and_is_known_again() {
    let names: Vec<&str> = RouteName::all().map(RouteName::as_str).collect();
    let mut expected: Vec<&str> = TABLE.iter().map(|row| row.name).chain(["other"]).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(sorted, expected, "each once");
    let mut indices: Vec<usize> = RouteName::all().map(RouteName::index).collect();
    indices.dedup();
    assert!(indices.len() == names.len() && indices.iter().all(|index| *index < RouteName::INDEX_END));
    assert_eq!(ControlRoute::CreateEndpoint.name(), ControlRoute::ListEndpoints.name());
    assert_eq!((RouteName::OTHER.as_str(), RouteName::OTHER.usual_status()), ("other", 404));
    for (position, row) in TABLE.iter().enumerate() {
        assert_eq!(NAMES[position].as_str(), row.name);
    }
}

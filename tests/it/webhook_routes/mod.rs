//! The routes that manage endpoints and show deliveries, on a real server and both stores.
//!
//! Endpoints are at names that never exist, so whatever a server tries to send there does not arrive; what the tests
//! ask of deliveries holds whether it tries or not.

mod deliveries;
mod endpoints;
mod refusals;

use serde_json::Value;

use support::server::{Client, Response, Server};

/// A client with a key.
struct Api {
    client: Client,
    key: String,
}

impl Api {
    fn new(server: &Server, organization: &str) -> Self {
        Self { client: server.connect(), key: server.organization(organization, "0").1 }
    }

    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let body = body.map(Value::to_string);
        self.client.request(method, path, Some(&self.key), body.as_deref().map(str::as_bytes))
    }

    /// Asks for what must be given, with this status.
    #[track_caller]
    fn get(&mut self, status: u16, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer = self.ask(method, path, body);
        assert_eq!(answer.status, status, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.headers.get("cache-control").map(String::as_str), Some("no-store"), "{method} {path}");
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    #[track_caller]
    fn create(&mut self, body: &Value) -> Value {
        self.get(201, "POST", "/api/endpoints", Some(body))
    }

    /// Asks for what must be refused; the document.
    #[track_caller]
    fn refused(&mut self, status: u16, code: &str, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer = self.ask(method, path, body);
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path}: {said}");
        answer.json()
    }

    /// Follows a list to its end, a few items at a time.
    fn walk(&mut self, path: &str, limit: usize) -> Vec<Value> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let (mut items, mut next) = (Vec::new(), format!("{path}{separator}limit={limit}"));
        loop {
            let page = self.get(200, "GET", &next, None);
            assert_eq!(page.as_object().unwrap().len(), 2);
            let data = page["data"].as_array().unwrap();
            // A page may be short where the machine is slow.
            assert!(data.len() <= limit, "{page}");
            items.extend_from_slice(data);
            let Some(cursor) = page["next_cursor"].as_str() else { return items };
            next = format!("{path}{separator}limit={limit}&cursor={cursor}");
        }
    }
}

fn id_of(item: &Value) -> String {
    item["id"].as_str().unwrap().to_owned()
}

fn ids(items: &[Value]) -> Vec<String> {
    items.iter().map(id_of).collect()
}

//! A server that may send to this machine, an organisation of it, and what its receivers must be able to rely on.

use serde_json::{Value, json};

use support::installation::Installation;
use support::server::{Server, eventually};
pub use support::webhook::{SECRET_KEY, arguments, signatures_of};

/// A server that may send to this machine, with retries that a test can wait for unless `args` say otherwise.
pub fn start(installation: &Installation, args: &[&str]) -> Server {
    installation.start(&arguments(args))
}

/// A server and one organisation without a rate limit.
pub struct Tenant {
    pub server: Server,
    pub key: String,
}

impl Tenant {
    pub fn new(installation: &Installation, args: &[&str]) -> Self {
        let server = start(installation, args);
        let key = server.key();
        Self { server, key }
    }

    /// A new endpoint there; `more` are further fields of it.
    pub fn endpoint(&self, url: &str, more: &Value) -> Value {
        let mut body = json!({ "url": url });
        body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let made = self.server.post("/api/endpoints", &self.key, &body.to_string());
        assert_eq!(made.status, 201, "{}", made.json());
        made.json()
    }

    /// An accepted event's id.
    pub fn post(&self, event_type: &str, payload: &str) -> String {
        self.server.post("/api/events", &self.key, &support::server::event(event_type, None, payload)).id()
    }

    /// Many, in one request.
    pub fn post_many(&self, count: usize, event_type: &str) -> Vec<String> {
        post_many(&self.server, &self.key, count, event_type)
    }

    pub fn get(&self, path: &str) -> Value {
        let answer = self.server.get(path, Some(&self.key));
        assert_eq!(answer.status, 200, "{path}: {}", answer.json());
        answer.json()
    }

    /// The one delivery of an event, as soon as it is as `wanted`.
    pub fn delivery(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually("the delivery is as it should be", || {
            let answer = self.server.get(&format!("/api/events/{event}/deliveries"), Some(&self.key));
            // Not stored yet where there is none.
            last = answer.json()["data"].get(0).cloned().unwrap_or_default();
            !last.is_null() && wanted(&last)
        });
        last
    }

    /// Waits until `other`, a server on the same database, plans deliveries for an endpoint that takes this type. Until
    /// then what it accepts has none.
    pub fn await_endpoint_on(&self, other: &Server, event_type: &str) {
        eventually("the other server knows of the endpoint", || {
            let id = post_many(other, &self.key, 1, event_type).remove(0);
            other.drained();
            self.get(&format!("/api/events/{id}/deliveries"))["data"] != json!([])
        });
    }

    /// How many deliveries have this status.
    pub fn count(&self, status: &str) -> usize {
        let mut count = 0;
        let mut cursor = String::new();
        loop {
            let page = self.get(&format!("/api/deliveries?limit=1000&status={status}{cursor}"));
            count += page["data"].as_array().unwrap().len();
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return count,
            }
        }
    }
}

pub fn post_many(server: &Server, key: &str, count: usize, event_type: &str) -> Vec<String> {
    let events: Vec<Value> = (0..count).map(|n| json!({ "type": event_type, "payload": { "n": n } })).collect();
    let answer = server.post("/api/events/batch", key, &Value::from(events).to_string());
    assert_eq!(answer.status, 202, "{}", answer.json());
    let results = answer.json();
    results["results"].as_array().unwrap().iter().map(|result| result["id"].as_str().unwrap().to_owned()).collect()
}

pub fn has_status(status: &str) -> impl Fn(&Value) -> bool {
    move |delivery| delivery["status"] == status
}

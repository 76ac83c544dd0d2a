//! A server that may send to this machine, an organisation of it, and what its receivers must be able to rely on.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::common::server::{Server, eventually};
use crate::installation::Installation;
use crate::receiver::Seen;

/// What seals secrets, the same for all servers of an installation.
const SECRET_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A server that may send to this machine, with retries that a test can wait for unless `args` say otherwise.
pub fn start(installation: &Installation, args: &[&str]) -> Server {
    let mut all = vec!["--allow-insecure-webhooks", "--webhook-secret-key", SECRET_KEY];
    if !args.contains(&"--webhook-retry-schedule") {
        all.extend(["--webhook-retry-schedule", "1s,1s,1s,1s,1s,1s"]);
    }
    all.extend(args);
    installation.start(&all)
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
        self.server.post("/api/events", &self.key, &crate::common::server::event(event_type, None, payload)).id()
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

/// How many of the request's signatures are made with `secret`, as the specification says and not as the server does.
pub fn signatures_of(seen: &Seen, secret: &str) -> usize {
    let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let (id, timestamp) = (seen.header("webhook-id").unwrap(), seen.header("webhook-timestamp").unwrap());
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", &seen.body].concat();
    let right = format!("v1,{}", BASE64_STANDARD.encode(ring::hmac::sign(&key, &signed)));
    seen.header("webhook-signature").unwrap().split(' ').filter(|signature| *signature == right).count()
}

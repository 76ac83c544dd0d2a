//! A client on a runtime of its own, as the sender has one.

use std::collections::HashMap;
use std::future::ready;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use tokio::runtime::Runtime;
use uuid::Uuid;

use millrace_base::event::OrgId;
use millrace_webhooks::client::{
    ClientConfig, Request, Resolve, ResolvedName, ResolverFiles, TrustRoots, Unresolved, Unsent, WebhookClient,
};
use millrace_webhooks::delivery::outcome::{ErrorClass, Outcome, ReceiverResponse};
use millrace_webhooks::endpoint::target_policy::TargetPolicy;

/// Long enough for everything that is not meant to time out.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the fixture sends.
pub const BODY: &str = r#"{"type":"order.created","data":1}"#;

/// Plain http to anywhere.
pub fn insecure() -> ClientConfig {
    let policy = TargetPolicy { allow_insecure: true, ..TargetPolicy::default() };
    ClientConfig {
        policy,
        timeout: PATIENCE,
        connect_timeout: PATIENCE,
        response_bytes_max: 64 * 1024,
        roots: TrustRoots::Webpki,
        ca_file: None,
        proxy: None,
        resolver_files: ResolverFiles::default(),
    }
}

/// https only, and 127.0.0.0/8 as an allowed private network.
pub fn secure() -> ClientConfig {
    let allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let policy = TargetPolicy { allow_insecure: false, allowed_networks, ..TargetPolicy::default() };
    ClientConfig { policy, ..insecure() }
}

/// Gives names the addresses it was told; each lookup of a name takes its next answer, the last stays.
#[derive(Default)]
pub struct Names {
    answers: Mutex<HashMap<&'static str, Vec<Vec<IpAddr>>>>,
    asked: Mutex<Vec<String>>,
}

impl Names {
    pub fn with(self, name: &'static str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.answers.lock().unwrap().entry(name).or_default().push(addresses);
        self
    }

    /// Which names were looked up.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ResolvedName, Unresolved>> {
        self.asked.lock().unwrap().push(name.to_owned());
        let mut answers = self.answers.lock().unwrap();
        let addresses = match answers.get_mut(name) {
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
            None => Vec::new(),
        };
        let found = ResolvedName { addresses, ttl: Duration::ZERO };
        let is_none = found.addresses.is_empty();
        Box::pin(ready(if is_none { Err(Unresolved::Name("there is no such name")) } else { Ok(found) }))
    }
}

/// A client and what it runs on.
pub struct Fixture {
    runtime: Runtime,
    client: WebhookClient,
}

impl Fixture {
    pub fn new(config: ClientConfig) -> Self {
        Self::on(WebhookClient::new(config).unwrap())
    }

    pub fn with_names(config: ClientConfig, names: &Arc<Names>) -> Self {
        Self::on(WebhookClient::with_resolver(config, Arc::clone(names) as Arc<dyn Resolve>).unwrap())
    }

    fn on(client: WebhookClient) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, client }
    }

    pub fn post(&self, url: &str) -> Outcome {
        self.send(request(url))
    }

    pub fn send(&self, request: Request) -> Outcome {
        self.runtime.block_on(attempt(&self.client, request))
    }

    /// What an attempt shows of its error: the word and the detail.
    pub fn error(&self, url: &str) -> (ErrorClass, String) {
        let outcome = self.runtime.block_on(whole_attempt(&self.client, request(url))).unwrap();
        let error = outcome.error.expect("it fails");
        (error.class, error.detail.unwrap_or_default().into_owned())
    }

    /// Why it is put off.
    pub fn postponed(&self, url: &str) -> &'static str {
        self.runtime.block_on(whole_attempt(&self.client, request(url))).unwrap_err()
    }

    /// The same where the thread stands still as soon as the attempt has begun, for so long.
    pub fn postponed_by(&self, url: &str, standstill: Duration) -> &'static str {
        let held_up = async { std::thread::sleep(standstill) };
        let both = async { tokio::join!(biased; whole_attempt(&self.client, request(url)), held_up).0 };
        self.runtime.block_on(both).unwrap_err()
    }

    /// Sends them side by side.
    pub fn post_all(&self, url: &str, count: usize) -> Vec<Outcome> {
        let sends = (0..count).map(|_| attempt(&self.client, request(url)));
        self.runtime.block_on(futures_util::future::join_all(sends))
    }

    /// Lets the connections' tasks run.
    pub fn idle(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }
}

/// What came of it, without the details of an error.
async fn attempt(client: &WebhookClient, request: Request) -> Outcome {
    let mut outcome = whole_attempt(client, request).await.unwrap();
    outcome.error = outcome.error.map(|error| error.class.into());
    outcome
}

async fn whole_attempt(client: &WebhookClient, request: Request) -> Result<Outcome, &'static str> {
    let (org, until) = (OrgId(Uuid::nil()), Instant::now() + PATIENCE);
    let route = match client.pooled_route(&request.url, org) {
        Some(route) => Ok(route),
        None => client.resolve_route(&request.url, org, until).await,
    };
    match route {
        Ok(route) => client.send(route, request).await,
        Err(Unsent::Failed(error)) => Ok(Outcome { response: None, error: Some(error) }),
        Err(Unsent::Postponed(why)) => Err(why),
    }
}

pub fn request(url: &str) -> Request {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("webhook-id", HeaderValue::from_static("evt_1"));
    Request { url: url.parse().unwrap(), headers, body: Bytes::from_static(BODY.as_bytes()) }
}

pub fn answered(status: u16, body: &str) -> Outcome {
    Outcome { response: Some(ReceiverResponse { status, retry_after: None, body: body.to_owned() }), error: None }
}

pub fn failed(error: ErrorClass) -> Outcome {
    Outcome { response: None, error: Some(error.into()) }
}

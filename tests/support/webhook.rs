//! What servers are started with that send webhooks to a test, and how their requests are signed.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::receiver::Seen;

/// What seals secrets, the same for all servers of an installation.
pub const SECRET_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// What a server is started with that may send to this machine, with that key and with retries that a test can wait for
/// unless `args` say otherwise.
pub fn arguments<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["--allow-insecure-webhooks"];
    if !args.contains(&"--webhook-secret-key") {
        all.extend(["--webhook-secret-key", SECRET_KEY]);
    }
    if !args.contains(&"--webhook-retry-schedule") {
        all.extend(["--webhook-retry-schedule", "1s,1s,1s,1s,1s,1s"]);
    }
    all.extend(args);
    all
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

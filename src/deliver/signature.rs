//! Standard Webhooks signatures: `v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`.

use super::secret::WebhookSecret;

/// The value of `webhook-signature`: one signature for each secret, separated by spaces. `timestamp` is in seconds since
/// 1970.
pub fn sign<'a>(
    secrets: impl Iterator<Item = &'a WebhookSecret>,
    webhook_id: &str,
    timestamp: i64,
    body: &[u8],
) -> String {
    let _ = (secrets.count(), webhook_id, timestamp, body);
    todo!()
}

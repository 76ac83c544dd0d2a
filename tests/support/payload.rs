//! Events as clients send them: objects, arrays, short and long text, escapes, numbers of every kind.

use std::fmt::Write;

/// A JSON object of exactly `bytes` bytes (at least 64).
pub fn json(bytes: usize) -> Vec<u8> {
    const FRAME: usize = r#"{"items":[],"note":""}"#.len();
    let mut items = String::new();
    let mut item = String::new();
    for n in 0u64.. {
        item.clear();
        let comma = if n == 0 { "" } else { "," };
        let (id, price) = (48_213 + n * 7919, n * 1999 % 100_000);
        write!(
            item,
            r#"{comma}{{"id":{id},"sku":"SKU-{id:08}","title":"Kettle \"Nº {n}\", brushed steel","price":{}.{:02},"discount":-1.5e-2,"tags":["kitchen","new",null],"stock":{{"berlin":{},"lyon":0}},"gift":{}}}"#,
            price / 100,
            price % 100,
            n % 17,
            n % 3 == 0,
        )
        .expect("writing to a String");
        if FRAME + items.len() + item.len() > bytes {
            break;
        }
        items.push_str(&item);
    }
    let note = "x".repeat(bytes - FRAME - items.len());
    format!(r#"{{"items":[{items}],"note":"{note}"}}"#).into_bytes()
}

/// The body of a single-event request with a payload of exactly `payload_bytes` bytes.
pub fn event_body(payload_bytes: usize, dedup_id: Option<&str>) -> Vec<u8> {
    let dedup_id = dedup_id.map_or(String::new(), |id| format!(r#""dedup_id":"{id}","#));
    let mut body = format!(r#"{{"type":"user.login",{dedup_id}"payload":"#).into_bytes();
    body.extend(json(payload_bytes));
    body.push(b'}');
    body
}

//! A cache of name lookups: at most one lookup runs per name, however many attempts wait for it.
//!
//! - Each lookup is its own task and ends by itself; an attempt waits for it only as long as it may. At most
//!   [`WEBHOOK_LOOKUPS_MAX`] run, shared fairly between organisations (`lookup_slots.rs`): names that do not answer use up
//!   only the slots of their own organisation.
//! - Addresses are cached for their TTL, and a name without an address for [`WEBHOOK_NAME_FAILED_TIME`]. A change of the
//!   system's files empties the cache. Failures on this server's side are not cached.
//! - Callers check the addresses against the target policy, cached or not.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use quick_cache::sync::Cache;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use millrace_base::event::OrgId;
use millrace_base::limits::{
    WEBHOOK_KNOWN_ADDRESSES_MAX, WEBHOOK_LOOKUP_WAIT, WEBHOOK_LOOKUPS_MAX, WEBHOOK_NAME_FAILED_TIME,
    WEBHOOK_NAME_KNOWN_TIME_MAX, WEBHOOK_NAMES_KNOWN_MAX, WEBHOOK_VETTED_ADDRESSES_MAX,
};

use super::lookup_slots::{LookupSlot, LookupSlots};

/// A source of addresses for names. Its futures run on the sender's runtime, several at a time, and must not block it.
pub trait Resolve: Send + Sync {
    /// All addresses of `name` (in lower case), the preferred ones first. Ends within [`WEBHOOK_LOOKUP_WAIT`].
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ResolvedName, Unresolved>>;

    /// The version of the resolver's configuration. When it changes, all earlier answers are obsolete.
    fn generation(&self) -> BoxFuture<'_, u64> {
        Box::pin(std::future::ready(0))
    }
}

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedName {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// How long they may be cached.
    pub ttl: Duration,
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// The name is at fault: it does not exist, has no address, or no name server answers for it. Gives the reason.
    Name(&'static str),
    /// This server's side is at fault: its name servers do not answer, or no lookup slot was free in time.
    Resolver,
}

type LookupResult = Result<Arc<[IpAddr]>, Unresolved>;

#[derive(Clone)]
struct CachedLookup {
    answer: LookupResult,
    until: Instant,
    generation: u64,
}

/// The running lookups and the cached results.
pub struct LookupCache {
    resolver: Arc<dyn Resolve>,
    known: Arc<Cache<String, CachedLookup>>,
    running: RunningLookups,
    slots: LookupSlots,
}

impl LookupCache {
    pub fn new(resolver: Arc<dyn Resolve>) -> Self {
        Self {
            resolver,
            known: Arc::new(Cache::new(WEBHOOK_NAMES_KNOWN_MAX)),
            running: RunningLookups::default(),
            slots: LookupSlots::new(WEBHOOK_LOOKUPS_MAX),
        }
    }

    /// All addresses of `name`, at least one, for a delivery of `org`. [`Unresolved::Resolver`] if there is no result by
    /// `until` or within [`WEBHOOK_LOOKUP_WAIT`].
    pub async fn addresses(&self, name: &str, org: OrgId, until: Instant) -> LookupResult {
        let until = until.min(Instant::now() + WEBHOOK_LOOKUP_WAIT);
        timeout_at(until, self.find(name, org)).await.unwrap_or(Err(Unresolved::Resolver))
    }

    async fn find(&self, name: &str, org: OrgId) -> LookupResult {
        let generation = self.resolver.generation().await;
        let mut slot = None;
        let mut answer = loop {
            if let Some(known) = self.known(name, generation) {
                return known;
            }
            if let Some(running) = self.running.find(name) {
                break running;
            }
            match slot.take() {
                Some(slot) => break self.begin(name, slot, generation),
                // While this waits, another lookup of the name may start or finish: check again.
                None => slot = Some(self.slots.take(org).await),
            }
        };
        drop(slot);
        // An error means that the resolver panicked or that the runtime shuts down.
        let answer = answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        answer.unwrap_or(Err(Unresolved::Resolver))
    }

    fn known(&self, name: &str, generation: u64) -> Option<LookupResult> {
        let known = self.known.get(name)?;
        (known.until > Instant::now() && known.generation == generation).then_some(known.answer)
    }

    fn begin(&self, name: &str, slot: LookupSlot, generation: u64) -> watch::Receiver<Option<LookupResult>> {
        let (sender, answer) = watch::channel(None);
        self.running.lock().insert(name.to_owned(), answer.clone());
        let entry = RunningEntry { running: self.running.clone(), name: name.to_owned() };
        let (resolver, known) = (Arc::clone(&self.resolver), Arc::clone(&self.known));
        tokio::spawn(async move {
            let found = resolver.resolve(&entry.name).await.and_then(|found| match found.addresses.len() {
                0..=WEBHOOK_VETTED_ADDRESSES_MAX => Ok(found),
                _ => Err(Unresolved::Name("the name has more addresses than any receiver needs")),
            });
            let kept_for = match &found {
                Ok(found) if found.addresses.len() > WEBHOOK_KNOWN_ADDRESSES_MAX => Duration::ZERO,
                Ok(found) => found.ttl.min(WEBHOOK_NAME_KNOWN_TIME_MAX),
                Err(Unresolved::Name(_)) => WEBHOOK_NAME_FAILED_TIME,
                Err(Unresolved::Resolver) => Duration::ZERO,
            };
            let answer: LookupResult = found.map(|found| found.addresses.into());
            if kept_for > Duration::ZERO {
                let until = Instant::now() + kept_for;
                known.insert(entry.name.clone(), CachedLookup { answer: answer.clone(), until, generation });
            }
            // From here on callers find the cached result or start a new lookup.
            drop(entry);
            sender.send_replace(Some(answer));
            drop(slot);
        });
        answer
    }
}

#[derive(Clone, Default)]
struct RunningLookups(Arc<Mutex<HashMap<String, watch::Receiver<Option<LookupResult>>>>>);

impl RunningLookups {
    fn find(&self, name: &str) -> Option<watch::Receiver<Option<LookupResult>>> {
        self.lock().get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<LookupResult>>>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// Removes a lookup from [`RunningLookups`], also when the resolver panics or the runtime shuts down.
struct RunningEntry {
    running: RunningLookups,
    name: String,
}

impl Drop for RunningEntry {
    fn drop(&mut self) {
        self.running.lock().remove(&self.name);
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;

//! Names become addresses: one lookup a name at a time, however many attempts wait for it, and what came of it is
//! remembered.
//!
//! - A lookup is a task of its own, which ends by itself; attempts wait for it no longer than they may. At most
//!   [`WEBHOOK_LOOKUPS_MAX`] run, and organisations share them (`slots.rs`): names that do not answer cost their own
//!   organisation's places.
//! - Addresses are remembered for their time to live, a name that has none for [`WEBHOOK_NAME_FAILED_TIME`]; all of it
//!   is forgotten when the system's files change. Nothing is remembered of what says nothing about the name.
//! - Whoever uses addresses vets them, remembered or not.

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

/// Who knows the addresses of names. Its futures run on the sender's runtime, several at a time, and must not block it.
pub trait Resolve: Send + Sync {
    /// All addresses of `name`, in lower case, the preferred ones first. Ends by itself within [`WEBHOOK_LOOKUP_WAIT`].
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ResolvedName, Unresolved>>;

    /// Which state of its sources it answers from: with another one nothing holds that it said before.
    fn generation(&self) -> BoxFuture<'_, u64> {
        Box::pin(std::future::ready(0))
    }
}

/// What a name has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedName {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// How long they may be used.
    pub ttl: Duration,
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// Because of the name: it does not exist, has no address, or nobody answers for it. Says which.
    Name(&'static str),
    /// Because of this server's side: its name servers do not answer, or others' lookups are before this one.
    Resolver,
}

type LookupResult = Result<Arc<[IpAddr]>, Unresolved>;

#[derive(Clone)]
struct CachedLookup {
    answer: LookupResult,
    until: Instant,
    generation: u64,
}

/// The lookups that run, and what came of those that ran.
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

    /// All addresses of `name`, at least one, for something of `org`; [`Unresolved::Resolver`] where they are not there
    /// by `until`, or within [`WEBHOOK_LOOKUP_WAIT`].
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
                // While it waits another one may begin, or be over.
                None => slot = Some(self.slots.take(org).await),
            }
        };
        drop(slot);
        // An error means that the resolver panicked, or that the runtime goes away.
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
            // Whoever comes from now on finds it there, or asks anew.
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

/// Ends the entry of a lookup, also when the resolver panics or the runtime goes away.
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

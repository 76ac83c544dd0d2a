//! Names become addresses.
//!
//! The system's resolver blocks for as long as it likes and cannot be cancelled, so it runs on the runtime's blocking
//! threads, and what it holds is bounded: one lookup a name at a time, however many attempts wait for its answer, and
//! [`WEBHOOK_LOOKUPS_MAX`] in all. A lookup keeps its place until the resolver returns, not until the attempt that
//! began it gives up; so an endpoint whose name server is a black hole holds one thread. Nothing is cached: connections
//! are kept, lookups are rare, and an answer that is used again is one that can be out of date.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Semaphore, watch};

use crate::deliver::outcome::ErrorClass;
use crate::limits::WEBHOOK_LOOKUPS_MAX;

/// Who knows the addresses of names. Called on blocking threads, several at a time.
pub trait Resolve: Send + Sync {
    /// All addresses of `name`, the preferred ones first.
    fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// `getaddrinfo`.
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
    }
}

/// `None` until the lookup has ended; an empty list where the name has no address or could not be looked up.
type Answer = Option<Arc<[IpAddr]>>;

/// The lookups that run.
pub struct Lookups {
    resolver: Arc<dyn Resolve>,
    running: Running,
    places: Arc<Semaphore>,
}

impl Lookups {
    pub fn new(resolver: Arc<dyn Resolve>) -> Self {
        Self { resolver, running: Running::default(), places: Arc::new(Semaphore::new(WEBHOOK_LOOKUPS_MAX)) }
    }

    /// All addresses of `name`, at least one.
    pub async fn addresses(&self, name: &str) -> Result<Arc<[IpAddr]>, ErrorClass> {
        let running = self.running.find(name);
        let mut answer = match running {
            Some(answer) => answer,
            None => self.begin(name).await,
        };
        // An error means that the resolver panicked.
        let addresses = answer.wait_for(Option::is_some).await.ok().and_then(|addresses| addresses.clone());
        addresses.filter(|addresses| !addresses.is_empty()).ok_or(ErrorClass::DnsFailed)
    }

    async fn begin(&self, name: &str) -> watch::Receiver<Answer> {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        let (sender, answer) = match self.running.enter(name) {
            Entered::First(sender, answer) => (sender, answer),
            // Another attempt got its place while this one waited.
            Entered::Running(answer) => return answer,
        };
        let resolver = Arc::clone(&self.resolver);
        let entry = Entry { running: self.running.clone(), name: name.to_owned() };
        tokio::task::spawn_blocking(move || {
            let addresses = resolver.resolve(&entry.name).unwrap_or_default();
            // Whoever comes from now on asks anew.
            drop(entry);
            sender.send_replace(Some(addresses.into()));
            drop(place);
        });
        answer
    }
}

#[derive(Clone, Default)]
struct Running(Arc<Mutex<HashMap<String, watch::Receiver<Answer>>>>);

enum Entered {
    First(watch::Sender<Answer>, watch::Receiver<Answer>),
    Running(watch::Receiver<Answer>),
}

impl Running {
    fn find(&self, name: &str) -> Option<watch::Receiver<Answer>> {
        self.lock().get(name).cloned()
    }

    fn enter(&self, name: &str) -> Entered {
        let mut running = self.lock();
        if let Some(answer) = running.get(name) {
            return Entered::Running(answer.clone());
        }
        let (sender, answer) = watch::channel(None);
        running.insert(name.to_owned(), answer.clone());
        Entered::First(sender, answer)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Answer>>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// Ends the entry of a lookup, also when the resolver panics or the runtime goes away before it began.
struct Entry {
    running: Running,
    name: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.lock().remove(&self.name);
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;

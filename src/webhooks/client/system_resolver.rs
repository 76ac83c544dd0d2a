//! Resolves names as the C library does: `/etc/hosts` first, then the name servers, search list and options of
//! `/etc/resolv.conf`. Other sources in `nsswitch.conf` are ignored.
//!
//! [`hickory_resolver`] sends the queries. This module decides which name server is asked, for how long, and what an answer
//! means, because that decides who is at fault:
//!
//! - "No such name" and "no address" are facts about the name.
//! - After a refusal or a timeout the next name server is asked. If all of them refuse or time out, the name is at fault only
//!   if one of them answers for the root zone, or has just answered for another name. Otherwise the name servers are at
//!   fault, and nothing is known about the name.
//!
//! The files are checked for changes on a lookup, at most every [`NAME_FILES_CHECK_INTERVAL`], and reloaded when they changed.
//! Without a name server in resolv.conf the server is `127.0.0.1`, as in the C library.

// Over 500 lines: the files, the order of the queries and the decision who is at fault are one algorithm.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select, select_ok};
use hickory_resolver::Hosts;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::{Instant, timeout};

use millrace_base::limits::{
    NAME_FILE_BYTES_MAX, NAME_FILES_CHECK_INTERVAL, NAME_SERVERS_MAX, WEBHOOK_LOOKUP_PROBE_TIMEOUT,
    WEBHOOK_LOOKUP_TIMEOUT, WEBHOOK_LOOKUP_TRY_TIMEOUT, WEBHOOK_LOOKUPS_MAX, WEBHOOK_NAME_KNOWN_TIME_MAX,
    WEBHOOK_NEXT_ADDRESS_AFTER,
};

use super::lookup::{Resolve, ResolvedName, Unresolved};

/// How long the result of a probe for the root zone is reused.
const PROBE_VALID_FOR: Duration = Duration::from_secs(1);

/// How long a name server that timed out where another one answered is asked last.
const SKIPPED_FOR: Duration = Duration::from_secs(30);

/// The system files that configure name resolution.
#[derive(Clone, Debug)]
pub struct ResolverFiles {
    /// Name servers, search list and options.
    pub resolv_conf: PathBuf,
    /// Static names and addresses.
    pub hosts: PathBuf,
    /// The port of the name servers, which resolv.conf cannot contain. Tests change it.
    pub port: u16,
}

impl Default for ResolverFiles {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into(), port: 53 }
    }
}

/// Resolves names as the C library does.
pub struct SystemResolver {
    files: Arc<ResolverFiles>,
    /// Locked while the files are read: one lookup reads them, the others wait for it.
    current: tokio::sync::Mutex<Option<LoadedSetup>>,
    /// Whether the name servers last failed to answer.
    are_silent: Arc<AtomicBool>,
}

struct LoadedSetup {
    checked_at: Instant,
    stamps: [FileStamp; 2],
    generation: u64,
    setup: Arc<ResolverSetup>,
}

/// Identifies a version of a file; `None` if it does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp(Option<[i64; 4]>);

impl FileStamp {
    fn of(path: &Path) -> Self {
        let of = |file: Metadata| [file.mtime(), file.mtime_nsec(), file.ino() as i64, file.size() as i64];
        Self(fs::metadata(path).ok().map(of))
    }
}

impl SystemResolver {
    /// The files are read on the first lookup.
    pub fn new(files: ResolverFiles) -> Self {
        Self { files: Arc::new(files), current: tokio::sync::Mutex::default(), are_silent: Arc::default() }
    }

    /// The contents of the files, checked at most [`NAME_FILES_CHECK_INTERVAL`] ago.
    async fn current(&self) -> (Arc<ResolverSetup>, u64) {
        let mut current = self.current.lock().await;
        if let Some(current) = &*current
            && current.checked_at.elapsed() < NAME_FILES_CHECK_INTERVAL
        {
            return (Arc::clone(&current.setup), current.generation);
        }
        let (files, before) = (Arc::clone(&self.files), current.as_ref().map(|current| current.stamps));
        let read = tokio::task::spawn_blocking(move || {
            let stamps = [FileStamp::of(&files.resolv_conf), FileStamp::of(&files.hosts)];
            (before != Some(stamps)).then(|| (stamps, ResolverSetup::read(&files)))
        });
        let read = read.await.ok().flatten();
        let checked_at = Instant::now();
        match (&mut *current, read) {
            (Some(current), None) => current.checked_at = checked_at,
            (Some(current), Some((stamps, setup))) => {
                let generation = current.generation + 1;
                *current = LoadedSetup { checked_at, stamps, generation, setup: Arc::new(setup) };
                tracing::info!(
                    name_servers = current.setup.shown_servers(),
                    "the system's name servers or hosts have changed; webhooks use them from now on"
                );
            }
            (none, read) => {
                // Nothing was read: the runtime shuts down.
                let (stamps, setup) = read.unwrap_or_else(|| ([FileStamp(None); 2], ResolverSetup::without_files()));
                *none = Some(LoadedSetup { checked_at, stamps, generation: 0, setup: Arc::new(setup) });
            }
        }
        let current = current.as_ref().expect("it has just been read");
        (Arc::clone(&current.setup), current.generation)
    }

    fn note(&self, setup: &ResolverSetup, answers: bool) {
        let were_silent = self.are_silent.swap(!answers, Ordering::Relaxed);
        if were_silent != answers {
            return;
        }
        let name_servers = setup.shown_servers();
        if answers {
            tracing::info!(name_servers, "the name servers answer again");
        } else {
            tracing::warn!(
                name_servers,
                "the system's name servers do not answer; webhooks to hosts that are not cached wait until they do"
            );
        }
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ResolvedName, Unresolved>> {
        Box::pin(async move {
            let (setup, _) = self.current().await;
            let began = Instant::now();
            let answer = setup.resolve(name, began).await;
            if answer == Err(Unresolved::Resolver) {
                self.note(&setup, false);
            } else if setup.has_answered_since(began) {
                self.note(&setup, true);
            }
            answer
        })
    }

    fn generation(&self) -> BoxFuture<'_, u64> {
        Box::pin(async move { self.current().await.1 })
    }
}

/// The contents of the files.
struct ResolverSetup {
    hosts: Hosts,
    servers: Vec<NameServer>,
    search: Vec<Name>,
    ndots: usize,
    rounds: usize,
    try_timeout: Duration,
    /// Whether the name servers answered for the root zone, and when.
    probe: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

struct NameServer {
    address: IpAddr,
    resolver: TokioResolver,
    /// When it last gave a useful answer.
    answered_at: LastTime,
    /// When it last timed out on a name that another one answered.
    last_skipped_at: LastTime,
}

/// The time of the last event of a kind.
#[derive(Default)]
struct LastTime(Mutex<Option<Instant>>);

impl LastTime {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a name server gave no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerAnswer {
    NoSuchName,
    NoAddress,
    /// The server refused or failed.
    Refused,
    /// No response in time.
    Silence,
}

impl ServerAnswer {
    fn of(error: &NetError) -> Self {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain => Self::NoSuchName,
                ResponseCode::NoError => Self::NoAddress,
                _ => Self::Refused,
            },
            NetError::Dns(_) | NetError::Proto(_) => Self::Refused,
            _ => Self::Silence,
        }
    }

    fn is_useful(self) -> bool {
        matches!(self, Self::NoSuchName | Self::NoAddress)
    }

    /// The error detail of the attempt if the name is at fault.
    fn shown(self) -> &'static str {
        match self {
            Self::NoSuchName => "there is no such name",
            Self::NoAddress => "the name has no address",
            Self::Refused => "the name servers refuse to answer for this name, or failed to find out",
            Self::Silence => "the name servers give no answer for this name",
        }
    }
}

impl ResolverSetup {
    fn read(files: &ResolverFiles) -> Self {
        let read = |path: &Path| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(path)?.take(NAME_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let unreadable = |path: &Path, error: &dyn std::fmt::Display| {
            tracing::warn!(file = %path.display(), %error, "webhooks resolve names without this file");
        };
        let mut hosts = Hosts::default();
        match read(&files.hosts).and_then(|bytes| hosts.read_hosts_conf(&*bytes)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => unreadable(&files.hosts, &error),
            _ => {}
        }
        let text = read(&files.resolv_conf).unwrap_or_else(|error| {
            unreadable(&files.resolv_conf, &error);
            Vec::new()
        });
        // The parser rejects a whole file that has no name server, or that has an invalid name in its search list.
        let parse = |text: &[u8]| {
            let with_default = [text, b"\nnameserver 127.0.0.1\n"].concat();
            parse_resolv_conf(text).or_else(|_| parse_resolv_conf(&with_default))
        };
        let parsed = parse(&text).or_else(|error| {
            let file = files.resolv_conf.display();
            tracing::warn!(%file, %error, "webhooks resolve names without the search list of this file");
            parse(&without_search(&text))
        });
        let (config, options) = parsed.unwrap_or_else(|error| {
            unreadable(&files.resolv_conf, &error);
            Default::default()
        });
        Self::new(hosts, config, &options, files.port)
    }

    fn without_files() -> Self {
        Self::new(Hosts::default(), ResolverConfig::default(), &ResolverOpts::default(), 53)
    }

    fn new(hosts: Hosts, config: ResolverConfig, options: &ResolverOpts, port: u16) -> Self {
        let (domain, search, servers) = config.into_parts();
        let mut addresses: Vec<IpAddr> = servers.iter().map(|server| server.ip).collect();
        addresses.truncate(NAME_SERVERS_MAX);
        if addresses.is_empty() {
            addresses.push(Ipv4Addr::LOCALHOST.into());
        }
        let try_timeout = options.timeout.clamp(Duration::from_secs(1), WEBHOOK_LOOKUP_TRY_TIMEOUT);
        let server = |address| NameServer {
            address,
            resolver: resolver(SocketAddr::new(address, port), options.edns0, try_timeout),
            answered_at: LastTime::default(),
            last_skipped_at: LastTime::default(),
        };
        Self {
            hosts,
            servers: addresses.into_iter().map(server).collect(),
            // Without a search list the domain is searched.
            search: if search.is_empty() { domain.into_iter().collect() } else { search },
            ndots: options.ndots,
            rounds: options.attempts.max(1),
            try_timeout,
            probe: tokio::sync::Mutex::default(),
        }
    }

    fn shown_servers(&self) -> String {
        self.servers.iter().map(|server| server.address.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn has_answered_since(&self, since: Instant) -> bool {
        self.servers.iter().any(|server| server.answered_at.get().is_some_and(|at| at >= since))
    }

    async fn resolve(&self, text: &str, began: Instant) -> Result<ResolvedName, Unresolved> {
        let Ok(name) = Name::from_str_relaxed(text) else {
            return Err(Unresolved::Name("the name is none that name servers know"));
        };
        if let Some(found) = self.listed(&name) {
            return Ok(found);
        }
        match special(text) {
            Some(SpecialName::Loopback) => {
                let addresses = vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
                return Ok(ResolvedName { addresses, ttl: WEBHOOK_NAME_KNOWN_TIME_MAX });
            }
            Some(SpecialName::Nothing) => return Err(Unresolved::Name(ServerAnswer::NoSuchName.shown())),
            None => {}
        }
        let mut answer = ServerAnswer::NoSuchName;
        let mut unclear = None;
        for name in self.names(&name) {
            match self.ask(&name, self.rounds, WEBHOOK_LOOKUP_TIMEOUT.saturating_sub(began.elapsed())).await {
                Ok(found) => return Ok(found),
                Err(ServerAnswer::NoSuchName) => {}
                Err(ServerAnswer::NoAddress) => answer = ServerAnswer::NoAddress,
                // As in the C library: this outranks "no such name" for another name of the list, and a timeout ends the search.
                Err(other) => {
                    answer = other;
                    unclear = Some(name);
                    if answer == ServerAnswer::Silence {
                        break;
                    }
                }
            }
        }
        let Some(name) = unclear.filter(|_| !answer.is_useful()) else { return Err(Unresolved::Name(answer.shown())) };
        if self.has_answered_since(began) {
            return Err(Unresolved::Name(answer.shown()));
        }
        if !self.probe_root().await {
            return Err(Unresolved::Resolver);
        }
        // The name servers may have recovered meanwhile.
        self.ask(&name, 1, self.try_timeout).await.map_err(|answer| Unresolved::Name(answer.shown()))
    }

    /// The addresses in the hosts file. If there are any, no name server is asked.
    fn listed(&self, name: &Name) -> Option<ResolvedName> {
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lookups = [of(RecordType::A), of(RecordType::AAAA)];
        let addresses: Vec<IpAddr> = lookups.iter().flatten().flat_map(addresses_of).collect();
        // Cached as long as possible: a change of the file empties the cache.
        (!addresses.is_empty()).then_some(ResolvedName { addresses, ttl: WEBHOOK_NAME_KNOWN_TIME_MAX })
    }

    /// The names to query, in order: a name with at least `ndots` dots is tried as it is before the search list, another one
    /// after it.
    fn names(&self, name: &Name) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let searched = self.search.iter().filter_map(|domain| {
            let mut name = name.clone().append_domain(domain).ok()?;
            name.set_fqdn(true);
            Some(name)
        });
        if usize::from(name.num_labels()) > self.ndots {
            std::iter::once(absolute).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(absolute.clone())).collect()
        }
    }

    /// Asks one name server after the other, `rounds` times, and starts no query after `time`. The first round is always
    /// completed: the last server's answer could clear the name.
    async fn ask(&self, name: &Name, rounds: usize, time: Duration) -> Result<ResolvedName, ServerAnswer> {
        let began = Instant::now();
        let mut answer = ServerAnswer::Silence;
        let mut silent: Vec<&NameServer> = Vec::new();
        for round in 0..rounds {
            // A dead name server delays the lookup that finds it dead, not all later ones.
            let (mut servers, others): (Vec<_>, Vec<_>) = self.servers.iter().partition(|server| server.is_first());
            servers.extend(others);
            for (at, server) in servers.into_iter().enumerate() {
                if began.elapsed() >= time && (round > 0 || at == 0) {
                    return Err(answer);
                }
                match server.ask(name, self.try_timeout).await {
                    Err(ServerAnswer::Silence) => silent.push(server),
                    Err(ServerAnswer::Refused) => answer = ServerAnswer::Refused,
                    answer => {
                        server.answered_at.note();
                        silent.iter().filter(|silent| silent.address != server.address).for_each(|silent| {
                            silent.last_skipped_at.note();
                        });
                        return answer;
                    }
                }
            }
            // A refusal is an answer; asking again is useless.
            if silent.is_empty() {
                break;
            }
        }
        Err(answer)
    }

    /// Whether any name server answers for the root zone, which each of them knows.
    async fn probe_root(&self) -> bool {
        let mut probe = self.probe.lock().await;
        if let Some((at, answers)) = *probe
            && at.elapsed() < PROBE_VALID_FOR
        {
            return answers;
        }
        let answers = select_ok(self.servers.iter().map(|server| Box::pin(server.probe()))).await.is_ok();
        *probe = Some((Instant::now(), answers));
        answers
    }
}

impl NameServer {
    /// Queries both address families in parallel. When one has addresses the other gets only a little longer: some name
    /// servers never answer IPv6 queries.
    async fn ask(&self, name: &Name, time: Duration) -> Result<ResolvedName, ServerAnswer> {
        let of = |kind| {
            let lookup = timeout(time, self.resolver.lookup(name.clone(), kind));
            Box::pin(async move {
                let lookup =
                    lookup.await.map_err(|_| ServerAnswer::Silence)?.map_err(|error| ServerAnswer::of(&error))?;
                if addresses_of(&lookup).next().is_none() { Err(ServerAnswer::NoAddress) } else { Ok(lookup) }
            })
        };
        let (first, other) = match select(of(RecordType::A), of(RecordType::AAAA)).await {
            Either::Left((first, other)) | Either::Right((first, other)) => (first, other),
        };
        let second = match &first {
            Ok(_) => timeout(WEBHOOK_NEXT_ADDRESS_AFTER, other).await.unwrap_or(Err(ServerAnswer::Silence)),
            Err(_) => other.await,
        };
        let answer = match (first, second) {
            (Err(ServerAnswer::NoSuchName), Err(_)) | (Err(_), Err(ServerAnswer::NoSuchName)) => {
                ServerAnswer::NoSuchName
            }
            (Err(ServerAnswer::NoAddress), Err(answer)) | (Err(answer), Err(_)) => answer,
            (first, second) => return Ok(found(&[first.ok(), second.ok()])),
        };
        Err(answer)
    }

    /// Queries the root zone.
    async fn probe(&self) -> Result<(), ()> {
        match timeout(WEBHOOK_LOOKUP_PROBE_TIMEOUT, self.resolver.lookup(Name::root(), RecordType::NS)).await {
            Ok(Err(error)) if !ServerAnswer::of(&error).is_useful() => Err(()),
            Err(_) => Err(()),
            Ok(_) => {
                self.answered_at.note();
                Ok(())
            }
        }
    }

    /// Whether it is asked first, because it has not recently timed out where another one answered.
    fn is_first(&self) -> bool {
        self.last_skipped_at.get().is_none_or(|at| at.elapsed() >= SKIPPED_FOR)
    }
}

/// The contents of resolv.conf without its search list.
fn without_search(text: &[u8]) -> Vec<u8> {
    let is_kept = |line: &&[u8]| {
        let line = line.trim_ascii_start();
        !line.starts_with(b"search") && !line.starts_with(b"domain")
    };
    text.split(|byte| *byte == b'\n').filter(is_kept).collect::<Vec<_>>().join(&b'\n')
}

/// Special-use names that are never sent to a name server (RFC 6761, RFC 7686).
enum SpecialName {
    Loopback,
    Nothing,
}

fn special(name: &str) -> Option<SpecialName> {
    match name.trim_end_matches('.').rsplit('.').next()? {
        "localhost" => Some(SpecialName::Loopback),
        "invalid" | "onion" => Some(SpecialName::Nothing),
        _ => None,
    }
}

fn resolver(address: SocketAddr, edns0: bool, try_timeout: Duration) -> TokioResolver {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    let config = ResolverConfig::from_name_servers(vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.timeout = try_timeout;
    // This module does the retries, and `lookup.rs` the caching.
    options.attempts = 0;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.edns0 = edns0;
    options.max_active_requests = 4 * WEBHOOK_LOOKUPS_MAX;
    builder.build().expect("a resolver without TLS has nothing that can fail")
}

fn addresses_of(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr())
}

fn found(lookups: &[Option<Lookup>]) -> ResolvedName {
    let lookups = || lookups.iter().flatten();
    let mut addresses: Vec<IpAddr> = lookups().flat_map(addresses_of).collect();
    let v6 = addresses.iter().find(|address| address.is_ipv6()).copied();
    let is_v6_first = v6.is_some_and(has_route);
    addresses.sort_by_key(|address| address.is_ipv6() != is_v6_first);
    let valid_until = lookups().map(Lookup::valid_until).min().unwrap_or_else(std::time::Instant::now);
    ResolvedName { addresses, ttl: valid_until.saturating_duration_since(std::time::Instant::now()) }
}

/// Whether this machine has a route to the address; sends nothing.
fn has_route(address: IpAddr) -> bool {
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    UdpSocket::bind(any).is_ok_and(|socket| socket.connect(SocketAddr::new(address, 53)).is_ok())
}

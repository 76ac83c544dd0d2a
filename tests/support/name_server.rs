//! A name server on real sockets of a loopback address, which answers as it is told, or does not.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::CNAME;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use millrace_webhooks::client::ResolverFiles;

/// What is said about a name.
pub enum Said {
    /// These, of the family that is asked for, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// The same under the last of these names, each of which is another one for the one before.
    Aliases(Vec<&'static str>, Vec<IpAddr>),
    Code(ResponseCode),
    Nothing,
}

/// One address, not to be remembered.
pub fn address(text: &str) -> Said {
    Said::Addresses(vec![text.parse().unwrap()], 0)
}

pub const NO_SUCH_NAME: Said = Said::Code(ResponseCode::NXDomain);

/// Listens until it is dropped.
pub struct NameServer {
    pub address: IpAddr,
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    stopped: Arc<AtomicBool>,
    serving: Vec<JoinHandle<()>>,
}

impl NameServer {
    /// Says about each name, in lower case and without the last dot, what `answer` says; knows the root by itself, unless
    /// it says nothing about that.
    pub fn start(answer: impl Fn(&str) -> Said + Send + 'static) -> Self {
        Self::at("127.0.0.1", 0, answer)
    }

    /// What does not fit into 512 bytes is only said over TCP: not at a port that was asked for and is taken there.
    pub fn at(address: &str, port: u16, answer: impl Fn(&str) -> Said + Send + 'static) -> Self {
        const UDP_BYTES_MAX: usize = 512;
        let (socket, listener) = sockets(address, port);
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (asked, stopped) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let answer = Arc::new(Mutex::new(answer));
        let say = {
            let asked = Arc::clone(&asked);
            move |bytes: &[u8]| {
                let query = Message::from_vec(bytes).ok()?;
                let name = query.queries.first()?.name().to_string().trim_end_matches('.').to_lowercase();
                asked.lock().unwrap().push(name.clone());
                let said = (answer.lock().unwrap())(&name);
                Some((query.clone(), reply(&query, said)?))
            }
        };
        let mut serving = Vec::new();
        serving.push(thread::spawn({
            let (say, stopped) = (say.clone(), Arc::clone(&stopped));
            move || {
                let mut bytes = [0; 4096];
                while !stopped.load(Ordering::Relaxed) {
                    let Ok((read, from)) = socket.recv_from(&mut bytes) else { continue };
                    let Some((query, reply)) = say(&bytes[..read]) else { continue };
                    let mut text = reply.to_vec().unwrap();
                    if text.len() > UDP_BYTES_MAX {
                        text = truncated(&query).to_vec().unwrap();
                    }
                    let _ = socket.send_to(&text, from);
                }
            }
        }));
        serving.extend(listener.map(|listener| {
            listener.set_nonblocking(true).unwrap();
            let stopped = Arc::clone(&stopped);
            thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((connection, _)) => drop(talk(connection, |bytes| Some(say(bytes)?.1))),
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            })
        }));
        Self { address: address.parse().unwrap(), port, asked, stopped, serving }
    }

    /// Which names were asked for, each once for each family and time.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// How often for this one.
    pub fn count(&self, name: &str) -> usize {
        self.asked().iter().filter(|asked| *asked == name).count()
    }

    /// Files in `dir` that name it, with more lines of resolv.conf, and of the hosts file.
    pub fn files(&self, dir: &Path, more: &str, hosts: &str) -> ResolverFiles {
        let resolv_conf = format!("nameserver {}\noptions timeout:1 attempts:1\n{more}", self.address);
        files(dir, &resolv_conf, hosts, self.port)
    }
}

/// A UDP and a TCP socket on one port. If the kernel may choose it (0), one is taken that is free for both: other tests'
/// connections use TCP ports that are free for UDP.
fn sockets(address: &str, port: u16) -> (UdpSocket, Option<TcpListener>) {
    loop {
        let socket = UdpSocket::bind((address, port)).unwrap();
        let listener = TcpListener::bind((address, socket.local_addr().unwrap().port()));
        if port != 0 || listener.is_ok() {
            return (socket, listener.ok());
        }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Its port is free again then.
        self.serving.drain(..).for_each(|serving| drop(serving.join()));
    }
}

/// These files in `dir`.
pub fn files(dir: &Path, resolv_conf: &str, hosts: &str, port: u16) -> ResolverFiles {
    let write = |name: &str, text: &str| -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    ResolverFiles { resolv_conf: write("resolv.conf", resolv_conf), hosts: write("hosts", hosts), port }
}

/// Answers what is asked on a connection, each question behind its length.
fn talk(mut connection: TcpStream, say: impl Fn(&[u8]) -> Option<Message>) -> std::io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(Duration::from_millis(200)))?;
    loop {
        let mut length = [0; 2];
        connection.read_exact(&mut length)?;
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        connection.read_exact(&mut bytes)?;
        let Some(reply) = say(&bytes) else { continue };
        let text = reply.to_vec().unwrap();
        connection.write_all(&[&(text.len() as u16).to_be_bytes()[..], &text].concat())?;
    }
}

fn truncated(query: &Message) -> Message {
    let mut reply = empty(query);
    reply.metadata.truncation = true;
    reply
}

fn empty(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    reply
}

fn reply(query: &Message, said: Said) -> Option<Message> {
    let question = query.queries.first()?;
    let mut reply = empty(query);
    let is_asked = |address: &&IpAddr| (question.query_type() == RecordType::A) == address.is_ipv4();
    match said {
        Said::Nothing => return None,
        Said::Code(code) => reply.metadata.response_code = code,
        Said::Addresses(addresses, ttl) => {
            for address in addresses.iter().filter(is_asked) {
                reply.add_answer(Record::from_rdata(question.name().clone(), ttl, RData::from(*address)));
            }
        }
        Said::Aliases(names, addresses) => {
            let mut name = question.name().clone();
            for alias in names {
                let next = Name::from_ascii(alias).unwrap();
                reply.add_answer(Record::from_rdata(name, 60, RData::CNAME(CNAME(next.clone()))));
                name = next;
            }
            for address in addresses.iter().filter(is_asked) {
                reply.add_answer(Record::from_rdata(name.clone(), 60, RData::from(*address)));
            }
        }
    }
    Some(reply)
}

//! A disk that loses power.
//!
//! It keeps what is durable (what a file held at its last `sync`, the names at the last `sync_directory`) apart from
//! what the running system sees. After operation number N it is dead: that operation and all later ones fail, and
//! nothing more becomes durable. [`SimDisk::image`] then decides what the disk holds when the power is back: of each
//! write that was not synchronised nothing, all, or any of its sectors, perhaps with rubbish in some; of the names'
//! changes since `sync_directory` any (or, on a disk that keeps their order, the first so many), each atomic.
//!
//! Everything random comes from the caller's generator, so an image is a function of its seed and of the order in
//! which the operations came. Zeros are not stored, so a segment costs what is written to it.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millrace_journal::disk::{SegmentFile, Space, Storage};

use crate::power_loss::random::Random;

const BLOCK: usize = 4096;
static ZEROS: [u8; 1024 * 1024] = [0; 1024 * 1024];

/// What a disk holds: files by name.
#[derive(Clone, Default)]
pub struct Image(BTreeMap<String, Content>);

/// A file's bytes: the blocks that are not all zero, and its length.
#[derive(Clone, Default)]
struct Content {
    blocks: BTreeMap<u64, Arc<[u8; BLOCK]>>,
    len: u64,
}

impl Content {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (block, begin) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let (part, behind) = rest.split_at(rest.len().min(BLOCK - begin));
            let is_zero = *part == ZEROS[..part.len()];
            if is_zero && part.len() == BLOCK {
                self.blocks.remove(&block);
            } else if !is_zero || self.blocks.contains_key(&block) {
                let held = self.blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK]));
                Arc::make_mut(held)[begin..begin + part.len()].copy_from_slice(part);
            }
            (at, rest) = (at + part.len() as u64, behind);
        }
    }

    fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.len.min(offset.saturating_add(len as u64));
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        for (block, held) in self.blocks.range(offset / BLOCK as u64..end.div_ceil(BLOCK as u64)) {
            let from = (block * BLOCK as u64).max(offset);
            let to = ((block + 1) * BLOCK as u64).min(end);
            let held = &held[(from % BLOCK as u64) as usize..][..(to - from) as usize];
            bytes[(from - offset) as usize..(to - offset) as usize].copy_from_slice(held);
        }
        bytes
    }
}

/// A write that was not synchronised. `bytes` is `None` for zeros.
#[derive(Clone)]
struct Write {
    offset: u64,
    len: u64,
    bytes: Option<Arc<[u8]>>,
}

#[derive(Clone, Default)]
struct File {
    /// As the running system sees it.
    seen: Content,
    durable: Content,
    unsynced: Vec<Write>,
}

/// What an operation on the directory does to it, all of it or nothing: which file each name is after it.
type Change = Vec<(String, Option<usize>)>;

/// Sectors of what was being written when the power went.
#[derive(Clone, Copy, Debug)]
pub struct Tearing {
    pub sector_bytes: usize,
    /// Sectors reach the disk in the order of their places.
    pub is_in_order: bool,
    /// A sector may hold something that nobody wrote.
    pub has_rubbish: bool,
    /// Changes of names reach the disk in their order, as a file system with a journal of its own sees to.
    pub keeps_names_in_order: bool,
}

/// Whether the disk keeps its promises. One that does not shows that the checks find what it loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Honesty {
    Honest,
    /// `sync` says it is done and does nothing.
    ForgetsData,
    /// `sync_directory` says it is done and does nothing.
    ForgetsNames,
}

/// What goes wrong before the power goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The last operation that is carried out.
    pub cut_after: u64,
    /// Operations between which there is no space for a new file.
    pub full: Range<u64>,
    pub honesty: Honesty,
}

impl Plan {
    pub fn none() -> Self {
        Self { cut_after: u64::MAX, full: 0..0, honesty: Honesty::Honest }
    }
}

struct State {
    plan: Plan,
    operations: u64,
    is_cut: bool,
    files: Vec<File>,
    seen: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    changes: Vec<Change>,
    trace: Vec<String>,
}

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// A machine that starts with `image` on its disk.
    pub fn new(image: &Image, plan: Plan) -> Self {
        let file = |content: &Content| File { seen: content.clone(), durable: content.clone(), unsynced: Vec::new() };
        let names: BTreeMap<String, usize> = image.0.keys().cloned().zip(0..).collect();
        Self(Arc::new(Mutex::new(State {
            plan,
            operations: 0,
            is_cut: false,
            files: image.0.values().map(file).collect(),
            seen: names.clone(),
            durable: names,
            changes: Vec::new(),
            trace: Vec::new(),
        })))
    }

    pub fn is_cut(&self) -> bool {
        self.lock().is_cut
    }

    /// The power goes now.
    pub fn cut(&self) {
        self.lock().is_cut = true;
    }

    /// The operations in their order, for whoever looks into a failure.
    pub fn trace(&self) -> String {
        self.lock().trace.join("\n")
    }

    /// What the disk holds when the power is back. The power must be gone.
    pub fn image(&self, random: &mut Random, tearing: Tearing) -> Image {
        let state = self.lock();
        assert!(state.is_cut, "the power is still there");
        let mut names = state.durable.clone();
        let in_order = random.below(state.changes.len() as u64 + 1) as usize;
        for (number, change) in state.changes.iter().enumerate() {
            if if tearing.keeps_names_in_order { number < in_order } else { random.chance(1, 2) } {
                apply(&mut names, change);
            }
        }
        Image(names.into_iter().map(|(name, file)| (name, torn(&state.files[file], random, tearing))).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation. The one that is cut is half done: `Err`, though what it does may be seen later.
    fn begin(&self, what: impl FnOnce() -> String) -> (MutexGuard<'_, State>, io::Result<()>) {
        let mut state = self.lock();
        if state.is_cut {
            return (state, Err(io::Error::other("there is no power")));
        }
        state.operations += 1;
        let line = format!("{:4} {}", state.operations, what());
        state.trace.push(line);
        state.is_cut = state.operations > state.plan.cut_after;
        let result = if state.is_cut { Err(io::Error::other("the power goes")) } else { Ok(()) };
        (state, result)
    }

    /// The same for an operation that changes the directory.
    fn change(
        &self,
        what: impl FnOnce() -> String,
        make: impl FnOnce(&mut State) -> io::Result<Change>,
    ) -> io::Result<()> {
        let was_cut = self.is_cut();
        let (mut state, result) = self.begin(what);
        if !was_cut {
            let change = make(&mut state)?;
            apply(&mut state.seen, &change);
            state.changes.push(change);
        }
        result
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
    for (name, file) in change {
        match file {
            Some(file) => names.insert(name.clone(), *file),
            None => names.remove(name),
        };
    }
}

/// A file as it is found after the power went.
fn torn(file: &File, random: &mut Random, tearing: Tearing) -> Content {
    let mut content = file.durable.clone();
    for write in &file.unsynced {
        let Some(bytes) = &write.bytes else {
            // Zeros over zeros: of these only the length can be missing.
            if random.chance(1, 2) {
                content.len = content.len.max(write.offset + random.below(write.len + 1));
            }
            continue;
        };
        match random.below(4) {
            0 => {}
            1 => content.put(write.offset, bytes),
            _ => tear(&mut content, write.offset, bytes, random, tearing),
        }
    }
    content
}

fn tear(content: &mut Content, offset: u64, bytes: &[u8], random: &mut Random, tearing: Tearing) {
    let sectors = bytes.len().div_ceil(tearing.sector_bytes) as u64;
    let boundary = random.below(sectors);
    // Of some writes most is there, of others little.
    let there = random.pick(&[1, 5, 9]);
    for (number, sector) in (0..).zip(bytes.chunks(tearing.sector_bytes)) {
        let at = offset + number * tearing.sector_bytes as u64;
        let is_there = if tearing.is_in_order { number < boundary } else { random.chance(there, 10) };
        if is_there {
            content.put(at, sector);
        } else if tearing.has_rubbish && (number == boundary || !tearing.is_in_order && random.chance(1, 16)) {
            let mut rubbish = sector.to_vec();
            let from = random.below(rubbish.len() as u64) as usize;
            rubbish[from..].fill_with(|| random.next() as u8);
            content.put(at, &rubbish);
        }
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, name.to_owned())
}

impl Storage for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let (state, result) = self.begin(|| "list".to_owned());
        result.map(|()| state.seen.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        let mut index = 0;
        self.change(
            || format!("create {name}"),
            |state| {
                if state.plan.full.contains(&state.operations) {
                    return Err(ErrorKind::StorageFull.into());
                }
                if state.seen.contains_key(name) {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                index = state.files.len();
                state.files.push(File::default());
                Ok(vec![(name.to_owned(), Some(index))])
            },
        )?;
        Ok(Box::new(SimFile { disk: self.clone(), index, is_fresh: true }))
    }

    fn reopen(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        let (state, result) = self.begin(|| format!("reopen {name}"));
        result?;
        let index = *state.seen.get(name).ok_or_else(|| not_found(name))?;
        Ok(Box::new(SimFile { disk: self.clone(), index, is_fresh: false }))
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (state, result) = self.begin(|| format!("read {name} {offset}+{len}"));
        result?;
        let file = state.seen.get(name).ok_or_else(|| not_found(name))?;
        Ok(state.files[*file].seen.get(offset, len))
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        let (state, result) = self.begin(|| format!("len {name}"));
        result?;
        let file = state.seen.get(name).ok_or_else(|| not_found(name))?;
        Ok(state.files[*file].seen.len)
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space::ENDLESS)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(
            || format!("rename {from} {to}"),
            |state| {
                let file = *state.seen.get(from).ok_or_else(|| not_found(from))?;
                Ok(vec![(from.to_owned(), None), (to.to_owned(), Some(file))])
            },
        )
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(
            || format!("remove {name}"),
            |state| {
                state.seen.get(name).ok_or_else(|| not_found(name))?;
                Ok(vec![(name.to_owned(), None)])
            },
        )
    }

    fn sync_directory(&self) -> io::Result<()> {
        let (mut state, result) = self.begin(|| "sync_directory".to_owned());
        result?;
        if state.plan.honesty != Honesty::ForgetsNames {
            state.durable = state.seen.clone();
            state.changes.clear();
        }
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    /// Also where its name is gone.
    index: usize,
    /// Whether it was created empty.
    is_fresh: bool,
}

impl SimFile {
    fn write(&self, what: &str, offset: u64, len: u64, bytes: Option<&[u8]>) -> io::Result<()> {
        let was_cut = self.disk.is_cut();
        let (mut state, result) = self.disk.begin(|| format!("{what} file {} {offset}+{len}", self.index));
        if what == "allocate" && state.plan.full.contains(&state.operations) {
            return Err(ErrorKind::StorageFull.into());
        }
        if !was_cut {
            let file = &mut state.files[self.index];
            match bytes {
                Some(bytes) => file.seen.put(offset, bytes),
                None => file.seen.len = file.seen.len.max(offset + len),
            }
            file.unsynced.push(Write { offset, len, bytes: bytes.map(Arc::from) });
        }
        result
    }
}

impl SegmentFile for SimFile {
    fn allocate(&mut self, len: u64) -> io::Result<()> {
        SimFile::write(self, "allocate", 0, len, None)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Zeros written to a file that has nothing there are not kept: there are many.
        let is_anything = !self.is_fresh || bytes.len() > ZEROS.len() || *bytes != ZEROS[..bytes.len()];
        SimFile::write(self, "write", offset, bytes.len() as u64, is_anything.then_some(bytes))
    }

    fn sync(&mut self) -> io::Result<()> {
        let (mut state, result) = self.disk.begin(|| format!("sync file {}", self.index));
        result?;
        if state.plan.honesty != Honesty::ForgetsData {
            let file = &mut state.files[self.index];
            file.durable = file.seen.clone();
            file.unsynced.clear();
        }
        Ok(())
    }
}

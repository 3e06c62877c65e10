//! The sink that writes what it hears into the rank's file.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::layout::{HEADER, MAGIC, RECORD, end, file_bytes, hash, head, nanos, pack, state, table_words, what, word};
use super::ring::{Ring, number_and_state, state_word};
use super::store::Store;
use super::table::{Table, put_bytes};
use crate::error::{Error, Failure, Result};
use crate::event::{Begun, Event, Mark, Sink, Stage};
use crate::os::memory::Mapping;
use crate::os::process::Identity;
use crate::os::time::{self, Ticker};
use crate::os::{host, random};

/// The longest time between two anchors, in ticks: a third to a second.
const ANCHOR_MOST: u64 = 1 << 30;
const ANCHOR_LEAST: u64 = 1 << 16;

/// Whose records these are.
#[derive(Clone, Debug)]
pub(crate) struct Whose<'a> {
    pub(crate) job: u128,
    pub(crate) epoch: u64,
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) host: &'a str,
    /// The ranks of this host.
    pub(crate) neighbours: &'a [usize],
}

/// One rank's recorder.
#[derive(Debug)]
pub(crate) struct Recorder {
    mapping: Mapping,
    records: usize,
    ticker: Ticker,
    /// The number that the next record probably gets.
    next: AtomicU64,
    table: Table,
    /// The first anchor, and when the next is due.
    first: u64,
    anchor_due: AtomicU64,
    files: Option<Files>,
    /// Whether the rank came into the job: what never did leaves no file.
    joined: AtomicBool,
    /// Of this process; in a forked child the recorder does nothing on its own.
    pid: u32,
}

/// The files of this rank's host.
#[derive(Debug)]
struct Files {
    store: Store,
    rank: usize,
    neighbours: Vec<usize>,
    keep: bool,
}

impl Recorder {
    /// Records into a file of `chosen` or of the default place, which stays after an orderly end if `keep`.
    ///
    /// # Errors
    /// Why there can be no such file.
    pub(crate) fn in_file(whose: &Whose<'_>, records: usize, chosen: Option<&Path>, keep: bool) -> Result<Self> {
        let store = Store::open(chosen, whose.job)?;
        let mapping = store.create(whose.rank, file_bytes(records))?;
        if whose.neighbours.first() == Some(&whose.rank)
            && let Err(error) = store.clean()
        {
            // What is left over takes room, and harms nobody else.
            log::debug!("removing old flight records: {error}");
        }
        let files = Files { store, rank: whose.rank, neighbours: whose.neighbours.to_vec(), keep };
        Self::new(whose, records, mapping, Ticker::new(), Some(files))
    }

    /// Records into memory of this process.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn in_memory(whose: &Whose<'_>, records: usize) -> Result<Self> {
        Self::new(whose, records, Mapping::anonymous(file_bytes(records))?, Ticker::new(), None)
    }

    fn new(whose: &Whose<'_>, records: usize, mapping: Mapping, ticker: Ticker, files: Option<Files>) -> Result<Self> {
        debug_assert!(records.is_power_of_two());
        // The first turn of the ring takes no faults then.
        mapping.populate(0, mapping.len())?;
        let first = ticker.now();
        let recorder = Self {
            mapping,
            records,
            ticker,
            next: AtomicU64::new(1),
            table: Table::new(table_words(records)),
            first,
            anchor_due: AtomicU64::new(first + ANCHOR_LEAST),
            files,
            joined: AtomicBool::new(false),
            pid: std::process::id(),
        };
        recorder.write_header(whose)?;
        Ok(recorder)
    }

    fn write_header(&self, whose: &Whose<'_>) -> Result<()> {
        let process = Identity::current()?;
        let header = self.header();
        let put = |at: usize, value: u64| header[at].store(value, Ordering::Relaxed);
        put(head::RECORDS, self.records as u64);
        put(head::TABLE, table_words(self.records) as u64);
        put(head::JOB[0], whose.job as u64);
        put(head::JOB[1], (whose.job >> 64) as u64);
        put(head::EPOCH, whose.epoch);
        put(head::RANK, whose.rank as u64 | (whose.size as u64) << 32);
        put(head::PID, process.pid.into());
        put(head::START_TIME, process.start_time);
        put(head::HOST, hash(&host::identity()));
        let (ticks, monotonic, real) = same_moment(self.ticker);
        put(head::FIRST_ANCHOR, ticks);
        put(head::FIRST_ANCHOR + 1, monotonic);
        put(head::FIRST_ANCHOR + 2, real);
        let name = &whose.host.as_bytes()[..whose.host.len().min(head::HOST_NAME_BYTES)];
        put(head::HOST_NAME, name.len() as u64);
        put_bytes(&header[head::HOST_NAME + 1..], name);
        header[head::MAGIC].store(MAGIC, Ordering::Release);
        Ok(())
    }

    fn header(&self) -> &[AtomicU64] {
        &self.mapping.words()[..HEADER]
    }

    #[inline]
    fn ring(&self) -> Ring<'_, AtomicU64> {
        Ring::new(&self.mapping.words()[HEADER..].as_chunks::<RECORD>().0[..self.records], &self.next)
    }

    fn table_words(&self) -> &[AtomicU64] {
        &self.mapping.words()[HEADER + self.records * RECORD..][..table_words(self.records)]
    }

    /// Takes an anchor, if no other thread is at it.
    #[cold]
    fn anchor(&self, due: u64) {
        if due == u64::MAX
            || self.anchor_due.compare_exchange(due, u64::MAX, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return;
        }
        let header = self.header();
        let place = (header[head::ANCHOR].load(Ordering::Relaxed) as usize) % 2;
        let (now, at, _) = same_moment(self.ticker);
        header[head::ANCHORS[place]].store(now, Ordering::Relaxed);
        header[head::ANCHORS[place] + 1].store(at, Ordering::Relaxed);
        header[head::ANCHOR].store(place as u64 + 1, Ordering::Release);
        let wait = now.saturating_sub(self.first).clamp(ANCHOR_LEAST, ANCHOR_MOST);
        self.anchor_due.store(now.saturating_add(wait), Ordering::Release);
    }

    /// The last anchor: also a job that recorded little has two.
    fn anchor_now(&self) {
        self.anchor(self.anchor_due.load(Ordering::Relaxed));
    }

    fn write_failure(&self, failure: &Failure) {
        let mut text = failure.host.clone().into_bytes();
        text.truncate(head::HOST_NAME_BYTES);
        text.push(0);
        text.extend(failure.cause.bytes());
        text.truncate(head::FAILURE_BYTES);
        let header = self.header();
        put_bytes(&header[head::FAILURE + 1..], &text);
        header[head::FAILURE].store(text.len() as u64, Ordering::Release);
        header[head::END].store(end::FAILED | u64::from(failure.rank) << 32, Ordering::Release);
    }

    /// Removes the files of ranks that need them no more.
    fn remove(&self, all: bool) {
        if let Some(files) = &self.files
            && !files.keep
            && self.pid == std::process::id()
        {
            let ranks = if all { &files.neighbours[..] } else { &[files.rank] };
            if let Err(error) = files.store.remove(ranks) {
                log::debug!("removing flight records: {error}");
            }
        }
    }

    /// The bytes of the file, for tests of what is in them.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> Vec<u8> {
        let words = &self.mapping.words()[..file_bytes(self.records) / 8];
        words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect()
    }

    #[cfg(test)]
    pub(super) fn with_ticker(whose: &Whose<'_>, records: usize, ticker: Ticker) -> Result<Self> {
        Self::new(whose, records, Mapping::anonymous(file_bytes(records))?, ticker, None)
    }
}

/// One moment in ticks, by the monotonic and by the real clock, in nanoseconds.
fn same_moment(ticker: Ticker) -> (u64, u64, u64) {
    let look = || {
        let (before, monotonic, real, after) = (ticker.now(), time::monotonic(), time::real(), ticker.now());
        (after.saturating_sub(before), (before, nanos(monotonic), nanos(real)))
    };
    // The thread may be stopped between two clocks: the closest of a few looks counts.
    (0..3).map(|_| look()).min_by_key(|(window, _)| *window).map_or((0, 0, 0), |(_, moment)| moment)
}

impl Sink for Recorder {
    fn event(&self, event: &Event) {
        match event {
            Event::Joined { .. } => {
                self.anchor_now();
                self.joined.store(true, Ordering::Relaxed);
            }
            Event::Left { .. } => {
                self.anchor_now();
                self.header()[head::END].store(end::LEFT, Ordering::Release);
            }
            Event::Failed(failure) => {
                self.anchor_now();
                self.write_failure(failure);
            }
            Event::Closed => self.remove(true),
            Event::Set { id, named, ranks } => self.table.set(self.header(), self.table_words(), *id, *named, ranks),
        }
    }

    #[inline]
    fn begun(&self, operation: &Begun<'_>) -> Mark {
        let (now, unit) = match operation.at {
            Some(at) => (nanos(at), what::NANOS),
            None => (self.ticker.now(), 0),
        };
        let name = if operation.name.is_empty() { 0 } else { hash(operation.name) };
        if name != 0 {
            self.table.name(self.header(), self.table_words(), name, operation.name);
        }
        let ring = self.ring();
        let Some(number) = ring.claim() else {
            self.header()[head::LOST].fetch_add(1, Ordering::Relaxed);
            return Mark::NONE;
        };
        let line = ring.line(number);
        let put = |at: usize, value: u64| line[at].store(value, Ordering::Relaxed);
        let (stage, started) = match operation.place {
            Some(_) => (state::STARTED, 1 << 32),
            None => (state::SUBMITTED, 0),
        };
        put(word::NAME, name);
        put(word::BYTES, operation.bytes);
        put(word::PLACE, operation.place.map_or(0, |place| place.wrapping_add(1)));
        put(word::SUBMITTED, now);
        put(word::AGREED_STARTED, started);
        put(word::ENDED_SET, u64::from(operation.set) << 32);
        let (verb, dtype, op) = (operation.verb as u64, u64::from(operation.dtype), u64::from(operation.op));
        let peer = operation.peer.map_or(0, |peer| u64::from(peer) + 1);
        put(word::WHAT, verb | dtype << 8 | op << 16 | unit | peer << 32);
        line[word::STATE].store(state_word(number, stage), Ordering::Release);
        // Nanoseconds need no rate.
        if unit == 0 {
            let due = self.anchor_due.load(Ordering::Relaxed);
            if now >= due {
                self.anchor(due);
            }
        }
        Mark(number)
    }

    #[inline]
    fn reached(&self, mark: Mark, stage: Stage, at: Option<Duration>) {
        if mark == Mark::NONE {
            return;
        }
        let line = self.ring().line(mark.0);
        debug_assert_eq!(number_and_state(line[word::STATE].load(Ordering::Relaxed)).0, mark.0, "the owner's line");
        let now = at.map_or_else(|| self.ticker.now(), nanos);
        let span = pack(now.saturating_sub(line[word::SUBMITTED].load(Ordering::Relaxed)));
        let add = |at: usize, value: u64| line[at].store(line[at].load(Ordering::Relaxed) | value, Ordering::Relaxed);
        let place = |place: u64| line[word::PLACE].store(place.wrapping_add(1), Ordering::Relaxed);
        let state = match stage {
            Stage::Agreed(at) => {
                place(at);
                add(word::AGREED_STARTED, span.into());
                state::AGREED
            }
            Stage::Started(at) => {
                place(at);
                add(word::AGREED_STARTED, u64::from(span) << 32);
                state::STARTED
            }
            Stage::Done | Stage::Failed | Stage::Cancelled => {
                add(word::ENDED_SET, span.into());
                match stage {
                    Stage::Done => state::DONE,
                    Stage::Failed => state::FAILED,
                    _ => state::CANCELLED,
                }
            }
        };
        line[word::STATE].store(state_word(mark.0, state), Ordering::Release);
    }

    fn whereabouts(&self) -> Option<String> {
        let files = self.files.as_ref()?;
        Some(format!("what each rank did last: kolo-bench flight {}", files.store.path().display()))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.joined.load(Ordering::Relaxed) {
            self.remove(false);
        }
    }
}

/// What a record costs, in nanoseconds, over all of its stages.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Cost {
    /// An operation of a communicator: begun, done.
    pub ordered: f64,
    /// A named operation whose name is known: submitted, started, done, at moments that its set knows.
    pub named: f64,
    /// Whether the time came from the processor's counter, and not from the system's clock.
    pub counter: bool,
}

/// Measures what a record costs here, the median of `rounds` rounds of 20,000 operations, into a file of the
/// default place or of `directory`, which is removed afterwards.
///
/// # Errors
/// No room for the file.
pub fn cost(directory: Option<&Path>, rounds: usize) -> Result<Cost> {
    const OPERATIONS: u32 = 20_000;
    if rounds == 0 {
        return Err(Error::argument("a measurement takes at least one round"));
    }
    let (rank, job) = (0, u128::from_le_bytes(random::bytes()?));
    let host = host::hostname();
    let whose = Whose { job, epoch: 1, rank, size: 1, host: &host, neighbours: &[rank] };
    let recorder = Recorder::in_file(&whose, super::DEFAULT_RECORDS, directory, false)?;
    let counter = recorder.ticker.is_counter();
    // As the layers that report have it.
    let sink: Box<dyn Sink> = Box::new(recorder);
    let names: Vec<String> = (0..161).map(|number| format!("layer4.{number}.conv2.weight")).collect();
    let plain = Begun {
        set: 1,
        name: "",
        verb: crate::event::Verb::Allreduce,
        dtype: 3,
        op: 1,
        peer: None,
        bytes: 4,
        place: Some(0),
        at: None,
    };
    let time = |body: &mut dyn FnMut(u32)| {
        let mut times: Vec<f64> = (0..rounds)
            .map(|_| {
                let begin = Instant::now();
                (0..OPERATIONS).for_each(&mut *body);
                begin.elapsed().as_secs_f64() * 1e9 / f64::from(OPERATIONS)
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[rounds / 2]
    };
    let ordered = time(&mut |number| {
        let mark = sink.begun(&Begun { place: Some(number.into()), ..plain });
        sink.reached(mark, Stage::Done, None);
    });
    let mut turn = names.iter().cycle();
    let named = time(&mut |number| {
        // No division here: it would be a part of what is measured. All of it is within a second.
        let name = turn.next().map_or("", String::as_str);
        let at = |later| Some(Duration::new(0, number * 1000 + later));
        let mark = sink.begun(&Begun { name, place: None, at: at(0), ..plain });
        sink.reached(mark, Stage::Started(number.into()), at(300));
        sink.reached(mark, Stage::Done, at(900));
    });
    Ok(Cost { ordered, named, counter })
}

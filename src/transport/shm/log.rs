//! The decision log: entries that members propose, of which compare-and-swap picks one for each index.
//!
//! A cell names its index, its proposer and the proposer's buffer that holds the entry; README.md, "log buffer reuse",
//! says why reading an entry cannot race the reuse of its buffer, and "lap" why a cell cannot be mistaken.

use crate::os::sync::{AtomicU32, AtomicU64, Ordering};

use super::memory::{Bytes, Cursor, Line, Lines, Memory};

/// The largest entry in bytes.
pub(crate) const ENTRY: usize = 16 << 10;

const BUFFER_BITS: u32 = 6;
const PROPOSER_BITS: u32 = 10;
const INDEX_SHIFT: u32 = BUFFER_BITS + PROPOSER_BITS;

/// How large a log is. What ships is [`Shape::default`]; tests take smaller ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Entries between the slowest and the fastest member.
    pub(crate) cells: usize,
    /// Entries of one proposer that somebody has not executed yet.
    pub(crate) buffers: usize,
    /// The largest entry.
    pub(crate) entry: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { cells: 1024, buffers: 8, entry: ENTRY }
    }
}

/// What a cell holds. Zero: nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    index: u64,
    proposer: usize,
    buffer: usize,
}

impl Cell {
    fn pack(self) -> u64 {
        (self.index + 1) << INDEX_SHIFT | (self.proposer as u64) << BUFFER_BITS | self.buffer as u64
    }

    fn unpack(word: u64) -> Option<Self> {
        let index = (word >> INDEX_SHIFT).checked_sub(1)?;
        let proposer = (word >> BUFFER_BITS & ((1 << PROPOSER_BITS) - 1)) as usize;
        let buffer = (word & ((1 << BUFFER_BITS) - 1)) as usize;
        Some(Self { index, proposer, buffer })
    }
}

/// What a buffer holds, written by its proposer before the cell names it.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct BufferLine {
    /// The last index installed from it, and one; zero if there was none.
    installed: AtomicU64,
    len: AtomicU32,
}

// SAFETY: atomics only.
unsafe impl Line for BufferLine {}

#[repr(C, align(128))]
#[derive(Debug, Default)]
struct ExecutedLine {
    /// Entries that the member has finished with: the index that it needs next.
    count: AtomicU64,
}

// SAFETY: atomics only.
unsafe impl Line for ExecutedLine {}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LogPlace {
    members: usize,
    shape: Shape,
    cells: usize,
    executed: usize,
    lines: usize,
    entries: usize,
}

impl LogPlace {
    pub(crate) fn new(cursor: &mut Cursor, members: usize, shape: Shape) -> Self {
        assert!(members <= 1 << PROPOSER_BITS, "{members} ranks on one host");
        assert!(shape.buffers <= 1 << BUFFER_BITS && shape.cells > 0, "{shape:?}");
        Self {
            members,
            shape,
            cells: cursor.lines::<AtomicU64>(shape.cells),
            executed: cursor.lines::<ExecutedLine>(members),
            lines: cursor.lines::<BufferLine>(members * shape.buffers),
            entries: cursor.bytes(members * shape.buffers * shape.entry),
        }
    }
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// It is the entry of that index.
    Installed,
    /// Another member's entry is: read it.
    Lost,
    /// Some member is so far behind that there is no room. Try again when the bell rings.
    NoBuffer,
}

/// The log, as one member sees it. A member has one at a time.
#[derive(Debug)]
pub(crate) struct Log {
    me: usize,
    shape: Shape,
    cells: Lines<AtomicU64>,
    executed: Lines<ExecutedLine>,
    /// By proposer, then buffer.
    lines: Lines<BufferLine>,
    entries: Vec<Bytes>,
    /// What every member had executed when last looked up.
    floor: u64,
}

impl Log {
    pub(crate) fn new(memory: &Memory, place: &LogPlace, me: usize) -> Self {
        let LogPlace { members, shape, .. } = *place;
        let buffers = members * shape.buffers;
        Self {
            me,
            shape,
            cells: memory.lines(place.cells, shape.cells),
            executed: memory.lines(place.executed, members),
            lines: memory.lines(place.lines, buffers),
            entries: (0..buffers)
                .map(|buffer| memory.bytes(place.entries + buffer * shape.entry, shape.entry))
                .collect(),
            floor: 0,
        }
    }

    #[cfg(test)]
    /// The largest entry in bytes.
    pub(crate) fn entry_max(&self) -> usize {
        self.shape.entry
    }

    fn cell(&self, index: u64) -> &AtomicU64 {
        &self.cells[(index % self.cells.len() as u64) as usize]
    }

    /// Proposes `entry` for `index`, which must be the first that holds none as far as this member has read. Ring the
    /// others when it was installed.
    ///
    /// # Panics
    /// If the entry is longer than [`Log::entry_max`], or entries before `index` are missing.
    pub(crate) fn install(&mut self, index: u64, entry: &[u8]) -> Install {
        assert!(entry.len() <= self.shape.entry, "a log entry of {} bytes", entry.len());
        // Relaxed: the value is only compared; who loses reads the cell again, with acquire.
        let before = self.cell(index).load(Ordering::Relaxed);
        let cells = self.cells.len() as u64;
        match Cell::unpack(before) {
            Some(cell) if cell.index >= index => return Install::Lost,
            Some(cell) => assert_eq!(cell.index + cells, index, "entries before {index} are missing"),
            None => assert!(index < cells, "entries before {index} are missing"),
        }
        // The cell still serves members who have not executed what it holds.
        let room = |floor| index < floor + cells;
        let Some(buffer) = self.free_buffer(room) else { return Install::NoBuffer };
        let at = self.me * self.shape.buffers + buffer;
        let line = &self.lines[at];
        // SAFETY: the buffer is this member's own; every member has executed what was installed from it, so nobody reads
        // it, and nobody will before a cell names it.
        unsafe { self.entries[at].write(0, entry) };
        let earlier = line.installed.load(Ordering::Relaxed);
        line.len.store(entry.len() as u32, Ordering::Relaxed);
        line.installed.store(index + 1, Ordering::Relaxed);
        let mine = Cell { index, proposer: self.me, buffer }.pack();
        // Release: whoever sees the cell sees the entry.
        match self.cell(index).compare_exchange(before, mine, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => Install::Installed,
            Err(_) => {
                // No cell names the buffer: it is free again at once.
                line.installed.store(earlier, Ordering::Relaxed);
                Install::Lost
            }
        }
    }

    /// A buffer of this member whose last entry every member has executed, if the cell has room as well.
    fn free_buffer(&mut self, room: impl Fn(u64) -> bool) -> Option<usize> {
        let first = self.me * self.shape.buffers;
        let find = |floor: u64| {
            let mine = &self.lines[first..first + self.shape.buffers];
            let free = mine.iter().position(|line| line.installed.load(Ordering::Relaxed) <= floor);
            free.filter(|_| room(floor))
        };
        if let Some(buffer) = find(self.floor) {
            return Some(buffer);
        }
        // Acquire: what a member executed, it has finished reading.
        let executed = self.executed.iter().map(|line| line.count.load(Ordering::Acquire));
        let floor = executed.min().unwrap_or(0);
        let found = find(floor);
        self.floor = floor;
        found
    }

    #[cfg(test)]
    /// Whether there is an entry at `index`: one load.
    #[inline]
    pub(crate) fn installed(&self, index: u64) -> bool {
        Cell::unpack(self.cell(index).load(Ordering::Acquire)).is_some_and(|cell| cell.index == index)
    }

    /// Puts the entry at `index` into `entry`; false if there is none yet. Call [`Log::set_executed`] once nothing before
    /// or at that index is needed any more.
    ///
    /// # Panics
    /// If this member has executed the entry, or the memory holds what no proposer writes.
    pub(crate) fn read(&self, index: u64, entry: &mut Vec<u8>) -> bool {
        assert!(
            index >= self.executed[self.me].count.load(Ordering::Relaxed),
            "entry {index} was executed and may be gone"
        );
        let word = self.cell(index).load(Ordering::Acquire);
        let Some(cell) = Cell::unpack(word).filter(|cell| cell.index == index) else { return false };
        let at = cell.proposer * self.shape.buffers + cell.buffer;
        let (Some(line), Some(bytes)) = (self.lines.get(at), self.entries.get(at)) else {
            panic!("the decision log is corrupt: entry {index} is {cell:?}");
        };
        let holds = line.installed.load(Ordering::Relaxed);
        assert_eq!(holds, index + 1, "the decision log is corrupt: entry {index} is {cell:?}");
        entry.clear();
        // SAFETY: the cell (acquire) names the buffer, so the entry is complete; its proposer reuses the buffer only once
        // this member has executed the entry.
        unsafe { bytes.read(0, line.len.load(Ordering::Relaxed) as usize, |bytes| entry.extend_from_slice(bytes)) };
        true
    }

    /// This member has finished with the entries up to `index`.
    pub(crate) fn set_executed(&mut self, index: u64) {
        self.executed[self.me].count.store(index + 1, Ordering::Release);
    }

    #[cfg(test)]
    /// Entries that a member has finished with.
    pub(crate) fn executed(&self, member: usize) -> u64 {
        self.executed[member].count.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;

    fn logs(members: usize, shape: Shape) -> Vec<Log> {
        let mut cursor = Cursor::default();
        let place = LogPlace::new(&mut cursor, members, shape);
        let memory = Memory::anonymous(cursor.end()).expect("memory");
        (0..members).map(|me| Log::new(&memory, &place, me)).collect()
    }

    fn entry(log: &Log, index: u64) -> Option<Vec<u8>> {
        let mut entry = vec![1, 2, 3];
        assert_eq!(log.installed(index), log.read(index, &mut entry));
        log.installed(index).then_some(entry)
    }

    #[test]
    fn cells_pack() {
        for cell in [
            Cell { index: 0, proposer: 0, buffer: 0 },
            Cell { index: (1 << 48) - 2, proposer: 1023, buffer: 63 },
            Cell { index: 77, proposer: 5, buffer: 7 },
        ] {
            assert_eq!(Cell::unpack(cell.pack()), Some(cell));
        }
        assert_eq!(Cell::unpack(0), None);
    }

    #[test]
    fn one_proposal_an_index_wins() {
        let mut logs = logs(2, Shape { cells: 4, buffers: 2, entry: 16 });
        assert_eq!(entry(&logs[0], 0), None);
        assert_eq!(logs[0].install(0, b"first"), Install::Installed);
        assert_eq!(logs[1].install(0, b"second"), Install::Lost);
        assert_eq!(logs[0].install(0, b"again"), Install::Lost);
        for log in &logs {
            assert_eq!(entry(log, 0).as_deref(), Some(&b"first"[..]));
            assert_eq!(entry(log, 1), None);
        }
        assert_eq!(logs[1].install(1, b""), Install::Installed);
        assert_eq!(entry(&logs[0], 1).as_deref(), Some(&b""[..]));
        assert_eq!(logs[0].entry_max(), 16);
    }

    #[test]
    fn buffers_wait_for_the_slowest_member() {
        let mut logs = logs(2, Shape { cells: 8, buffers: 2, entry: 16 });
        assert_eq!(logs[0].install(0, b"a"), Install::Installed);
        assert_eq!(logs[0].install(1, b"b"), Install::Installed);
        assert_eq!(logs[0].install(2, b"c"), Install::NoBuffer);
        // Another member's buffers are its own.
        assert_eq!(logs[1].install(2, b"d"), Install::Installed);
        logs[0].set_executed(1);
        assert_eq!(logs[0].install(3, b"c"), Install::NoBuffer);
        logs[1].set_executed(0);
        assert_eq!(logs[0].install(3, b"e"), Install::Installed);
        assert_eq!(logs[0].install(4, b"f"), Install::NoBuffer);
        assert_eq!((logs[0].executed(0), logs[0].executed(1)), (2, 1));
        let rest: Vec<_> = (1..4).map(|index| entry(&logs[1], index).expect("installed")).collect();
        assert_eq!(rest, [b"b", b"d", b"e"]);
    }

    #[test]
    fn a_lap_waits_for_the_slowest_member() {
        let mut logs = logs(2, Shape { cells: 2, buffers: 8, entry: 16 });
        assert_eq!(logs[0].install(0, b"a"), Install::Installed);
        assert_eq!(logs[0].install(1, b"b"), Install::Installed);
        logs[0].set_executed(1);
        assert_eq!(logs[0].install(2, b"c"), Install::NoBuffer);
        assert_eq!(entry(&logs[0], 2), None, "an entry of the lap before is none");
        assert_eq!(entry(&logs[1], 0).as_deref(), Some(&b"a"[..]));
        logs[1].set_executed(0);
        assert_eq!(logs[0].install(2, b"c"), Install::Installed);
        assert_eq!(logs[1].install(0, b"late"), Install::Lost);
        assert_eq!(entry(&logs[1], 1).as_deref(), Some(&b"b"[..]));
        assert_eq!(entry(&logs[1], 2).as_deref(), Some(&b"c"[..]));
    }

    #[test]
    #[should_panic(expected = "executed")]
    fn an_executed_entry_is_not_read_again() {
        let mut logs = logs(1, Shape::default());
        assert_eq!(logs[0].install(0, &[1; ENTRY]), Install::Installed);
        logs[0].set_executed(0);
        logs[0].read(0, &mut Vec::new());
    }

    #[test]
    #[should_panic(expected = "missing")]
    fn gaps_are_refused() {
        logs(1, Shape { cells: 2, buffers: 2, entry: 8 })[0].install(2, b"x");
    }

    #[test]
    #[should_panic(expected = "corrupt")]
    fn a_cell_that_cannot_be_panics() {
        let logs = logs(1, Shape { cells: 2, buffers: 2, entry: 8 });
        let cell = Cell { index: 0, proposer: 9, buffer: 9 };
        logs[0].cells[0].store(cell.pack(), Ordering::Relaxed);
        logs[0].read(0, &mut Vec::new());
    }

    /// Everybody proposes every index, on a log that is always short of cells and buffers; all read the same.
    #[test]
    fn all_propose_and_read_the_same() {
        const ENTRIES: u64 = 3000;
        for (members, cells, buffers) in [(2, 3, 1), (4, 8, 2)] {
            let read: Vec<Vec<Vec<u8>>> = std::thread::scope(|scope| {
                let running: Vec<_> = logs(members, Shape { cells, buffers, entry: 128 })
                    .into_iter()
                    .map(|mut log| {
                        scope.spawn(move || {
                            let mut entries = Vec::new();
                            let mut entry = Vec::new();
                            for index in 0..ENTRIES {
                                let mine =
                                    vec![(index + log.me as u64 * 100) as u8; 1 + (index as usize + log.me) % 128];
                                while log.install(index, &mine) == Install::NoBuffer {
                                    std::thread::yield_now();
                                }
                                assert!(log.read(index, &mut entry));
                                entries.push(entry.clone());
                                log.set_executed(index);
                            }
                            entries
                        })
                    })
                    .collect();
                running.into_iter().map(|thread| thread.join().expect("it ends")).collect()
            });
            for (index, entry) in read[0].iter().enumerate() {
                let whole = (0..members).any(|me| {
                    entry.len() == 1 + (index + me) % 128 && entry.iter().all(|byte| *byte == (index + me * 100) as u8)
                });
                assert!(whole, "entry {index} is nobody's: {entry:?}");
                assert!(read.iter().all(|read| read[index] == *entry), "entry {index}");
            }
        }
    }
}

#[cfg(all(test, kolo_loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// Runs `entries` indices of a log that both members propose to; both must read the same, whole entries.
    fn both_propose(shape: Shape, entries: u64, bound: Option<usize>) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = bound;
        model.check(move || {
            let mut cursor = Cursor::default();
            let place = LogPlace::new(&mut cursor, 2, shape);
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let run = move |mut log: Log| {
                let mut read = Vec::new();
                let mut entry = Vec::new();
                for index in 0..entries {
                    let mine = [log.me as u8, index as u8];
                    while log.install(index, &mine) == Install::NoBuffer {
                        thread::yield_now();
                    }
                    assert!(log.read(index, &mut entry));
                    assert_eq!(entry[1], index as u8);
                    read.push(entry[0]);
                    log.set_executed(index);
                }
                read
            };
            let other = Log::new(&memory, &place, 1);
            let other = thread::spawn(move || run(other));
            let mine = run(Log::new(&memory, &place, 0));
            assert_eq!(mine, other.join().expect("it ends"));
        });
    }

    /// "install race".
    #[test]
    fn loom_one_of_two_proposals_wins() {
        both_propose(Shape { cells: 2, buffers: 1, entry: 8 }, 1, None);
    }

    /// "log buffer reuse" and "lap": every index reuses the cell and the buffer of the one before.
    #[test]
    fn loom_cells_and_buffers_are_reused() {
        both_propose(Shape { cells: 1, buffers: 1, entry: 8 }, 3, Some(3));
    }

    /// One member proposes, the other only reads: the buffer must wait for the reader.
    #[test]
    fn loom_a_buffer_waits_for_its_reader() {
        loom::model(|| {
            let mut cursor = Cursor::default();
            let place = LogPlace::new(&mut cursor, 2, Shape { cells: 2, buffers: 1, entry: 8 });
            let memory = Memory::anonymous(cursor.end()).expect("memory");
            let mut proposer = Log::new(&memory, &place, 0);
            let proposing = thread::spawn(move || {
                for index in 0..2 {
                    while proposer.install(index, &[index as u8]) == Install::NoBuffer {
                        thread::yield_now();
                    }
                    proposer.set_executed(index);
                }
            });
            let mut reader = Log::new(&memory, &place, 1);
            let mut entry = Vec::new();
            for index in 0..2 {
                while !reader.read(index, &mut entry) {
                    thread::yield_now();
                }
                assert_eq!(entry, [index as u8]);
                reader.set_executed(index);
            }
            proposing.join().expect("the proposer ends");
        });
    }
}

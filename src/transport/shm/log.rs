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
        unsafe {
            bytes.read(0, line.len.load(Ordering::Relaxed) as usize, |bytes| entry.extend_from_slice(bytes))
        };
        true
    }

    /// This member has finished with the entries up to `index`.
    pub(crate) fn set_executed(&mut self, index: u64) {
        self.executed[self.me].count.store(index + 1, Ordering::Release);
    }

    /// Entries that a member has finished with.
    pub(crate) fn executed(&self, member: usize) -> u64 {
        self.executed[member].count.load(Ordering::Acquire)
    }
}

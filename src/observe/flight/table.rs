//! Names and sets, written once each into the table of a file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::layout::{NAME_BYTES, entry, head};

/// Places of the array that are looked at for a name.
const STEPS: usize = 16;

/// Which names the file knows, and where the next entry goes.
#[derive(Debug)]
pub(super) struct Table {
    /// Hashes of the names that are in, in the order of a hash table; 0 is a free place.
    known: Box<[AtomicU64]>,
    /// Words of the table in use.
    used: Mutex<usize>,
}

impl Table {
    /// For a table of `words` words.
    pub(super) fn new(words: usize) -> Self {
        // The shortest entry takes three words, so that at least a third stays free.
        let places = (words / 2).next_power_of_two();
        Self { known: (0..places).map(|_| AtomicU64::new(0)).collect(), used: Mutex::new(0) }
    }

    /// Sees to it that the file knows the name, if there is room.
    #[inline]
    pub(super) fn name(&self, header: &[AtomicU64], table: &[AtomicU64], hash: u64, name: &str) {
        for place in self.places(hash) {
            match place.load(Ordering::Relaxed) {
                known if known == hash => return,
                0 => break,
                _ => {}
            }
        }
        self.add_name(header, table, hash, name);
    }

    fn places(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let mask = self.known.len() - 1;
        (0..STEPS).map(move |step| &self.known[(hash as usize + step) & mask])
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // What a panic may leave is an entry that was not counted yet.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn add_name(&self, header: &[AtomicU64], table: &[AtomicU64], hash: u64, name: &str) {
        let mut used = self.lock();
        let mut free = None;
        for place in self.places(hash) {
            match place.load(Ordering::Relaxed) {
                known if known == hash => return,
                0 => {
                    free = Some(place);
                    break;
                }
                _ => {}
            }
        }
        let end = name.floor_char_boundary_at(NAME_BYTES);
        // Sets have the last quarter to themselves.
        let room = &table[..table.len() / 4 * 3];
        let added = free.is_some() && append(header, room, &mut used, entry::NAME, hash, &name.as_bytes()[..end]);
        if !added {
            header[head::UNNAMED].fetch_add(1, Ordering::Relaxed);
        }
        // Also without an entry: it is not looked for again.
        if let Some(place) = free {
            place.store(hash, Ordering::Relaxed);
        }
    }

    /// Writes down who takes part in a set.
    pub(super) fn set(&self, header: &[AtomicU64], table: &[AtomicU64], id: u32, named: bool, ranks: &[u32]) {
        let mut bytes = Vec::new();
        for (first, count) in ranges(ranks) {
            bytes.extend(first.to_le_bytes());
            bytes.extend(count.to_le_bytes());
        }
        let key = u64::from(id) | if named { entry::NAMED } else { 0 };
        if !append(header, table, &mut self.lock(), entry::SET, key, &bytes) {
            header[head::UNNAMED].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs of ranks that follow each other: the first and how many.
fn ranges(ranks: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &rank in ranks {
        match ranges.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(rank) => *count += 1,
            _ => ranges.push((rank, 1)),
        }
    }
    ranges
}

/// Appends an entry; false if there is no room.
fn append(header: &[AtomicU64], table: &[AtomicU64], used: &mut usize, code: u64, key: u64, bytes: &[u8]) -> bool {
    let words = entry::HEAD + bytes.len().div_ceil(8);
    let Some(place) = table.get(*used..*used + words) else { return false };
    place[0].store(code | (bytes.len() as u64) << 32, Ordering::Relaxed);
    place[1].store(key, Ordering::Relaxed);
    put_bytes(&place[entry::HEAD..], bytes);
    *used += words;
    header[head::TABLE_USED].store(*used as u64, Ordering::Release);
    true
}

/// Stores bytes in words, the last one filled up with zeros.
pub(super) fn put_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
    }
}

/// `str::floor_char_boundary`, which the oldest supported compiler does not have.
trait Boundary {
    fn floor_char_boundary_at(&self, most: usize) -> usize;
}

impl Boundary for str {
    fn floor_char_boundary_at(&self, most: usize) -> usize {
        (0..=most.min(self.len())).rev().find(|&at| self.is_char_boundary(at)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::hash;
    use super::*;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    fn used(header: &[AtomicU64]) -> u64 {
        header[head::TABLE_USED].load(Ordering::Relaxed)
    }

    #[test]
    fn a_name_is_written_once() {
        let (header, space) = (words(64), words(64));
        let table = Table::new(space.len());
        for _ in 0..3 {
            table.name(&header, &space, hash("conv1.weight"), "conv1.weight");
        }
        assert_eq!(used(&header), 4);
        table.name(&header, &space, hash("b"), "b");
        assert_eq!((used(&header), header[head::UNNAMED].load(Ordering::Relaxed)), (7, 0));
    }

    #[test]
    fn a_full_table_counts_names_once_and_still_takes_sets() {
        let (header, space) = (words(64), words(32));
        let table = Table::new(space.len());
        for _ in 0..3 {
            for number in 0..12 {
                let name = format!("name{number}");
                table.name(&header, &space, hash(&name), &name);
            }
        }
        assert_eq!((used(&header), header[head::UNNAMED].load(Ordering::Relaxed)), (24, 4));
        table.set(&header, &space, 7, true, &[0, 1, 2, 9]);
        assert_eq!(used(&header), 28);
        table.set(&header, &space, 8, false, &[0, 2, 4, 6, 8]);
        assert_eq!(used(&header), 28, "no room");
    }

    #[test]
    fn endless_new_names_cost_no_more_than_a_few_steps() {
        let (header, space) = (words(64), words(32));
        let table = Table::new(space.len());
        for number in 0..5000_u64 {
            table.name(&header, &space, number + 1, "x");
        }
        assert_eq!(used(&header), 24);
    }

    #[test]
    fn ranks_in_a_row_are_one_range() {
        assert_eq!(ranges(&[0, 1, 2, 3]), [(0, 4)]);
        assert_eq!(ranges(&[3, 1, 2, 7]), [(3, 1), (1, 2), (7, 1)]);
        assert_eq!(ranges(&[u32::MAX]), [(u32::MAX, 1)]);
        assert!(ranges(&[]).is_empty());
    }

    #[test]
    fn long_names_end_at_a_character() {
        assert_eq!("aä".floor_char_boundary_at(2), 1);
        assert_eq!("ab".floor_char_boundary_at(9), 2);
    }
}

//! The shared memory of one pretend host, as weak as release and acquire allow.
//!
//! Every location keeps its history. A write records what its writer had seen (release); a read may return any version that
//! is not older than what the reader has seen, and then the reader has seen what that version's writer had (acquire).

use super::Random;

/// The oldest version of each location that a member may still read.
#[derive(Clone, Debug)]
pub(super) struct View {
    words: Vec<usize>,
    rings: Vec<usize>,
    log: usize,
}

impl View {
    fn join(&mut self, other: &Self) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine = (*mine).max(*theirs);
        }
        for (mine, theirs) in self.rings.iter_mut().zip(&other.rings) {
            *mine = (*mine).max(*theirs);
        }
        self.log = self.log.max(other.log);
    }
}

#[derive(Debug)]
pub(super) struct Memory {
    members: usize,
    /// `[word * members + member]`
    words: Vec<Vec<(u64, View)>>,
    rings: Vec<Vec<(Vec<u8>, View)>>,
    log: Vec<(Vec<u8>, View)>,
    views: Vec<View>,
    /// How many frames of each ring each member has read: `[reader][writer]`.
    pub(super) read: Vec<Vec<usize>>,
    /// Reads return the newest version: used to bring a run to its end.
    pub(super) fair: bool,
}

impl Memory {
    pub(super) fn new(members: usize, words: usize) -> Self {
        let view = View { words: vec![0; words * members], rings: vec![0; members], log: 0 };
        Self {
            members,
            words: vec![vec![(0, view.clone())]; words * members],
            rings: vec![Vec::new(); members],
            log: Vec::new(),
            views: vec![view; members],
            read: vec![vec![0; members]; members],
            fair: false,
        }
    }

    pub(super) fn words(&self) -> usize {
        self.words.len() / self.members
    }

    fn pick(&self, random: &mut Random, least: usize, newest: usize) -> usize {
        if self.fair || random.chance(1, 2) { newest } else { random.between(least, newest) }
    }

    pub(super) fn set_word(&mut self, member: usize, word: usize, bits: u64) {
        let at = word * self.members + member;
        self.views[member].words[at] = self.words[at].len();
        self.words[at].push((bits, self.views[member].clone()));
    }

    pub(super) fn word(&mut self, random: &mut Random, reader: usize, member: usize, word: usize) -> u64 {
        let at = word * self.members + member;
        let version = self.pick(random, self.views[reader].words[at], self.words[at].len() - 1);
        let (bits, seen) = self.words[at][version].clone();
        self.views[reader].join(&seen);
        self.views[reader].words[at] = version;
        bits
    }

    /// How far the slowest reader of a ring is behind.
    pub(super) fn unread(&self, writer: usize, watchers: &[bool]) -> usize {
        let read = (0..self.members).filter(|m| *m != writer && watchers[*m]).map(|m| self.read[m][writer]).min();
        self.rings[writer].len() - read.unwrap_or(self.rings[writer].len())
    }

    pub(super) fn publish(&mut self, member: usize, frame: Vec<u8>) {
        self.views[member].rings[member] = self.rings[member].len() + 1;
        self.rings[member].push((frame, self.views[member].clone()));
    }

    /// The frames that the reader gets to see now.
    pub(super) fn frames(&mut self, random: &mut Random, reader: usize, writer: usize) -> Vec<Vec<u8>> {
        let from = self.read[reader][writer];
        let least = self.views[reader].rings[writer].max(from);
        let to = self.pick(random, least, self.rings[writer].len());
        let frames = self.rings[writer][from..to].to_vec();
        self.read[reader][writer] = to;
        for (_, seen) in &frames {
            self.views[reader].join(seen);
        }
        frames.into_iter().map(|(frame, _)| frame).collect()
    }

    pub(super) fn install(&mut self, member: usize, index: u64, entry: Vec<u8>) -> bool {
        if self.log.len() as u64 != index {
            return false;
        }
        self.views[member].log = self.log.len() + 1;
        self.log.push((entry, self.views[member].clone()));
        true
    }

    pub(super) fn entry(&mut self, random: &mut Random, reader: usize, index: u64) -> Option<Vec<u8>> {
        let seen = self.pick(random, self.views[reader].log, self.log.len());
        if index as usize >= seen {
            return None;
        }
        let (entry, view) = self.log[index as usize].clone();
        self.views[reader].join(&view);
        Some(entry)
    }
}

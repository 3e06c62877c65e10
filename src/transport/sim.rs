//! A network inside one process: links between ranks that are threads, with pretend hosts or without.
//!
//! It keeps every promise of [`Link`], among them bounded sends and the checks of what a piece belongs to, and on
//! request it is late in ways that a seed repeats.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Link, Stamp};
use crate::error::{Error, Result};

/// Pieces in flight from one member to another before `try_send` says no.
const DEPTH: usize = 4;

/// What all links of one process's job share. Clones are the same network.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    size: usize,
    seed: Option<u64>,
    queues: Arc<Mutex<HashMap<Route, Shared>>>,
}

type Shared = Arc<Mutex<Queue>>;

/// From one global rank to another, within one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Route {
    stamp: Stamp,
    from: u32,
    to: u32,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Parcel>,
    /// Two when sender and receiver are gone: then the queue goes, too.
    closed: u8,
}

#[derive(Debug)]
struct Parcel {
    seq: u64,
    /// How many more `try_recv` do not see it yet.
    late: u32,
    payload: Vec<u8>,
}

impl Network {
    /// A network of `size` ranks that delivers at once.
    pub(crate) fn new(size: usize) -> Self {
        Self { size, seed: None, queues: Arc::default() }
    }

    /// The same network, but late: `try_recv` and `try_send` answer `false` up to three times more than they need to.
    ///
    /// How often is a function of the seed, the stream and the piece's place in it, so it does not depend on timing.
    pub(crate) fn seeded(size: usize, seed: u64) -> Self {
        Self { seed: Some(seed), ..Self::new(size) }
    }

    /// The link of global rank `ranks[me]` for the stream `stamp` between the global ranks `ranks`.
    ///
    /// # Errors
    ///
    /// A rank out of range or twice in `ranks`, or `me` out of range.
    pub(crate) fn link(&self, stamp: Stamp, ranks: Vec<u32>, me: usize, piece: usize) -> Result<SimLink> {
        let mut sorted = ranks.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != ranks.len()
            || sorted.last().is_some_and(|&last| last as usize >= self.size)
            || me >= ranks.len()
        {
            return Err(Error::argument(format!(
                "a link between the ranks {ranks:?} for member {me} in a network of {} ranks: name each rank once, below \
                 the size",
                self.size
            )));
        }
        let own = ranks[me];
        let open = |from, to| self.open(Route { stamp, from, to });
        let peers = ranks
            .iter()
            .map(|&rank| Peer {
                outgoing: open(own, rank),
                incoming: open(rank, own),
                sent: 0,
                received: 0,
                refusals: None,
            })
            .collect();
        Ok(SimLink { network: self.clone(), stamp, ranks, me, piece, peers, broken: None })
    }

    fn open(&self, route: Route) -> Shared {
        Arc::clone(lock(&self.queues).entry(route).or_default())
    }

    fn close(&self, route: Route) {
        let mut queues = lock(&self.queues);
        let Some(queue) = queues.get(&route) else {
            return;
        };
        let gone = {
            let mut queue = lock(queue);
            queue.closed += 1;
            queue.closed >= 2
        };
        if gone {
            queues.remove(&route);
        }
    }

    /// A number below 4 that depends on the seed and on what it is asked for, and on nothing else.
    fn lateness(&self, route: Route, seq: u64, salt: u64) -> u32 {
        let Some(seed) = self.seed else { return 0 };
        let Route { stamp, from, to } = route;
        let mut mixed = seed;
        for word in [u64::from(stamp.set), u64::from(stamp.channel), u64::from(from), u64::from(to), seq, salt] {
            mixed = split_mix(mixed ^ word);
        }
        (mixed % 4) as u32
    }
}

/// One step of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
fn split_mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

// The network holds whole pieces under its locks, so a panicking rank leaves nothing half-made.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One member's end of a stream in a [`Network`].
#[derive(Debug)]
pub(crate) struct SimLink {
    network: Network,
    stamp: Stamp,
    ranks: Vec<u32>,
    me: usize,
    piece: usize,
    peers: Vec<Peer>,
    broken: Option<Error>,
}

#[derive(Debug)]
struct Peer {
    outgoing: Shared,
    incoming: Shared,
    sent: u64,
    received: u64,
    /// How often the next send is still refused for no reason; `None` before it was first tried.
    refusals: Option<u32>,
}

impl SimLink {
    fn check(&self, peer: usize, bytes: usize) -> Result<()> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        super::check_call(self.me, self.ranks.len(), self.piece, peer, bytes)
    }

    fn route(&self, from: usize, to: usize) -> Route {
        Route { stamp: self.stamp, from: self.ranks[from], to: self.ranks[to] }
    }
}

impl Link for SimLink {
    fn piece(&self) -> usize {
        self.piece
    }

    fn try_send(&mut self, to: usize, payload: &[u8]) -> Result<bool> {
        self.check(to, payload.len())?;
        let route = self.route(self.me, to);
        let peer = &mut self.peers[to];
        let refusals = peer.refusals.get_or_insert_with(|| self.network.lateness(route, peer.sent, 1));
        if *refusals > 0 {
            *refusals -= 1;
            return Ok(false);
        }
        let mut queue = lock(&peer.outgoing);
        if queue.pieces.len() >= DEPTH {
            return Ok(false);
        }
        let late = self.network.lateness(route, peer.sent, 2);
        queue.pieces.push_back(Parcel { seq: peer.sent, late, payload: payload.to_vec() });
        peer.sent += 1;
        peer.refusals = None;
        Ok(true)
    }

    fn try_recv(&mut self, from: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.check(from, 0)?;
        let peer = &mut self.peers[from];
        let mut queue = lock(&peer.incoming);
        match queue.pieces.front_mut() {
            None => return Ok(false),
            Some(first) if first.late > 0 => {
                first.late -= 1;
                return Ok(false);
            }
            Some(_) => {}
        }
        let Some(parcel) = queue.pieces.pop_front() else {
            return Ok(false);
        };
        drop(queue);
        if parcel.seq != peer.received {
            let error = Error::Poisoned(
                format!("a piece from rank {} is number {}, expected {}", self.ranks[from], parcel.seq, peer.received)
                    .into(),
            );
            self.broken = Some(error.clone());
            return Err(error);
        }
        peer.received += 1;
        take(&parcel.payload);
        Ok(true)
    }

    fn progress(&mut self) -> Result<()> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    fn idle(&self) -> bool {
        // A copied piece needs its sender no more.
        true
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        for peer in 0..self.ranks.len() {
            self.network.close(self.route(self.me, peer));
            self.network.close(self.route(peer, self.me));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(set: u32) -> Stamp {
        Stamp { job: 1, epoch: 0, set, channel: 0 }
    }

    fn pair(network: &Network, set: u32) -> (SimLink, SimLink) {
        let link = |me| network.link(stamp(set), vec![0, 1], me, 16).expect("a good link");
        (link(0), link(1))
    }

    fn receive(link: &mut SimLink, from: usize) -> Option<Vec<u8>> {
        let mut got = None;
        let answer = link.try_recv(from, &mut |bytes| got = Some(bytes.to_vec())).expect("try_recv");
        assert_eq!(answer, got.is_some());
        got
    }

    #[test]
    fn pieces_arrive_in_order_and_sends_are_bounded() {
        let network = Network::new(2);
        let (mut a, mut b) = pair(&network, 0);
        let mut sent = 0_u8;
        while a.try_send(1, &[sent; 3]).expect("send") {
            sent += 1;
        }
        assert_eq!(usize::from(sent), DEPTH);
        for n in 0..sent {
            assert_eq!(receive(&mut b, 0), Some(vec![n; 3]));
        }
        assert_eq!(receive(&mut b, 0), None);
        assert!(a.try_send(1, &[]).expect("an empty piece"));
        assert_eq!(receive(&mut b, 0), Some(vec![]));
    }

    #[test]
    fn sets_do_not_see_each_other() {
        let network = Network::new(2);
        let (mut a, mut b) = pair(&network, 0);
        let (mut c, mut d) = pair(&network, 1);
        assert!(a.try_send(1, b"a").expect("send") && c.try_send(1, b"c").expect("send"));
        assert_eq!(receive(&mut d, 0), Some(b"c".to_vec()));
        assert_eq!(receive(&mut b, 0), Some(b"a".to_vec()));
    }

    #[test]
    fn wrong_calls_are_named_and_leave_the_link_usable() {
        let network = Network::new(2);
        let (mut a, _b) = pair(&network, 0);
        for error in [a.try_send(0, b""), a.try_send(2, b""), a.try_send(1, &[0; 17]), a.try_recv(0, &mut |_| ())] {
            assert!(matches!(error, Err(Error::Argument(_))), "{error:?}");
        }
        assert!(a.try_send(1, &[0; 16]).expect("still usable"));
        assert!(network.link(stamp(0), vec![0, 2], 0, 1).is_err());
        assert!(network.link(stamp(0), vec![0, 0], 0, 1).is_err());
    }

    #[test]
    fn a_seed_repeats_its_delays_and_delays_lose_nothing() {
        let run = |seed| {
            let network = Network::seeded(2, seed);
            let (mut a, mut b) = pair(&network, 0);
            let mut answers = Vec::new();
            for n in 0..50_u8 {
                loop {
                    let sent = a.try_send(1, &[n]).expect("send");
                    answers.push(sent);
                    if sent {
                        break;
                    }
                }
                loop {
                    let got = receive(&mut b, 0);
                    answers.push(got.is_some());
                    if let Some(bytes) = got {
                        assert_eq!(bytes, [n]);
                        break;
                    }
                }
            }
            answers
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        assert!(run(7).iter().any(|answer| !answer));
    }

    #[test]
    fn what_was_sent_survives_its_sender_and_nothing_survives_both() {
        let network = Network::new(2);
        let (mut a, mut b) = pair(&network, 0);
        assert!(a.try_send(1, b"last words").expect("send"));
        drop(a);
        assert_eq!(receive(&mut b, 0), Some(b"last words".to_vec()));
        drop(b);
        assert!(lock(&network.queues).is_empty());
    }

    #[test]
    fn threads_stream_to_each_other() {
        let network = Network::seeded(3, 11);
        std::thread::scope(|scope| {
            for me in 0..3_usize {
                let mut link = network.link(stamp(0), vec![2, 0, 1], me, 64).expect("a good link");
                scope.spawn(move || {
                    let (mut sent, mut received) = ([0_u32; 3], [0_u32; 3]);
                    while (0..3).any(|peer| peer != me && (sent[peer] < 300 || received[peer] < 300)) {
                        for peer in (0..3).filter(|&peer| peer != me) {
                            let next = sent[peer].to_le_bytes();
                            if sent[peer] < 300 && link.try_send(peer, &next).expect("send") {
                                sent[peer] += 1;
                            }
                            let expected = received[peer].to_le_bytes();
                            if link.try_recv(peer, &mut |bytes| assert_eq!(bytes, expected)).expect("receive") {
                                received[peer] += 1;
                            }
                        }
                        std::thread::yield_now();
                    }
                });
            }
        });
    }
}

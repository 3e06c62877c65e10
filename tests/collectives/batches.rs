//! Batches of messages: whatever their order on the ranks, all of them arrive.

use kolo::{Error, Result, Transfer};

use super::bench::Bench;
use super::sample::{Random, draw, poison, same};

/// Elements of the messages of each pair, in their order.
const COUNTS: [usize; 4] = [3, 0, 20_000, 1];

/// The message number `at` of a pair.
fn message(seed: u64, from: usize, to: usize, at: usize) -> Vec<f32> {
    draw(seed ^ (to as u64) << 8 ^ (at as u64) << 16, from, COUNTS[at])
}

impl Bench<'_> {
    /// Every rank to every rank, itself included, several messages each, listed in another order on every rank.
    pub(crate) fn batches_in_any_order(&mut self, rounds: usize) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        for _ in 0..rounds {
            let seed = self.random.any();
            let mut order = Random::new(seed + me as u64);
            let sent: Vec<Vec<Vec<f32>>> =
                (0..ranks).map(|to| (0..COUNTS.len()).map(|at| message(seed, me, to, at)).collect()).collect();
            let mut got: Vec<Vec<Vec<f32>>> =
                (0..ranks).map(|_| COUNTS.map(|count| vec![poison(); count]).to_vec()).collect();
            // A lane for each peer and direction; the lanes are drawn from at random, and keep their own order.
            let mut lanes: Vec<Box<dyn Iterator<Item = Transfer<'_>> + '_>> = Vec::new();
            for (peer, (sent, got)) in sent.iter().zip(&mut got).enumerate() {
                lanes.push(Box::new(sent.iter().map(move |data| Transfer::send(data, peer))));
                lanes.push(Box::new(got.iter_mut().map(move |data| Transfer::recv(data, peer))));
            }
            let mut transfers = Vec::new();
            while !lanes.is_empty() {
                let lane = (order.any() % lanes.len() as u64) as usize;
                match lanes[lane].next() {
                    Some(transfer) => transfers.push(transfer),
                    None => drop(lanes.swap_remove(lane)),
                }
            }
            drop(lanes);
            self.world.batch(transfers)?;
            for (from, got) in got.iter().enumerate() {
                for (at, got) in got.iter().enumerate() {
                    assert!(same(got, &message(seed, from, me, at)), "message {at} from {from}");
                }
            }
            self.cases += 1;
        }
        Ok(())
    }

    /// Two that both send first, and rings, with messages that no mailbox holds; types differ, and `send` and `recv` serve as
    /// other halves.
    pub(crate) fn batches_that_send_first(&mut self) -> Result<()> {
        const LARGE: usize = 100_000;
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let (before, after) = ((me + ranks - 1) % ranks, (me + 1) % ranks);
        let seed = self.random.any();
        let data: Vec<Vec<i64>> = (0..ranks).map(|rank| draw(seed, rank, LARGE)).collect();
        let (mut left, mut right) = (vec![poison::<i64>(); LARGE], vec![poison::<i64>(); LARGE]);
        let (marks, mut theirs) = (vec![me.is_multiple_of(2); 100_000], vec![false; 100_000]);
        self.world.batch([
            Transfer::send(&data[me], after),
            Transfer::send(&data[me], before),
            Transfer::send(&marks, after),
            Transfer::recv(&mut right, after),
            Transfer::recv(&mut left, before),
            Transfer::recv(&mut theirs, before),
        ])?;
        // With two ranks, or one, both neighbours are one, whose messages keep their order.
        assert!(left == data[before] && right == data[after], "a ring of {ranks}");
        assert!(theirs.iter().all(|mark| *mark == before.is_multiple_of(2)), "a ring of {ranks}");
        self.cases += 1;
        if ranks > 1 && me < 2 {
            let mut got = vec![poison::<i64>(); LARGE];
            if me == 0 {
                self.world.batch([Transfer::send(&data[0], 1), Transfer::recv(&mut got, 1)])?;
            } else {
                self.world.recv(&mut got, 0)?;
                self.world.send(&data[1], 0)?;
            }
            assert!(got == data[1 - me], "a batch against single messages");
        }
        self.cases += 1;
        self.world.batch([])
    }

    /// One message that does not fit is told with both sides, and the others arrive.
    pub(crate) fn wrong_batches(&mut self) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        for odd in 0..ranks {
            let (mut wrong, mut right) = ([7_u16; 4], vec![poison::<f64>(); ranks]);
            let (mine, mut fitting) = ([me as f64], vec![[0_u8; 2]; ranks]);
            let mut misjudged = Some(&mut wrong);
            let mut transfers: Vec<Transfer<'_>> = Vec::new();
            for to in 0..ranks {
                transfers.push(Transfer::send(&[1_u8, 2], to));
                transfers.push(Transfer::send(&mine, to));
            }
            for (from, (byte, value)) in fitting.iter_mut().zip(right.chunks_mut(1)).enumerate() {
                // Every rank misjudges what the odd one sends.
                transfers.push(match misjudged.take_if(|_| from == odd) {
                    Some(wrong) => Transfer::recv(wrong, from),
                    None => Transfer::recv(byte, from),
                });
                transfers.push(Transfer::recv(value, from));
            }
            let outcome = self.world.batch(transfers);
            let Err(Error::Mismatch(mismatch)) = outcome else { panic!("rank {odd} sends bytes: {outcome:?}") };
            let views = [(odd as u32, "sends 2 u8".to_owned()), (me as u32, "receives 4 u16".to_owned())];
            assert_eq!(mismatch.views, views);
            assert_eq!(wrong, [7; 4], "left as it was");
            assert_eq!(right, (0..ranks).map(|rank| rank as f64).collect::<Vec<_>>());
            assert!((0..ranks).all(|from| fitting[from] == if from == odd { [0, 0] } else { [1, 2] }));
            self.cases += 1;
        }
        // What cannot be is told before anything moves.
        let argument = |outcome: Result<()>| {
            let Err(Error::Argument(text)) = outcome else { panic!("no argument error: {outcome:?}") };
            text.to_string()
        };
        let next = (me + 1) % ranks;
        let text = argument(self.world.batch([Transfer::send(&[1_u8], next), Transfer::send(&[1_u8; 3], ranks)]));
        assert!(text.contains("send of 3 u8 to rank") && text.contains("is not a rank"), "{text}");
        let text = argument(self.world.batch([Transfer::send(&[1_u8], me), Transfer::send(&[1_u8], next)]));
        let twice = if ranks == 1 { "2 messages to itself" } else { "1 messages to itself" };
        assert!(text.contains(twice) && text.contains("receives 0 of itself"), "{text}");
        self.cases += 2;
        self.world.barrier()
    }
}

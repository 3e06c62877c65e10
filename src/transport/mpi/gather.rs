//! An allgather from point-to-point messages, for setting a job up.
//!
//! Bruck et al., "Efficient algorithms for all-to-all communications in multiport message-passing systems", 1997: in
//! ceil(log2 n) steps each rank sends everything it holds to the rank 2^k below and receives from the rank 2^k above.

use std::time::{Duration, Instant};

use super::call::{Received, serial};
use super::staging::{Buffer, Progress, Transfer};
use super::world::{MpiWorld, Pace};
use crate::error::{Error, Result};

/// The tag of these messages; channels have the ones above.
pub(super) const TAG: i32 = 0;

const MAGIC: u64 = u64::from_le_bytes(*b"kologath");
/// Magic, call, step, length of the body.
const HEAD: usize = 32;
/// Bodies travel in parts of this size, as MPI's counts have 31 bits.
const PART: usize = 16 << 20;
/// More than a job of any size needs to say; a longer body is a message that was not meant for us.
const LIMIT: u64 = 16 << 30;

/// The allgathers of one world: how many there were, and whether one failed.
#[derive(Debug, Default)]
pub(super) struct Gather {
    calls: u64,
    broken: Option<Error>,
}

/// One allgather under way.
struct Call<'a> {
    world: &'a MpiWorld,
    number: u64,
    deadline: Duration,
    end: Instant,
    meanwhile: &'a mut Meanwhile<'a>,
}

/// What is done again and again while a rank is waited for.
pub(super) type Meanwhile<'a> = dyn FnMut() -> Result<()> + 'a;

impl Gather {
    pub(super) fn allgather<'a>(
        &mut self,
        world: &'a MpiWorld,
        mine: &[u8],
        deadline: Duration,
        meanwhile: &'a mut Meanwhile<'a>,
    ) -> Result<Vec<Vec<u8>>> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.calls += 1;
        let mut call = Call { world, number: self.calls, deadline, end: Instant::now() + deadline, meanwhile };
        call.run(mine).inspect_err(|error| self.broken = Some(error.clone()))
    }
}

impl Call<'_> {
    fn run(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (me, size) = (self.world.rank(), self.world.size());
        // Entry i is that of rank me + i, so that what a step adds comes last.
        let mut held = vec![mine.to_vec()];
        let mut distance = 1;
        while distance < size {
            let blocks = &held[..distance.min(size - distance)];
            let body =
                self.exchange(distance, &encode(blocks), (me + size - distance) % size, (me + distance) % size)?;
            let more = decode(&body, blocks.len())
                .ok_or_else(|| foreign((me + distance) % size, "a body that does not hold together"))?;
            held.extend(more);
            distance *= 2;
        }
        held.rotate_right(me);
        Ok(held)
    }

    /// Sends `body` to rank `to` and returns what rank `from` sends in the same step.
    fn exchange(&mut self, step: usize, body: &[u8], to: usize, from: usize) -> Result<Vec<u8>> {
        let words = [MAGIC, self.number, step as u64, body.len() as u64];
        let mut head = Buffer::new(HEAD);
        for (place, word) in head.bytes_mut().chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let mut sends = vec![self.send(head, HEAD, to)?];
        for part in body.chunks(PART) {
            let mut buffer = Buffer::new(part.len());
            buffer.bytes_mut()[..part.len()].copy_from_slice(part);
            sends.push(self.send(buffer, part.len(), to)?);
        }
        let head = self.receive(HEAD, from)?;
        let word = |i: usize| u64::from_le_bytes(head[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        for (name, index) in [("magic", 0), ("call", 1), ("step", 2)] {
            if word(index) != words[index] {
                return Err(foreign(from, &format!("{name} {:#x}, expected {:#x}", word(index), words[index])));
            }
        }
        if word(3) > LIMIT {
            return Err(foreign(from, &format!("a body of {} bytes", word(3))));
        }
        let mut got = Vec::new();
        let total = usize::try_from(word(3)).unwrap_or(usize::MAX);
        while got.len() < total {
            got.extend(self.receive(PART.min(total - got.len()), from)?);
        }
        for mut send in sends {
            let mut pace = Pace::new();
            while let Progress::Pending(same) = send.sent(&serial())? {
                send = same;
                self.wait(&mut pace, to)?;
            }
        }
        Ok(got)
    }

    fn send(&self, buffer: Buffer, length: usize, to: usize) -> Result<Transfer> {
        Transfer::send(&serial(), self.world.comm, buffer, length, to as i32, TAG)
    }

    fn receive(&mut self, length: usize, from: usize) -> Result<Vec<u8>> {
        let mut transfer = Transfer::receive(&serial(), self.world.comm, Buffer::new(length), from as i32, TAG)?;
        let mut pace = Pace::new();
        loop {
            match transfer.received(&serial())? {
                Progress::Pending(same) => transfer = same,
                Progress::Over((buffer, Received::Bytes(bytes))) if bytes == length => {
                    return Ok(buffer.bytes()[..length].to_vec());
                }
                Progress::Over((_, what)) => {
                    return Err(foreign(from, &format!("{what:?}, expected {length} bytes")));
                }
            }
            self.wait(&mut pace, from)?;
        }
    }

    fn wait(&mut self, pace: &mut Pace, peer: usize) -> Result<()> {
        if Instant::now() >= self.end {
            return Err(Error::Timeout {
                what: "setting up the job over MPI".into(),
                waited: self.deadline,
                missing: format!(
                    "rank {peer} did not take part; every rank must call kolo::init, and its own output may say why it \
                     did not"
                )
                .into(),
            });
        }
        (self.meanwhile)()?;
        pace.wait();
        Ok(())
    }
}

fn foreign(from: usize, what: &str) -> Error {
    Error::Poisoned(
        format!(
            "setting up the job: rank {from} sent {what}; all ranks must run the same program with the same version of \
             kolo, and start their kolos in the same order"
        )
        .into(),
    )
}

fn encode(blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(blocks.iter().map(|block| 8 + block.len()).sum());
    for block in blocks {
        bytes.extend((block.len() as u64).to_le_bytes());
        bytes.extend(block);
    }
    bytes
}

fn decode(mut bytes: &[u8], blocks: usize) -> Option<Vec<Vec<u8>>> {
    let mut out = Vec::with_capacity(blocks);
    for _ in 0..blocks {
        let (length, rest) = bytes.split_first_chunk()?;
        let (block, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        out.push(block.to_vec());
        bytes = rest;
    }
    bytes.is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use xtask::fuzz::{Random, fuzz};

    use super::*;
    use crate::os::counting::frugal;
    use crate::transport::mpi::testing;

    #[test]
    fn fuzz_gathered_blocks() {
        let valid = |random: &mut Random| encode(&(0..3).map(|_| random.bytes(30)).collect::<Vec<_>>());
        fuzz("gathered blocks", &[], valid, |bytes| {
            let blocks = frugal(bytes, || decode(bytes, 3));
            blocks.is_some_and(|blocks| {
                assert_eq!(encode(&blocks), bytes, "blocks have one form");
                true
            })
        });
    }

    #[test]
    fn blocks_survive_the_wire_and_broken_ones_do_not() {
        let blocks = vec![vec![], vec![1, 2, 3], vec![0; 100]];
        let bytes = encode(&blocks);
        assert_eq!(decode(&bytes, 3), Some(blocks));
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end], 3), None);
        }
        assert_eq!(decode(&bytes, 2), None);
        assert_eq!(decode(&u64::MAX.to_le_bytes(), 1), None);
    }

    #[test]
    fn ranks_gather_bytes_of_different_lengths() {
        testing::under_mpirun(&[1, 2, 3, 4, 5], |world| {
            for round in 0..20_usize {
                let block = |rank: usize| vec![(rank * 31 + round) as u8; (rank + 1) * round * round * 7];
                let all = world.allgather(&block(world.rank()), testing::DEADLINE).expect("allgather");
                assert_eq!(all, (0..world.size()).map(block).collect::<Vec<_>>());
            }
        });
    }

    #[test]
    fn a_body_of_several_parts_arrives() {
        testing::under_mpirun(&[2], |world| {
            let block = |rank: usize| vec![rank as u8 + 1; PART + PART / 2 + rank];
            let all = world.allgather(&block(world.rank()), testing::DEADLINE).expect("allgather");
            assert!(all == vec![block(0), block(1)]);
        });
    }

    #[test]
    fn a_rank_that_does_not_come_is_named() {
        testing::under_mpirun_ending(testing::Ending::Failure, &[2], |world| {
            if world.rank() == 0 {
                let start = Instant::now();
                let error = world.allgather(b"", Duration::from_millis(50)).expect_err("rank 1 stays away");
                assert!(error.to_string().contains("rank 1 did not take part"), "{error}");
                assert!(start.elapsed() >= Duration::from_millis(50));
                let again = world.allgather(b"", testing::DEADLINE).expect_err("a failed world stays failed");
                assert_eq!(again.to_string(), error.to_string());
            } else {
                testing::wait_for(0);
            }
        });
    }
}

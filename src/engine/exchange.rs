//! Runs a schedule of the link plane: rounds of messages over a work area.

use super::Step;
use super::operation::describe;
use crate::error::{Error, Result};
use crate::plan::{Combine, LinkPlan, Round, Span, Values};
use crate::transport::Link;
use crate::transport::shm::Fingerprint;

/// The elements that a schedule works on, wherever they lie.
///
/// Partial values are kept apart from final ones: 16-bit types add up in `f32` and round once, at `finish`.
pub(super) trait Area {
    /// Bytes of one element on the wire.
    fn width(&self, values: Values) -> usize;
    /// Fills the span with this rank's own contributions.
    fn load(&mut self, span: Span);
    /// Takes a received part in: `bytes` holds the values that `combine` carries, for exactly `span`.
    fn take(&mut self, combine: Combine, span: Span, bytes: &[u8]);
    /// Turns the span's partial values into final ones.
    fn finish(&mut self, span: Span);
    /// Appends the span's values to `bytes`.
    fn give(&self, values: Values, span: Span, bytes: &mut Vec<u8>);
}

/// Bytes of a print, before the values of the first message to a peer.
const PRINT: usize = 16;

/// Which peers have been told, and have told, what operation the messages belong to.
///
/// The first message of an operation to a peer begins with its print, so that a mismatch between hosts is found before
/// any of the peer's values are used.
#[derive(Debug)]
pub(super) struct Greetings {
    print: Fingerprint,
    told: Vec<usize>,
    heard: Vec<usize>,
}

impl Greetings {
    pub(super) fn new(print: Fingerprint) -> Self {
        Self { print, told: Vec::new(), heard: Vec::new() }
    }

    /// The print, for the first message to a peer.
    fn words(&self) -> [u8; PRINT] {
        let mut words = [0; PRINT];
        words[..8].copy_from_slice(&self.print.word0.to_le_bytes());
        words[8..].copy_from_slice(&self.print.word1.to_le_bytes());
        words
    }

    /// The values of the first message of a peer.
    fn check<'a>(&self, from: usize, message: &'a [u8]) -> Result<&'a [u8]> {
        let word = |at: usize| message.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
        let theirs = word(0).zip(word(8)).map(|(word0, word1)| Fingerprint { word0, word1 });
        if theirs == Some(self.print) {
            return Ok(&message[PRINT..]);
        }
        let theirs = theirs.map_or_else(|| "a message of another operation".to_owned(), describe);
        Err(Error::Poisoned(
            format!(
                "operation {}: rank {from} of the set asks for {theirs}, this rank for {}; make every rank pass the same, \
                 in the same order",
                self.print.seq(),
                describe(self.print)
            )
            .into(),
        ))
    }
}

/// A schedule in progress.
#[derive(Debug)]
pub(super) struct Exchange {
    plan: LinkPlan,
    index: usize,
    round: Round,
    begun: bool,
    /// Elements done of each send and each receive of the round.
    sent: Vec<usize>,
    received: Vec<usize>,
    bytes: Vec<u8>,
}

impl Exchange {
    pub(super) fn new(plan: LinkPlan) -> Self {
        Self {
            plan,
            index: 0,
            round: Round::default(),
            begun: false,
            sent: Vec::new(),
            received: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Moves on as far as messages and `gate` allow. `name` turns the plan's positions into set ranks.
    ///
    /// `gate` says of a round whether its sends, and whether its receives, have their turn: several exchanges that share
    /// a link take turns in an order that all ranks know, because messages of a pair match by order alone.
    pub(super) fn poll(
        &mut self,
        link: &mut dyn Link,
        name: &dyn Fn(usize) -> usize,
        greetings: &mut Greetings,
        area: &mut impl Area,
        gate: &dyn Fn(usize) -> (bool, bool),
    ) -> Result<Step> {
        let mut moved = false;
        while self.index < self.plan.rounds() {
            if !self.begun {
                self.begin(name, area);
                moved = true;
            }
            let (may_send, may_receive) = gate(self.index);
            if may_send {
                moved |= self.send(link, greetings, area)?;
            }
            if may_receive {
                moved |= self.receive(link, greetings, area)?;
            }
            if !(self.has_sent() && self.has_received()) {
                return Ok(if moved { Step::Progress } else { Step::Pending });
            }
            if let Some(span) = self.round.finish {
                area.finish(span);
            }
            self.index += 1;
            self.begun = false;
        }
        Ok(Step::Ready(()))
    }

    /// Whether all sends of the round are handed over.
    fn has_sent(&self) -> bool {
        self.round.sends.iter().zip(&self.sent).all(|(send, &done)| done == send.span.len)
    }

    fn has_received(&self) -> bool {
        self.round.receives.iter().zip(&self.received).all(|(receive, &done)| done == receive.span.len)
    }

    /// How many rounds have all their sends, and how many all their receives, behind them.
    pub(super) fn reached(&self) -> (usize, usize) {
        let (sent, received) = (self.begun && self.has_sent(), self.begun && self.has_received());
        (self.index + usize::from(sent), self.index + usize::from(received))
    }

    pub(super) fn is_over(&self) -> bool {
        self.index == self.plan.rounds()
    }

    fn begin(&mut self, name: &dyn Fn(usize) -> usize, area: &mut impl Area) {
        self.plan.round(self.index, &mut self.round);
        self.round.rename(name);
        self.sent.clear();
        self.sent.resize(self.round.sends.len(), 0);
        self.received.clear();
        self.received.resize(self.round.receives.len(), 0);
        if let Some(span) = self.round.load {
            area.load(span);
        }
        self.begun = true;
    }

    fn send(&mut self, link: &mut dyn Link, greetings: &mut Greetings, area: &impl Area) -> Result<bool> {
        let mut moved = false;
        for (send, done) in self.round.sends.iter().zip(&mut self.sent) {
            while *done < send.span.len {
                let told = greetings.told.contains(&send.to);
                let most = (link.piece() - if told { 0 } else { PRINT }) / area.width(send.values);
                let part = Span::new(send.span.start + *done, (send.span.len - *done).min(most));
                self.bytes.clear();
                if !told {
                    self.bytes.extend_from_slice(&greetings.words());
                }
                area.give(send.values, part, &mut self.bytes);
                if !link.try_send(send.to, &self.bytes)? {
                    break;
                }
                if !told {
                    greetings.told.push(send.to);
                }
                *done += part.len;
                moved = true;
            }
        }
        Ok(moved)
    }

    fn receive(&mut self, link: &mut dyn Link, greetings: &mut Greetings, area: &mut impl Area) -> Result<bool> {
        let mut moved = false;
        for (receive, done) in self.round.receives.iter().zip(&mut self.received) {
            let width = area.width(receive.combine.values());
            while *done < receive.span.len {
                let left_over = receive.span.len - *done;
                let start = receive.span.start + *done;
                let heard = greetings.heard.contains(&receive.from);
                let mut taken = Ok(0);
                let came = link.try_recv(receive.from, &mut |message| {
                    taken = values(receive.from, message, (!heard).then_some(&*greetings)).and_then(|bytes| {
                        if bytes.is_empty() || bytes.len() % width != 0 || bytes.len() / width > left_over {
                            return Err(misfit(receive.from, bytes.len(), left_over, width));
                        }
                        let count = bytes.len() / width;
                        area.take(receive.combine, Span::new(start, count), bytes);
                        Ok(count)
                    });
                })?;
                if !came {
                    break;
                }
                *done += taken?;
                if !heard {
                    greetings.heard.push(receive.from);
                }
                moved = true;
            }
        }
        Ok(moved)
    }

    /// The set ranks that the current round still waits for.
    pub(super) fn missing(&self) -> Vec<usize> {
        let late =
            |(receive, &done): (&crate::plan::Receive, &usize)| (done < receive.span.len).then_some(receive.from);
        let unsent = |(send, &done): (&crate::plan::Send, &usize)| (done < send.span.len).then_some(send.to);
        let receives = self.round.receives.iter().zip(&self.received).filter_map(late);
        receives.chain(self.round.sends.iter().zip(&self.sent).filter_map(unsent)).collect()
    }
}

/// The values in a message, after the print if it is the peer's first.
fn values<'a>(from: usize, message: &'a [u8], first: Option<&Greetings>) -> Result<&'a [u8]> {
    first.map_or(Ok(message), |greetings| greetings.check(from, message))
}

#[cold]
fn misfit(from: usize, bytes: usize, elements: usize, width: usize) -> Error {
    Error::Poisoned(
        format!(
            "a message of {bytes} bytes from rank {from} of the set, where at most {elements} elements of {width} bytes \
             were due; both ranks must run the same kolo and the same knobs"
        )
        .into(),
    )
}

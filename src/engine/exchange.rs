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

/// Which peers have been told, and have told, what operation the messages belong to.
///
/// The first message of an operation to a peer is its print, so that a mismatch between hosts is found before any
/// of the peer's values are used.
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

    fn tell(&mut self, link: &mut dyn Link, to: usize) -> Result<bool> {
        if self.told.contains(&to) {
            return Ok(true);
        }
        let mut message = [0; 16];
        message[..8].copy_from_slice(&self.print.word0.to_le_bytes());
        message[8..].copy_from_slice(&self.print.word1.to_le_bytes());
        let sent = link.try_send(to, &message)?;
        if sent {
            self.told.push(to);
        }
        Ok(sent)
    }

    fn hear(&mut self, link: &mut dyn Link, from: usize) -> Result<bool> {
        if self.heard.contains(&from) {
            return Ok(true);
        }
        let mut theirs = None;
        let came = link.try_recv(from, &mut |bytes| {
            let word = |at: usize| bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
            let words = (bytes.len() == 16).then(|| word(0).zip(word(8))).flatten();
            theirs = words.map(|(word0, word1)| Fingerprint { word0, word1 });
        })?;
        if !came {
            return Ok(false);
        }
        if theirs != Some(self.print) {
            let theirs = theirs.map_or_else(|| "a message of another operation".to_owned(), describe);
            return Err(Error::Poisoned(
                format!(
                    "operation {}: rank {from} of the set asks for {theirs}, this rank for {}; make every rank pass the \
                     same, in the same order",
                    self.print.seq(),
                    describe(self.print)
                )
                .into(),
            ));
        }
        self.heard.push(from);
        Ok(true)
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

    /// Moves on as far as messages allow. `name` turns the plan's positions into set ranks.
    pub(super) fn poll(
        &mut self,
        link: &mut dyn Link,
        name: &dyn Fn(usize) -> usize,
        greetings: &mut Greetings,
        area: &mut impl Area,
    ) -> Result<Step> {
        link.progress()?;
        let mut moved = false;
        while self.index < self.plan.rounds() {
            if !self.begun {
                self.begin(name, area);
                moved = true;
            }
            moved |= self.send(link, greetings, area)?;
            moved |= self.receive(link, greetings, area)?;
            let sends = self.round.sends.iter().zip(&self.sent).all(|(send, &done)| done == send.span.len);
            let receives = self.round.receives.iter().zip(&self.received).all(|(get, &done)| done == get.span.len);
            if !(sends && receives) {
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
            if *done == send.span.len || !greetings.tell(link, send.to)? {
                continue;
            }
            let most = link.piece() / area.width(send.values);
            while *done < send.span.len {
                let part = Span::new(send.span.start + *done, (send.span.len - *done).min(most));
                self.bytes.clear();
                area.give(send.values, part, &mut self.bytes);
                if !link.try_send(send.to, &self.bytes)? {
                    break;
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
            if *done == receive.span.len || !greetings.hear(link, receive.from)? {
                continue;
            }
            let width = area.width(receive.combine.values());
            let mut wrong = None;
            while *done < receive.span.len && wrong.is_none() {
                let left = receive.span.len - *done;
                let start = receive.span.start + *done;
                let mut taken = 0;
                let came = link.try_recv(receive.from, &mut |bytes| {
                    if bytes.is_empty() || bytes.len() % width != 0 || bytes.len() / width > left {
                        wrong = Some(bytes.len());
                        return;
                    }
                    taken = bytes.len() / width;
                    area.take(receive.combine, Span::new(start, taken), bytes);
                })?;
                if !came {
                    break;
                }
                *done += taken;
                moved = true;
            }
            if let Some(bytes) = wrong {
                return Err(Error::Poisoned(
                    format!(
                        "a message of {bytes} bytes from rank {} of the set, where at most {left} elements of {width} bytes \
                         were due; both ranks must run the same kolo and the same knobs",
                        receive.from,
                        left = receive.span.len - *done
                    )
                    .into(),
                ));
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

//! Frames of a request ring: what a member says about itself.

use super::called::MAX_STEP_NAME;
use super::request::Request;
use super::wire::{Put, Take, cut};

/// The longest reason of an invalid submission that peers see, in bytes.
pub(super) const MAX_REASON: usize = 256;

const REQUEST: u8 = 1;
const INVALID: u8 = 2;
const WITHDRAW: u8 = 3;
const EXPIRED: u8 = 4;
const JOIN: u8 = 5;

/// What a withdrawal or an expiry is about: the form in which the name was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// A phase bit.
    Slot(u32),
    /// A frame.
    Name(&'a str),
}

impl<'a> Target<'a> {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::Slot(slot) => {
                out.u8(0);
                out.varint(slot.into());
            }
            Self::Name(name) => {
                out.u8(1);
                out.str(name);
            }
        }
    }

    pub(super) fn take(take: &mut Take<'a>) -> Option<Self> {
        match take.u8()? {
            0 => take.u32().map(Self::Slot),
            1 => take.str(MAX_STEP_NAME).map(Self::Name),
            _ => None,
        }
    }
}

/// What a rank wants of a name, as the peers compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View<'a> {
    /// An encoded request without its name. Equal bytes are equal requests.
    Request(&'a [u8]),
    /// The call was refused there, for this reason.
    Invalid(&'a str),
}

/// The content of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// The name is submitted in full.
    Submission { name: &'a str, view: View<'a> },
    /// The last submission of the target is taken back.
    Withdraw { serial: u64, target: Target<'a> },
    /// The submission of the target reached its deadline after so many microseconds.
    Expired { micros: u64, target: Target<'a> },
    /// The rank has joined: nothing of it is in flight, and it submits nothing until all have joined.
    Join,
}

/// One frame: the position of its writer, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// How many log entries the writer had processed.
    pub(super) as_of: u64,
    pub(super) body: Body<'a>,
}

pub(super) fn put_request(out: &mut Vec<u8>, as_of: u64, request: &Request) {
    out.u8(REQUEST);
    out.varint(as_of);
    request.encode(out);
}

pub(super) fn put_invalid(out: &mut Vec<u8>, as_of: u64, name: &str, reason: &str) {
    out.u8(INVALID);
    out.varint(as_of);
    out.str(name);
    out.str(cut(reason, MAX_REASON));
}

pub(super) fn put_withdraw(out: &mut Vec<u8>, as_of: u64, serial: u64, target: Target<'_>) {
    out.u8(WITHDRAW);
    out.varint(as_of);
    out.varint(serial);
    target.encode(out);
}

pub(super) fn put_expired(out: &mut Vec<u8>, as_of: u64, micros: u64, target: Target<'_>) {
    out.u8(EXPIRED);
    out.varint(as_of);
    out.varint(micros);
    target.encode(out);
}

pub(super) fn put_join(out: &mut Vec<u8>, as_of: u64) {
    out.u8(JOIN);
    out.varint(as_of);
}

/// Reads one frame; `None` if the bytes are anything else.
pub(super) fn parse(bytes: &[u8]) -> Option<Frame<'_>> {
    let mut take = Take::new(bytes);
    let tag = take.u8()?;
    let as_of = take.varint()?;
    let body = match tag {
        REQUEST => {
            let name = take.str(MAX_STEP_NAME).filter(|name| !name.is_empty())?;
            let view = take.rest();
            let mut check = take;
            take = Take::new(&[]);
            Request::check_view(&mut check).filter(|()| check.is_empty())?;
            Body::Submission { name, view: View::Request(view) }
        }
        INVALID => {
            let name = take.str(MAX_STEP_NAME).filter(|name| !name.is_empty())?;
            Body::Submission { name, view: View::Invalid(take.str(MAX_REASON)?) }
        }
        WITHDRAW => Body::Withdraw { serial: take.varint()?, target: Target::take(&mut take)? },
        EXPIRED => Body::Expired { micros: take.varint()?, target: Target::take(&mut take)? },
        JOIN => Body::Join,
        _ => return None,
    };
    take.is_empty().then_some(Frame { as_of, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::MAX_FRAME;
    use crate::coordinator::request::MAX_DIMS;
    use crate::tensor::{DType, ReduceOp};

    #[test]
    fn frames_round_trip_and_cut_ones_are_refused() {
        let request = Request::allreduce("a", DType::F32, vec![2, 3], ReduceOp::Sum);
        let mut view = Vec::new();
        request.encode_view(&mut view);
        let mut frames: Vec<(Vec<u8>, Body<'_>)> = Vec::new();
        let mut out = Vec::new();
        put_request(&mut out, 300, &request);
        frames.push((out.clone(), Body::Submission { name: "a", view: View::Request(&view) }));
        out.clear();
        put_invalid(&mut out, 300, "a", "no such shape");
        frames.push((out.clone(), Body::Submission { name: "a", view: View::Invalid("no such shape") }));
        out.clear();
        put_withdraw(&mut out, 300, 4, Target::Slot(77));
        frames.push((out.clone(), Body::Withdraw { serial: 4, target: Target::Slot(77) }));
        out.clear();
        put_expired(&mut out, 300, 9, Target::Name("a"));
        frames.push((out.clone(), Body::Expired { micros: 9, target: Target::Name("a") }));
        out.clear();
        put_join(&mut out, 300);
        frames.push((out, Body::Join));
        for (bytes, body) in &frames {
            assert_eq!(parse(bytes), Some(Frame { as_of: 300, body: *body }));
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), None, "{body:?} cut to {len}");
            }
        }
    }

    #[test]
    fn the_largest_frames_fit() {
        let name = "n".repeat(MAX_STEP_NAME);
        let mut request = Request::allreduce(name.as_str(), DType::F32, vec![0; MAX_DIMS], ReduceOp::Sum);
        request.shape[1..].fill(1 << 56);
        request.spec.prescale = 0.1;
        let mut out = Vec::new();
        put_request(&mut out, u64::MAX, &request);
        assert!(out.len() <= MAX_FRAME, "{}", out.len());
        assert!(parse(&out).is_some());
        out.clear();
        put_invalid(&mut out, u64::MAX, &name, &"é".repeat(400));
        assert!(out.len() <= MAX_FRAME);
        assert!(parse(&out).is_some());
    }
}

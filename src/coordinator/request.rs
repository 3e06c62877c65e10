//! What a rank asks for: the operation on one named tensor.

use std::fmt;
use std::sync::Arc;

use super::wire::{Put, Take};
use crate::error::{Error, Result};
use crate::tensor::{DType, ReduceOp};

/// The longest name in bytes.
pub(crate) const MAX_NAME: usize = 512;
/// The most dimensions of a shape.
pub(crate) const MAX_DIMS: usize = 32;
/// The most elements: byte counts stay far inside 64 bits.
const MAX_ELEMENTS: u64 = 1 << 56;

/// Which collective, with the parameter that only it has.
///
/// A new collective adds a variant, its code in [`Kind::encode`] and [`Kind::decode`], and its words in `Display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everyone gets the reduction of all.
    Allreduce {
        /// How elements become one.
        op: ReduceOp,
    },
    /// Everyone gets the root's tensor.
    Broadcast {
        /// The root's set rank.
        root: u32,
    },
}

impl Kind {
    fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::Allreduce { op } => {
                out.u8(1);
                out.u8(op as u8);
            }
            Self::Broadcast { root } => {
                out.u8(2);
                out.varint(root.into());
            }
        }
    }

    fn decode(take: &mut Take<'_>) -> Option<Self> {
        match take.u8()? {
            1 => Some(Self::Allreduce { op: ReduceOp::from_code(take.u8()?)? }),
            2 => Some(Self::Broadcast { root: take.u32()? }),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allreduce { op } => write!(f, "allreduce {op}"),
            Self::Broadcast { root } => write!(f, "broadcast from {root}"),
        }
    }
}

/// Where the tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// Host memory.
    Host,
    /// A CUDA device's memory. Which device does not matter to the peers.
    Cuda,
}

/// What a batch has in common: requests with equal specs may be fused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// The collective.
    pub(crate) kind: Kind,
    /// The element type.
    pub(crate) dtype: DType,
    /// Where the tensors live.
    pub(crate) device: Device,
    /// Factor applied before the reduction.
    pub(crate) prescale: f64,
    /// Factor applied after the reduction.
    pub(crate) postscale: f64,
}

impl PartialEq for Spec {
    // By bits: a NaN factor equals itself, so that it cannot make a rank disagree with its own request.
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.dtype == other.dtype
            && self.device == other.device
            && self.prescale.to_bits() == other.prescale.to_bits()
            && self.postscale.to_bits() == other.postscale.to_bits()
    }
}

impl Eq for Spec {}

/// One named tensor's operation. Equal on every rank, or it fails on every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The tensor's name, unique among those in flight on a rank.
    pub(crate) name: Arc<str>,
    /// Collective, type, device, factors.
    pub(crate) spec: Spec,
    /// The dimensions; empty is a scalar, a zero among them an empty tensor.
    pub(crate) shape: Vec<usize>,
}

impl Request {
    /// An allreduce of host memory without factors.
    #[cfg(test)]
    pub(crate) fn allreduce(name: impl Into<Arc<str>>, dtype: DType, shape: Vec<usize>, op: ReduceOp) -> Self {
        let kind = Kind::Allreduce { op };
        Self {
            name: name.into(),
            spec: Spec { kind, dtype, device: Device::Host, prescale: 1.0, postscale: 1.0 },
            shape,
        }
    }

    /// A broadcast of host memory from set rank `root`.
    #[cfg(test)]
    pub(crate) fn broadcast(name: impl Into<Arc<str>>, dtype: DType, shape: Vec<usize>, root: u32) -> Self {
        let kind = Kind::Broadcast { root };
        Self {
            name: name.into(),
            spec: Spec { kind, dtype, device: Device::Host, prescale: 1.0, postscale: 1.0 },
            shape,
        }
    }

    /// The number of elements. Checked by [`Request::validate`] to be sane.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64))
    }

    /// The number of bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.spec.dtype.size() as u64)
    }

    /// Whether the request makes sense in a set of `size` ranks.
    pub(crate) fn validate(&self, size: usize) -> Result<()> {
        check_name(&self.name)?;
        if self.shape.len() > MAX_DIMS {
            return Err(Error::argument(format!(
                "'{}': {} dimensions; at most {MAX_DIMS} are supported, flatten the tensor",
                self.name,
                self.shape.len()
            )));
        }
        if self.elements() > MAX_ELEMENTS {
            return Err(Error::argument(format!(
                "'{}': shape {:?} has more elements than can exist; check how it was computed",
                self.name, self.shape
            )));
        }
        match self.spec.kind {
            Kind::Broadcast { root } if root as usize >= size => Err(Error::argument(format!(
                "'{}': root {root} is not in the set of {size} ranks; pass a rank below {size}",
                self.name
            ))),
            Kind::Allreduce { op } => match op.refusal(self.spec.dtype) {
                Some(reason) => Err(Error::argument(format!("'{}': {reason}", self.name))),
                None => Ok(()),
            },
            Kind::Broadcast { .. } => Ok(()),
        }
    }

    /// Appends the request. [`Request::decode`] reads it back.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.str(&self.name);
        self.encode_view(out);
    }

    /// Everything but the name.
    pub(super) fn encode_view(&self, out: &mut Vec<u8>) {
        self.spec.kind.encode(out);
        out.u8(self.spec.dtype as u8);
        let scaled = self.spec.prescale.to_bits() != 1f64.to_bits() || self.spec.postscale.to_bits() != 1f64.to_bits();
        out.u8(u8::from(self.spec.device == Device::Cuda) | u8::from(scaled) << 1);
        if scaled {
            out.f64(self.spec.prescale);
            out.f64(self.spec.postscale);
        }
        out.varint(self.shape.len() as u64);
        for dim in &self.shape {
            out.varint(*dim as u64);
        }
    }

    /// Reads exactly one request from all of `bytes`; `None` if they are anything else.
    #[cfg(test)]
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut take = Take::new(bytes);
        let request = Self::take(&mut take)?;
        take.is_empty().then_some(request)
    }

    pub(super) fn take(take: &mut Take<'_>) -> Option<Self> {
        let name = take.str(MAX_NAME)?;
        Self::take_view(name, take)
    }

    pub(super) fn take_view(name: &str, take: &mut Take<'_>) -> Option<Self> {
        let (kind, dtype) = kind_and_dtype(take)?;
        let flags = take.u8().filter(|flags| *flags < 4)?;
        let device = if flags & 1 == 0 { Device::Host } else { Device::Cuda };
        let (prescale, postscale) = if flags & 2 == 0 { (1.0, 1.0) } else { (take.f64()?, take.f64()?) };
        let dims = take.bounded(MAX_DIMS as u64)? as usize;
        let mut shape = Vec::with_capacity(dims);
        let mut elements = 1u64;
        for _ in 0..dims {
            let dim = take.varint()?;
            elements = elements.saturating_mul(dim);
            shape.push(dim.try_into().ok()?);
        }
        let spec = Spec { kind, dtype, device, prescale, postscale };
        (elements <= MAX_ELEMENTS && !name.is_empty()).then(|| Self { name: name.into(), spec, shape })
    }

    /// Whether [`Request::take_view`] would read something, without allocating.
    pub(super) fn check_view(take: &mut Take<'_>) -> Option<()> {
        kind_and_dtype(take)?;
        if take.u8().filter(|flags| *flags < 4)? & 2 != 0 {
            take.slice(16)?;
        }
        let mut elements = 1u64;
        for _ in 0..take.bounded(MAX_DIMS as u64)? {
            elements = elements.saturating_mul(take.varint()?);
        }
        (elements <= MAX_ELEMENTS).then_some(())
    }

    /// The request in words, without its name: a line of a mismatch.
    pub(crate) fn describe(&self) -> String {
        let Spec { kind, dtype, device, prescale, postscale } = self.spec;
        let mut text = format!("{kind} of {dtype}{:?}", self.shape);
        if prescale.to_bits() != 1f64.to_bits() || postscale.to_bits() != 1f64.to_bits() {
            text += &format!(", prescale {prescale}, postscale {postscale}");
        }
        match device {
            Device::Host => text += " in host memory",
            Device::Cuda => text += " in CUDA memory",
        }
        text
    }
}

/// What every encoding begins with; `None` where the operation does not take the type.
fn kind_and_dtype(take: &mut Take<'_>) -> Option<(Kind, DType)> {
    let kind = Kind::decode(take)?;
    let dtype = DType::from_code(take.u8()?)?;
    let fits = match kind {
        Kind::Allreduce { op } => op.takes(dtype),
        Kind::Broadcast { .. } => true,
    };
    fits.then_some((kind, dtype))
}

/// Whether `name` can be sent to the peers.
pub(super) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::argument("a tensor's name is empty; give it one that is the same on every rank"));
    }
    if name.len() > MAX_NAME {
        return Err(Error::argument(format!(
            "the name '{}...' has {} bytes; at most {MAX_NAME} are supported, shorten it",
            super::wire::cut(name, 60),
            name.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Request {
        let mut request = Request::allreduce("layer.0/weight", DType::BF16, vec![3, 0, 70_000], ReduceOp::Average);
        request.spec.prescale = 0.5;
        request
    }

    #[test]
    fn requests_round_trip() {
        let mut cuda = Request::broadcast("b", DType::U8, vec![], 70_000);
        cuda.spec.device = Device::Cuda;
        for request in [sample(), cuda, Request::allreduce("x", DType::F64, vec![7; MAX_DIMS - 16], ReduceOp::Max)] {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            assert_eq!(Request::decode(&bytes), Some(request));
        }
    }

    #[test]
    fn cut_and_extended_bytes_are_refused() {
        let mut bytes = Vec::new();
        sample().encode(&mut bytes);
        for len in 0..bytes.len() {
            assert_eq!(Request::decode(&bytes[..len]), None, "{len} bytes");
        }
        bytes.push(0);
        assert_eq!(Request::decode(&bytes), None);
    }

    #[test]
    fn an_operation_on_a_type_that_it_does_not_take_is_no_request() {
        for dtype in DType::ALL {
            for op in ReduceOp::ALL {
                let mut bytes = Vec::new();
                Request::allreduce("x", dtype, vec![2], op).encode(&mut bytes);
                assert_eq!(Request::decode(&bytes).is_some(), op.takes(dtype), "{op} of {dtype}");
            }
        }
    }

    #[test]
    fn words_say_what_differs() {
        assert_eq!(
            sample().describe(),
            "allreduce average of bf16[3, 0, 70000], prescale 0.5, postscale 1 in host memory"
        );
        assert_eq!(Request::broadcast("b", DType::U8, vec![], 3).describe(), "broadcast from 3 of u8[] in host memory");
    }

    #[test]
    fn impossible_requests_are_refused_with_advice() {
        let refused = |request: Request| request.validate(4).unwrap_err().to_string();
        assert!(refused(Request::broadcast("b", DType::U8, vec![1], 4)).contains("root 4"));
        assert!(refused(Request::allreduce("", DType::U8, vec![1], ReduceOp::Sum)).contains("empty"));
        assert!(refused(Request::allreduce("n".repeat(600), DType::U8, vec![], ReduceOp::Sum)).contains("600 bytes"));
        assert!(refused(Request::allreduce("d", DType::U8, vec![1; 33], ReduceOp::Sum)).contains("33 dimensions"));
        assert!(
            refused(Request::allreduce("d", DType::U8, vec![usize::MAX, 4], ReduceOp::Sum)).contains("more elements")
        );
        let text = refused(Request::allreduce("mask", DType::Bool, vec![1], ReduceOp::Sum));
        assert!(text.contains("'mask'") && text.contains("sum does not take bool"), "{text}");
        assert!(refused(Request::allreduce("x", DType::F16, vec![1], ReduceOp::Or)).contains("or does not take f16"));
        assert!(sample().validate(4).is_ok());
        assert!(Request::broadcast("b", DType::Bool, vec![1], 3).validate(4).is_ok());
    }
}

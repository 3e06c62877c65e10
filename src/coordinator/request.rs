//! What a rank asks for: the operation on one named tensor.

use std::sync::Arc;

use super::called::{MAX_STEP_NAME, check_name};
use super::kind::Kind;
use super::wire::{Put, Take};
use crate::error::{Error, Fields, Result};
use crate::tensor::DType;
#[cfg(test)]
use crate::tensor::ReduceOp;

/// The most dimensions of a shape.
pub(crate) const MAX_DIMS: usize = 32;
/// The most elements: byte counts stay far inside 64 bits.
const MAX_ELEMENTS: u64 = 1 << 56;

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
    /// The dimensions; empty is a scalar, a zero among them an empty tensor. Of a group: the number of all elements.
    pub(crate) shape: Vec<usize>,
    /// The tensors of a group.
    pub(crate) group: Option<Group>,
}

/// Tensors that are one operation under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// How many.
    pub(crate) tensors: u32,
    /// A digest of all their shapes: a frame has no room for hundreds of them.
    pub(crate) digest: u64,
}

impl Group {
    /// The group of tensors of these shapes.
    pub(crate) fn of(shapes: &[Vec<usize>]) -> Self {
        // FNV-1a over every number; each shape is led by its length.
        let numbers = shapes.iter().flat_map(|shape| std::iter::once(shape.len()).chain(shape.iter().copied()));
        let digest = numbers
            .flat_map(|number| (number as u64).to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self { tensors: shapes.len() as u32, digest }
    }
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
            group: None,
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
            group: None,
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
        match self.spec.kind.root() {
            Some(root) if root as usize >= size => Err(Error::argument(format!(
                "'{}': root {root} is not in the set of {size} ranks; pass a rank below {size}",
                self.name
            ))),
            _ => match self.spec.kind.refusal(self.spec.dtype) {
                Some(reason) => Err(Error::argument(format!("'{}': {reason}", self.name))),
                None => Ok(()),
            },
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
        let flags =
            u8::from(self.spec.device == Device::Cuda) | u8::from(scaled) << 1 | u8::from(self.group.is_some()) << 2;
        out.u8(flags);
        if scaled {
            out.f64(self.spec.prescale);
            out.f64(self.spec.postscale);
        }
        if let Some(Group { tensors, digest }) = self.group {
            out.varint(tensors.into());
            out.varint(digest);
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
        let name = take.str(MAX_STEP_NAME)?;
        Self::take_view(name, take)
    }

    pub(super) fn take_view(name: &str, take: &mut Take<'_>) -> Option<Self> {
        let (kind, dtype) = kind_and_dtype(take)?;
        let flags = take.u8().filter(|flags| *flags < 8)?;
        let device = if flags & 1 == 0 { Device::Host } else { Device::Cuda };
        let (prescale, postscale) = if flags & 2 == 0 { (1.0, 1.0) } else { (take.f64()?, take.f64()?) };
        let group = if flags & 4 == 0 { None } else { Some(Group { tensors: take.u32()?, digest: take.varint()? }) };
        let dims = take.bounded(MAX_DIMS as u64)? as usize;
        let mut shape = Vec::with_capacity(dims);
        let mut elements = 1u64;
        for _ in 0..dims {
            let dim = take.varint()?;
            elements = elements.saturating_mul(dim);
            shape.push(dim.try_into().ok()?);
        }
        let spec = Spec { kind, dtype, device, prescale, postscale };
        (elements <= MAX_ELEMENTS && !name.is_empty()).then(|| Self { name: name.into(), spec, shape, group })
    }

    /// Whether [`Request::take_view`] would read something, without allocating.
    pub(super) fn check_view(take: &mut Take<'_>) -> Option<()> {
        kind_and_dtype(take)?;
        let flags = take.u8().filter(|flags| *flags < 8)?;
        if flags & 2 != 0 {
            take.slice(16)?;
        }
        if flags & 4 != 0 {
            take.u32()?;
            take.varint()?;
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
        if kind == Kind::Meet {
            // The bytes that it moves are not the user's.
            return kind.to_string();
        }
        let mut text = match self.group {
            None => format!("{kind} of {dtype}{}", self.shape_in_words()),
            Some(Group { tensors, digest }) => {
                let elements = self.elements_in_words();
                format!("{kind} of a group of {tensors} {dtype} tensors, {elements}, shapes {digest:08x}")
            }
        };
        if prescale.to_bits() != 1f64.to_bits() || postscale.to_bits() != 1f64.to_bits() {
            text += &format!(", prescale {prescale}, postscale {postscale}");
        }
        match device {
            Device::Host => text += " in host memory",
            Device::Cuda => text += " in CUDA memory",
        }
        text
    }

    /// How many elements a group has.
    fn elements_in_words(&self) -> String {
        if self.spec.kind.has_own_rows() {
            return "as many rows as each rank likes".to_owned();
        }
        format!("{} elements", self.elements())
    }

    fn shape_in_words(&self) -> String {
        if self.spec.kind.has_own_rows() {
            let rest: String = self.shape.iter().skip(1).map(|dim| format!(", {dim}")).collect();
            return format!("[*{rest}]");
        }
        format!("{:?}", self.shape)
    }

    /// The request field by field, without its name: all that [`describe`](Self::describe) tells apart.
    pub(super) fn fields(&self) -> Fields {
        let Spec { kind, dtype, device, prescale, postscale } = self.spec;
        let mut fields: Fields = vec![("operation", kind.to_string())];
        if kind == Kind::Meet {
            return fields;
        }
        fields.push(("dtype", dtype.to_string()));
        match self.group {
            None => fields.push(("shape", self.shape_in_words())),
            Some(Group { tensors, digest }) => {
                fields.push(("group", format!("a group of {tensors}")));
                fields.push(("elements", self.elements_in_words()));
                // The shapes themselves are too many to send; a digest shows which ranks agree.
                fields.push(("shapes of its tensors, in order", format!("shapes of digest {digest:08x}")));
            }
        }
        // Named in the value as well: what is equal on all ranks is listed by its values alone.
        for (name, scale) in [("prescale", prescale), ("postscale", postscale)] {
            if scale.to_bits() != 1f64.to_bits() {
                fields.push((name, format!("{name} {scale}")));
            }
        }
        let memory = match device {
            Device::Host => "host memory",
            Device::Cuda => "CUDA memory",
        };
        fields.push(("memory", memory.to_owned()));
        fields
    }
}

/// What every encoding begins with; `None` where the operation does not take the type.
fn kind_and_dtype(take: &mut Take<'_>) -> Option<(Kind, DType)> {
    let kind = Kind::decode(take)?;
    let dtype = DType::from_code(take.u8()?)?;
    kind.takes(dtype).then_some((kind, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::moves::Move;

    fn sample() -> Request {
        let mut request = Request::allreduce("layer.0/weight", DType::BF16, vec![3, 0, 70_000], ReduceOp::Average);
        request.spec.prescale = 0.5;
        request
    }

    #[test]
    fn requests_round_trip() {
        let mut cuda = Request::broadcast("b", DType::U8, vec![], 70_000);
        cuda.spec.device = Device::Cuda;
        let mut group = sample();
        group.group = Some(Group::of(&[vec![3], vec![], vec![7, 2]]));
        let kinds = [
            Kind::Reduce { op: ReduceOp::Min, root: 3 },
            Kind::ReduceScatter { op: ReduceOp::Sum },
            Kind::Move(Move::Allgather),
            Kind::Move(Move::Gather { root: 2 }),
            Kind::Move(Move::Scatter { root: 70_000 }),
            Kind::Move(Move::AllToAll),
            Kind::Meet,
            Kind::AllreduceRows { op: ReduceOp::Average },
            Kind::BroadcastRows { root: 300 },
        ];
        for kind in kinds {
            let mut request = Request::allreduce("k", DType::I64, vec![0, 5], ReduceOp::Sum);
            request.spec.kind = kind;
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            assert_eq!(Request::decode(&bytes), Some(request));
        }
        for request in
            [sample(), cuda, group, Request::allreduce("x", DType::F64, vec![7; MAX_DIMS - 16], ReduceOp::Max)]
        {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            assert_eq!(Request::decode(&bytes), Some(request));
        }
    }

    #[test]
    fn steps_that_know_their_rows_ask_for_the_same_whatever_their_number() {
        let with_kind = |kind, shape| {
            let mut request = Request::allreduce("x", DType::F32, shape, ReduceOp::Sum);
            request.spec.kind = kind;
            request
        };
        let rows = with_kind(Kind::AllreduceRows { op: ReduceOp::Sum }, vec![0, 3]);
        assert_eq!(rows.describe(), "allreduce sum of some rows of f32[*, 3] in host memory");
        assert!(!rows.spec.kind.fuses() && rows.spec.kind.has_own_rows());
        let meet = with_kind(Kind::Meet, vec![0]);
        // The bytes are not the user's, and their type is none of the call's.
        assert_eq!(meet.describe(), "an operation on objects or sparse rows");
        assert_eq!(meet.fields().len(), 1);
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
                let whole = Kind::Allreduce { op };
                for kind in [whole, Kind::Reduce { op, root: 1 }, Kind::ReduceScatter { op }] {
                    let mut request = Request::allreduce("x", dtype, vec![2], op);
                    request.spec.kind = kind;
                    let takes = op.takes(dtype) && (kind == whole || op != ReduceOp::Adasum);
                    let mut bytes = Vec::new();
                    request.encode(&mut bytes);
                    assert_eq!(Request::decode(&bytes).is_some(), takes, "{kind} of {dtype}");
                    assert_eq!(request.validate(2).is_ok(), takes, "{kind} of {dtype}");
                }
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
        let mut rows = Request::broadcast("b", DType::U8, vec![0, 4, 2], 3);
        rows.spec.kind = Kind::Move(Move::Allgather);
        assert_eq!(rows.describe(), "allgather of u8[*, 4, 2] in host memory");
        rows.group = Some(Group::of(&[vec![1, 2], vec![2]]));
        assert_ne!(rows.group, Some(Group::of(&[vec![1], vec![2, 2]])));
        let text = rows.describe();
        assert!(text.starts_with("allgather of a group of 2 u8 tensors, as many rows as each rank likes"), "{text}");
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

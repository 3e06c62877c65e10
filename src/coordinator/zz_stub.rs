use super::*;
use std::time::Duration;
#[derive(Debug)]
pub(crate) struct Coordinator;
impl Coordinator {
    pub(crate) fn new(_: Params, _: Topology) -> crate::Result<Self> {
        Ok(Self)
    }
    pub(crate) fn step(&mut self, _: Duration, _: Event<'_>, _: &mut Vec<Action>) {
        unimplemented!()
    }
    pub(crate) fn watches_peers(&self) -> bool {
        false
    }
    pub(crate) fn words_in_use(&self) -> usize {
        0
    }
    pub(crate) fn pending(&self) -> usize {
        0
    }
    pub(crate) fn recycle_bytes(&mut self, _: Vec<u8>) {}
    pub(crate) fn recycle_batch(&mut self, _: Batch) {}
}

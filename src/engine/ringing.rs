//! A link between hosts that wakes its receivers: MPI moves bytes, but wakes nobody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::membership::Core;
use crate::transport::Link;

/// A host that was sent nothing for so long may have gone to sleep over it. Shorter than any wait without a sleep.
const QUIET: Duration = Duration::from_micros(500);

/// Rings the doorbell of a host, through the leaders, with the first message after a pause.
pub(super) struct Ringing {
    link: Box<dyn Link>,
    core: Arc<Core>,
    /// The host of each set rank in the job.
    hosts: Vec<usize>,
    /// When a message last went to each host.
    sent: Vec<Option<Instant>>,
}

impl Ringing {
    pub(super) fn new(link: Box<dyn Link>, core: Arc<Core>, hosts: Vec<usize>) -> Self {
        let sent = vec![None; core.topology.hosts().len()];
        Self { link, core, hosts, sent }
    }
}

impl Link for Ringing {
    fn piece(&self) -> usize {
        self.link.piece()
    }

    fn try_send(&mut self, to: usize, payload: &[u8]) -> Result<bool> {
        let sent = self.link.try_send(to, payload)?;
        if sent {
            let (host, now) = (self.hosts[to], Instant::now());
            if self.sent[host].replace(now).is_none_or(|last| now - last > QUIET) {
                self.core.ring_host(host);
            }
        }
        Ok(sent)
    }

    fn try_recv(&mut self, from: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.link.try_recv(from, take)
    }

    fn progress(&mut self) -> Result<()> {
        self.link.progress()
    }

    fn idle(&self) -> bool {
        self.link.idle()
    }
}

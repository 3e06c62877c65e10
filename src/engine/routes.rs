//! One link over two transports: mailboxes to the members of the same host, the network to everyone else.

use std::sync::Arc;

use super::{Port, Team};
use crate::error::Result;
use crate::transport::Link;
use crate::transport::shm::{Arena, MailReceiver, MailSender};

/// Messages from this rank to every other rank of a set.
pub(crate) struct Routes {
    port: Arc<Port>,
    piece: usize,
    /// For each set rank on this host, the mailboxes to and from it; `None` for the others and for this rank.
    mail: Vec<Option<(MailSender, MailReceiver)>>,
    /// To other hosts; absent when there are none.
    network: Option<Box<dyn Link>>,
}

impl Routes {
    pub(crate) fn new(port: Arc<Port>, team: &Team, arena: &Arena, network: Option<Box<dyn Link>>) -> Self {
        let mail = |rank: usize| {
            let member = team.members().iter().position(|&member| member == rank)?;
            (rank != team.rank()).then(|| (arena.sender(member), arena.receiver(member)))
        };
        let piece = network.as_ref().map_or(arena.mail_piece(), |network| network.piece().min(arena.mail_piece()));
        Self { port, piece, mail: (0..team.size()).map(mail).collect(), network }
    }

    fn network(&mut self, peer: usize) -> &mut dyn Link {
        // `open` makes a network link whenever the team spans hosts, and only those peers have no member index.
        match &mut self.network {
            Some(network) => network.as_mut(),
            None => unreachable!("set rank {peer} is neither on this host nor on another"),
        }
    }
}

impl Link for Routes {
    fn piece(&self) -> usize {
        self.piece
    }

    fn try_send(&mut self, to: usize, payload: &[u8]) -> Result<bool> {
        match &mut self.mail[to] {
            Some((sender, _)) => {
                let sent = sender.try_send(payload);
                if sent {
                    self.port.ring();
                }
                Ok(sent)
            }
            None => self.network(to).try_send(to, payload),
        }
    }

    fn try_recv(&mut self, from: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match &mut self.mail[from] {
            Some((_, receiver)) => {
                let came = receiver.try_recv(take);
                if came {
                    // The sender may be asleep waiting for room.
                    self.port.ring();
                }
                Ok(came)
            }
            None => self.network(from).try_recv(from, take),
        }
    }

    fn progress(&mut self) -> Result<()> {
        self.network.as_mut().map_or(Ok(()), |network| network.progress())
    }

    fn idle(&self) -> bool {
        self.network.as_ref().is_none_or(|network| network.idle())
    }
}

//! One link over two transports: mailboxes to the members of the same host, the network to everyone else.

use std::sync::Arc;

use super::exchange::{GOODBYE, left};
use super::{Port, Team};
use crate::error::Result;
use crate::transport::Link;
use crate::transport::shm::{Arena, MailReceiver, MailSender};

/// Calls of `progress` without a message before a sender looks whether its receivers are still there.
const PATIENCE: u32 = 64;

/// Messages from this rank to every other rank of a set.
pub(crate) struct Routes {
    port: Arc<Port>,
    piece: usize,
    /// For each set rank on this host, the mailboxes to and from it; `None` for the others and for this rank.
    mail: Vec<Option<(MailSender, MailReceiver)>>,
    /// To other hosts; absent when there are none.
    network: Option<Box<dyn Link>>,
    /// Set ranks on other hosts that may not have all that was sent to them, and whether the last message was refused.
    unsettled: Vec<(usize, bool)>,
    /// Calls of `progress` since the last message.
    quiet: u32,
    /// Messages that came before they were asked for.
    early: Vec<(usize, Vec<u8>)>,
}

impl Routes {
    pub(crate) fn new(port: Arc<Port>, team: &Team, arena: &Arena, network: Option<Box<dyn Link>>) -> Self {
        let mail = |rank: usize| {
            let member = team.members().iter().position(|&member| member == rank)?;
            (rank != team.rank()).then(|| (arena.sender(member), arena.receiver(member)))
        };
        let piece = network.as_ref().map_or(arena.mail_piece(), |network| network.piece().min(arena.mail_piece()));
        let mail = (0..team.size()).map(mail).collect();
        Self { port, piece, mail, network, unsettled: Vec::new(), quiet: 0, early: Vec::new() }
    }

    /// Looks at what receivers that do not receive have to say. A goodbye ends the link; all else waits to be asked for.
    fn listen(&mut self) -> Result<()> {
        for index in 0..self.unsettled.len() {
            let (peer, _) = self.unsettled[index];
            if self.early.iter().all(|(from, _)| *from != peer) {
                let mut message = None;
                self.network(peer).try_recv(peer, &mut |bytes| message = Some(bytes.to_vec()))?;
                self.early.extend(message.map(|message| (peer, message)));
            }
            if self.early.iter().any(|(from, message)| *from == peer && message == GOODBYE) {
                return Err(left(peer));
            }
        }
        Ok(())
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
            None => {
                let sent = self.network(to).try_send(to, payload)?;
                match self.unsettled.iter_mut().find(|(peer, _)| *peer == to) {
                    Some((_, refused)) => *refused = !sent,
                    None => self.unsettled.push((to, !sent)),
                }
                if sent {
                    self.quiet = 0;
                }
                Ok(sent)
            }
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
            None => {
                let came = match self.early.iter().position(|(peer, _)| *peer == from) {
                    Some(index) => {
                        take(&self.early.swap_remove(index).1);
                        true
                    }
                    None => self.network(from).try_recv(from, take)?,
                };
                if came {
                    self.quiet = 0;
                }
                Ok(came)
            }
        }
    }

    fn progress(&mut self) -> Result<()> {
        let Some(network) = &mut self.network else { return Ok(()) };
        network.progress()?;
        if network.idle() {
            self.unsettled.retain(|(_, refused)| *refused);
        }
        self.quiet += 1;
        if self.quiet.is_multiple_of(PATIENCE) { self.listen() } else { Ok(()) }
    }

    fn idle(&self) -> bool {
        self.network.as_ref().is_none_or(|network| network.idle())
    }
}

//! One link over two transports: mailboxes to the members of the same host, the network to everyone else.

use std::sync::Arc;

use super::farewell::{GOODBYE, LastWords};
use super::{Port, Team};
use crate::error::Result;
use crate::transport::Link;
use crate::transport::shm::{Arena, MailReceiver, MailSender};

/// Calls of `progress` without a message before a sender looks whether its receivers are still there.
const PATIENCE: u32 = 64;

/// Messages from this rank to every other rank of a set.
///
/// An empty message is a goodbye, and what follows it are the sender's last words. Neither is handed to `take`: they end
/// the stream with an error.
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
    /// Who has said goodbye, but not yet why.
    leaving: Vec<usize>,
    /// What ended the stream, if a peer did.
    heard: Option<LastWords>,
}

impl Routes {
    pub(crate) fn new(port: Arc<Port>, team: &Team, arena: &Arena, network: Option<Box<dyn Link>>) -> Self {
        let mail = |rank: usize| {
            let member = team.members().iter().position(|&member| member == rank)?;
            (rank != team.rank()).then(|| (arena.sender(member), arena.receiver(member)))
        };
        let piece = network.as_ref().map_or(arena.mail_piece(), |network| network.piece().min(arena.mail_piece()));
        let mail = (0..team.size()).map(mail).collect();
        Self {
            port,
            piece,
            mail,
            network,
            unsettled: Vec::new(),
            quiet: 0,
            early: Vec::new(),
            leaving: Vec::new(),
            heard: None,
        }
    }

    /// Looks at what receivers that do not receive have to say. A goodbye ends the link; all else waits to be asked for.
    fn listen(&mut self) -> Result<()> {
        for index in 0..self.unsettled.len() {
            let (peer, _) = self.unsettled[index];
            if self.early.iter().all(|(from, _)| *from != peer) {
                let mut message = None;
                self.try_recv(peer, &mut |bytes| message = Some(bytes.to_vec()))?;
                self.early.extend(message.map(|message| (peer, message)));
            }
        }
        Ok(())
    }

    /// What ended the stream, if a peer did: once.
    pub(super) fn take_heard(&mut self) -> Option<LastWords> {
        self.heard.take()
    }

    /// The next message of `from`, whatever it is.
    fn next(&mut self, from: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        if let Some((_, receiver)) = &mut self.mail[from] {
            let came = receiver.try_recv(take);
            if came {
                // The sender may be asleep waiting for room.
                self.port.ring();
            }
            return Ok(came);
        }
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

    /// Waits for the last words of a rank that has said goodbye.
    fn hear_out(&mut self, from: usize) -> Result<bool> {
        let mut words = None;
        self.next(from, &mut |bytes| words = Some(LastWords::decode(bytes)))?;
        let Some(words) = words else { return Ok(false) };
        let error = words.error();
        self.heard = Some(words);
        Err(error)
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
        if self.leaving.contains(&from) {
            return self.hear_out(from);
        }
        let mut goodbye = false;
        let came = self.next(from, &mut |bytes| if bytes == GOODBYE { goodbye = true } else { take(bytes) })?;
        if goodbye {
            self.leaving.push(from);
            return self.hear_out(from);
        }
        Ok(came)
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

//! Finds out why an operation between hosts stands still: whether its ranks wait for each other in different ones.
//!
//! Between hosts, a message carries the print of its operation, so ranks that call different things find it when such a
//! message comes. Often none does: after a broadcast here and an allreduce there, each side waits for messages that the
//! other never sends. So hosts whose ranks wait for long tell each other what they wait in.
//!
//! # Protocol
//!
//! A rank is *stalled* when its operation has waited for [`STALLED`] without moving. Nothing below costs anything before
//! that, except that a rank remembers the prints of its last operations, and that a leader (the first member of a host)
//! looks at what it was told when it begins an operation, if it has not looked for [`LOOK`].
//!
//! 1. A stalled rank publishes the print of its operation in its *asking* line in the host's shared memory. It may have
//!    announced it before; but some operations are announced late, or never if their messages do not come.
//! 2. A stalled leader makes a *statement*: the number of its operation, the print of each member of its host, as far as
//!    announced or asked, and the print of the operation before. A member may be stalled in that one still, when its
//!    leader has it behind it. It sends it to the other leaders, and again whenever it changes. So there are at most as many
//!    for an operation as the host has members, whether anybody reads them or not.
//! 3. A leader that has the operation of a statement behind it *answers*, once, with a statement of its own about that
//!    operation: its members agreed on it then, so their prints were its own. Answers are not answered.
//! 4. Who is stalled, or looks, compares all prints of the same number that it knows. Two that differ are a mistake of
//!    the program: all ranks count their operations alike. It waits up to [`GATHER`] for what it does not know yet, ends
//!    the operation with an error that lists every rank's view, and says goodbye to the others with the same list.
//!
//! 5. A leader whose channel ends says goodbye to the other leaders on this way, too: elsewhere, a goodbye waits behind
//!    messages that nobody asks for any more. A leader that hears it, as it stalls or looks, ends its channel as well, and
//!    with it those of its host.
//!
//! Who compares: a leader; and the other members of a host with a longer patience, for their leader may be elsewhere, or
//! know more.
//!
//! Scenarios:
//!
//! * *A rank is merely late.* Its view is not known, or equals the others. What is not known differs from nothing.
//! * *The other host is done.* A root has sent its broadcast and left for the next operations, or computes. It answers
//!   when it stalls or begins an operation. If it ends, that is an error by itself.
//! * *The other host has not come so far.* Its leader keeps the statement, and compares when it begins that operation.
//! * *Ranks of a host differ.* Their announcements tell, or the asking lines, if one of them could not announce.
//! * *A rank runs so far ahead that it has forgotten.* Then only the deadline ends the wait.
//!
//! Memory ordering: the asking lines are announcements of their own, used in turn in the same order; see "announcement
//! reuse" in `transport/shm/README.md`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Team;
use super::farewell::LastWords;
use super::operation::describe;
use crate::error::{Error, Result, ranks_in_words};
use crate::transport::Link;
use crate::transport::shm::{Arena, Fingerprint};

/// A wait so long, without a move, is worth a question. Well above what an operation or a busy machine takes.
pub(super) const STALLED: Duration = Duration::from_millis(200);
/// How often the beginning of an operation looks at what other hosts said.
const LOOK: Duration = Duration::from_millis(100);
/// How long a mistake is known before it is told, if not every rank's view is known.
const GATHER: Duration = Duration::from_millis(200);
/// The same for members who know of their own host only.
const GATHER_ALONE: Duration = Duration::from_millis(600);
/// How many operations a rank remembers.
const REMEMBERED: usize = 256;

/// Bytes of a message before the prints: number, kind, padding.
const HEAD: usize = 8;
/// Kinds of messages.
const STATEMENT: u8 = 1;
const ANSWER: u8 = 2;
const FAREWELL: u8 = 3;
/// Bytes of last words at most.
const WORDS: usize = 1024;
/// Bytes of a print.
const PRINT: usize = 16;

/// The part of one rank.
pub(super) struct Inquiry {
    team: Arc<Team>,
    arena: Arena,
    leaders: Option<Leaders>,
    /// The last operations; the newest, at the end, is under way.
    recent: VecDeque<Fingerprint>,
    /// Whether the operation under way is in the asking line.
    asking: bool,
    /// When a mistake was first seen.
    found: Option<Instant>,
    looked: Instant,
    /// What another leader said as its channel ended.
    words: Option<LastWords>,
    /// [`LOOK`], but for tests.
    pub(super) look_every: Duration,
}

/// A leader's connection to the others.
struct Leaders {
    link: Box<dyn Link>,
    /// By host; this host's stays as it is.
    hosts: Vec<Host>,
}

/// What was said between a leader and that of another host.
#[derive(Debug, Default)]
struct Host {
    said: Option<Statement>,
    /// What it waits in, and whether this host has answered.
    heard: Option<(Statement, bool)>,
    /// What it answered.
    answer: Option<Statement>,
    outgoing: VecDeque<Vec<u8>>,
}

/// What leaders tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    /// What a host waits in.
    Statement(Statement),
    /// What a host called in an operation that it has behind it.
    Answer(Statement),
    /// The channel has ended.
    Goodbye(LastWords),
}

/// What the members of a host call, as far as their leader knows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    seq: u32,
    /// What all of them called before, if there was anything.
    before: Option<Fingerprint>,
    prints: Vec<Option<Fingerprint>>,
}

impl std::fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inquiry")
            .field("recent", &self.recent.back())
            .field("asking", &self.asking)
            .finish_non_exhaustive()
    }
}

impl Inquiry {
    /// `link` connects the ranks of the set; only leaders use it.
    pub(super) fn new(team: &Arc<Team>, arena: &Arena, link: Box<dyn Link>) -> Self {
        let hosts = || team.hosts().iter().map(|_| Host::default()).collect();
        Self {
            leaders: (team.member() == 0).then(|| Leaders { link, hosts: hosts() }),
            team: Arc::clone(team),
            arena: arena.clone(),
            recent: VecDeque::new(),
            asking: false,
            found: None,
            looked: Instant::now(),
            words: None,
            look_every: LOOK,
        }
    }

    /// The largest message between the leaders of `team`.
    pub(super) fn piece(team: &Team) -> usize {
        let members = team.hosts().iter().map(Vec::len).max().unwrap_or(0);
        HEAD + WORDS.max(PRINT * (members + 1))
    }

    /// What ended the channel, if another leader did: once.
    pub(super) fn take_heard(&mut self) -> Option<LastWords> {
        self.words.take()
    }

    /// Tells the other leaders that the channel has ended, and nothing more.
    pub(super) fn say_goodbye(&mut self, words: &LastWords) {
        let Some(Leaders { hosts, .. }) = &mut self.leaders else { return };
        for (_, host) in hosts.iter_mut().enumerate().filter(|(host, _)| *host != self.team.host()) {
            host.outgoing.clear();
            host.outgoing.push_back(Message::Goodbye(words.clone()).encode());
        }
    }

    /// Hands on what could not be sent yet. Returns whether that is all.
    pub(super) fn flush(&mut self) -> Result<bool> {
        self.send()?;
        Ok(self.leaders.iter().flat_map(|leaders| &leaders.hosts).all(|host| host.outgoing.is_empty()))
    }

    /// An operation begins. A leader looks at what it was told, if that is due.
    ///
    /// # Errors
    /// This operation or an earlier one is not what another host's ranks take it for.
    pub(super) fn begin(&mut self, print: Fingerprint) -> Result<()> {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(print);
        self.asking = false;
        if self.leaders.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        if now.duration_since(self.looked) < self.look_every {
            return Ok(());
        }
        self.looked = now;
        self.hear()?;
        self.answer();
        self.send()?;
        // Who is told of it at once has no reason to wait for more.
        self.mistake().map_or(Ok(()), |(views, _)| Err(views.error()))
    }

    /// The operation under way is stalled, or still is. Returns whether something was published for the host.
    ///
    /// # Errors
    /// Ranks of the set ask for different things.
    pub(super) fn stalled(&mut self, now: Instant) -> Result<bool> {
        let Some(&print) = self.recent.back() else { return Ok(false) };
        let news = !std::mem::replace(&mut self.asking, true);
        if news {
            self.arena.ask(print);
        }
        self.hear()?;
        self.answer();
        self.state(print.seq());
        self.send()?;
        let Some((views, complete)) = self.mistake() else { return Ok(news) };
        let patience = if self.leaders.is_some() { GATHER } else { GATHER_ALONE };
        let found = *self.found.get_or_insert(now);
        if complete || now.duration_since(found) >= patience { Err(views.error()) } else { Ok(news) }
    }

    /// The prints of this host's members for operation `seq`, if this rank knows what it was.
    fn prints(&self, seq: u32) -> Option<Vec<Option<Fingerprint>>> {
        let members = self.team.members().len();
        let current = *self.recent.back()?;
        if seq == current.seq() {
            let print = |member| self.arena.announced(member, seq).or_else(|| self.arena.asked(member, seq));
            let own = self.team.member();
            return Some(
                (0..members).map(|member| if member == own { Some(current) } else { print(member) }).collect(),
            );
        }
        // Behind it, so all members have announced the same.
        let print = self.recent.iter().rev().find(|print| print.seq() == seq)?;
        Some(vec![Some(*print); members])
    }

    /// What this host says about operation `seq`, if this rank knows it.
    fn statement(&self, seq: u32) -> Option<Statement> {
        let prints = self.prints(seq)?;
        let before = seq.wrapping_sub(1);
        let before = self.recent.iter().rev().find(|print| print.seq() == before).copied();
        Some(Statement { seq, before, prints })
    }

    /// Takes in what other leaders said.
    fn hear(&mut self) -> Result<()> {
        let Some(Leaders { link, hosts }) = &mut self.leaders else { return Ok(()) };
        for (host, members) in self.team.hosts().iter().enumerate().filter(|(host, _)| *host != self.team.host()) {
            let mut heard = Vec::new();
            while link.try_recv(members[0], &mut |bytes| heard.push(Message::decode(bytes, members.len())))? {}
            for message in heard {
                match message {
                    Some(Message::Statement(statement)) => hosts[host].heard = Some((statement, false)),
                    Some(Message::Answer(statement)) => hosts[host].answer = Some(statement),
                    Some(Message::Goodbye(words)) => return Err(self.words.insert(words).error()),
                    None => {
                        let text = format!(
                            "rank {} speaks in other words than this rank of what it waits in; all ranks must run the \
                             same kolo",
                            self.team.global(members[0])
                        );
                        return Err(Error::Poisoned(text.into()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Answers statements about operations that this host has behind it.
    fn answer(&mut self) {
        let current = self.recent.back().map(|print| print.seq());
        let others = 0..self.team.hosts().len();
        for host in others.filter(|&host| host != self.team.host()) {
            let due = |leaders: &Leaders| match &leaders.hosts[host].heard {
                Some((statement, false)) if Some(statement.seq) != current => Some(statement.seq),
                _ => None,
            };
            let Some(seq) = self.leaders.as_ref().and_then(due) else { continue };
            let Some(statement) = self.statement(seq) else { continue };
            if let Some(leaders) = &mut self.leaders {
                let host = &mut leaders.hosts[host];
                host.outgoing.push_back(Message::Answer(statement).encode());
                host.heard.iter_mut().for_each(|(_, answered)| *answered = true);
            }
        }
    }

    /// States what this host waits in to every leader that has not heard it.
    fn state(&mut self, seq: u32) {
        let Some(statement) = self.statement(seq) else { return };
        let Some(leaders) = &mut self.leaders else { return };
        for (_, host) in leaders.hosts.iter_mut().enumerate().filter(|(host, _)| *host != self.team.host()) {
            if host.said.as_ref() != Some(&statement) {
                host.outgoing.push_back(Message::Statement(statement.clone()).encode());
                host.said = Some(statement.clone());
            }
        }
    }

    fn send(&mut self) -> Result<()> {
        let Some(Leaders { link, hosts }) = &mut self.leaders else { return Ok(()) };
        link.progress()?;
        for (host, members) in hosts.iter_mut().zip(self.team.hosts()) {
            while let Some(bytes) = host.outgoing.front() {
                if !link.try_send(members[0], bytes)? {
                    break;
                }
                host.outgoing.pop_front();
            }
        }
        Ok(())
    }

    /// What the ranks call where they do not call the same, and whether that is all there is to know.
    fn mistake(&self) -> Option<(Views, bool)> {
        let current = self.recent.back()?.seq();
        let leaders = self.leaders.as_ref();
        let heard = leaders.iter().flat_map(|leaders| &leaders.hosts).flat_map(Host::heard).map(|said| said.seq);
        // The older of two mistakes is the one to tell.
        heard.chain([current]).flat_map(|seq| [seq.wrapping_sub(1), seq]).find_map(|seq| {
            let views = self.views(seq)?;
            let mut known = views.ranks.iter().filter_map(|(_, view)| match view {
                View::Calls(print) => Some(print),
                View::Nothing | View::Unknown => None,
            });
            let first = known.next()?;
            if known.all(|print| print == first) {
                return None;
            }
            let complete = views.ranks.iter().all(|(_, view)| matches!(view, View::Calls(_)));
            Some((views, complete))
        })
    }

    /// What every rank calls as operation `seq`, if this rank knows what it was on this host.
    fn views(&self, seq: u32) -> Option<Views> {
        let own = self.prints(seq)?;
        let mut ranks = Vec::new();
        for (host, members) in self.team.hosts().iter().enumerate() {
            let about = |leaders: &Leaders| leaders.hosts[host].heard().find_map(|said| said.about(seq));
            let theirs = self.leaders.as_ref().and_then(about);
            let prints = if host == self.team.host() { Some(&own) } else { theirs.as_ref() };
            for (member, &rank) in members.iter().enumerate() {
                let view = match prints.map(|prints| prints[member]) {
                    Some(Some(print)) => View::Calls(print),
                    Some(None) => View::Nothing,
                    None => View::Unknown,
                };
                ranks.push((self.team.global(rank), view));
            }
        }
        ranks.sort_unstable_by_key(|(rank, _)| *rank);
        Some(Views { seq, ranks })
    }
}

impl Host {
    /// All that its leader said.
    fn heard(&self) -> impl Iterator<Item = &Statement> {
        self.heard.iter().map(|(statement, _)| statement).chain(&self.answer)
    }
}

impl Statement {
    /// What the members call as operation `seq`, if it says so.
    fn about(&self, seq: u32) -> Option<Vec<Option<Fingerprint>>> {
        if self.seq == seq {
            return Some(self.prints.clone());
        }
        let before = self.before.filter(|before| before.seq() == seq)?;
        Some(vec![Some(before); self.prints.len()])
    }
}

/// One operation, as every rank sees it.
struct Views {
    seq: u32,
    /// By global rank.
    ranks: Vec<(u32, View)>,
}

enum View {
    Calls(Fingerprint),
    /// It has not come so far.
    Nothing,
    Unknown,
}

impl Views {
    fn error(self) -> Error {
        let tell = |(rank, view)| match view {
            View::Calls(print) => (rank, describe(print)),
            View::Nothing => (rank, "nothing yet".to_owned()),
            View::Unknown => (rank, "not known".to_owned()),
        };
        let views: Vec<(u32, String)> = self.ranks.into_iter().map(tell).collect();
        disagreement(&format!("communicator operation {}", self.seq), &views)
    }
}

/// Different requests that the error shows; more are counted.
const SHOWN: usize = 8;

/// The error of ranks that ask for different things where other hosts may have moved on.
pub(super) fn disagreement(name: &str, views: &[(u32, String)]) -> Error {
    let mut groups: Vec<(&str, Vec<u32>)> = Vec::new();
    for (rank, view) in views {
        match groups.iter_mut().find(|(known, _)| known == view) {
            Some((_, ranks)) => ranks.push(*rank),
            None => groups.push((view, vec![*rank])),
        }
    }
    let tell = |(view, ranks): &(&str, Vec<u32>)| format!("{}: {view}", ranks_in_words(ranks));
    let mut list: Vec<String> = groups.iter().take(SHOWN).map(tell).collect();
    if groups.len() > SHOWN {
        list.push(format!("and {} more requests", groups.len() - SHOWN));
    }
    Error::Poisoned(
        format!(
            "{name}: the ranks ask for different things: {}; make every rank pass the same, in the same order",
            list.join("; ")
        )
        .into(),
    )
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let (kind, Statement { seq, before, prints }) = match self {
            Self::Statement(statement) => (STATEMENT, statement),
            Self::Answer(statement) => (ANSWER, statement),
            Self::Goodbye(words) => {
                let mut bytes = vec![0; HEAD];
                bytes[4] = FAREWELL;
                bytes.extend_from_slice(&words.encode(WORDS));
                return bytes;
            }
        };
        let mut bytes = vec![0; HEAD];
        bytes[..4].copy_from_slice(&seq.to_le_bytes());
        bytes[4] = kind;
        for print in [before].into_iter().chain(prints) {
            // The first word of a print is never zero.
            let (word0, word1) = print.map_or((0, 0), |print| (print.word0, print.word1));
            bytes.extend_from_slice(&word0.to_le_bytes());
            bytes.extend_from_slice(&word1.to_le_bytes());
        }
        bytes
    }

    /// A message of the leader of a host with so many members; `None` if it is none.
    fn decode(bytes: &[u8], members: usize) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        if head[4] == FAREWELL {
            return Some(Self::Goodbye(LastWords::decode(rest)));
        }
        if rest.len() != PRINT * (members + 1) {
            return None;
        }
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).ok();
        let print = |bytes: &[u8]| {
            let (word0, word1) = (word(&bytes[..8])?, word(&bytes[8..])?);
            Some((word0 != 0).then_some(Fingerprint { word0, word1 }))
        };
        let seq = head[..4].try_into().map(u32::from_le_bytes).ok()?;
        let mut prints = rest.chunks_exact(PRINT).map(print);
        let statement = Statement { seq, before: prints.next()??, prints: prints.collect::<Option<_>>()? };
        match head[4] {
            STATEMENT => Some(Self::Statement(statement)),
            ANSWER => Some(Self::Answer(statement)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way_and_others_are_refused() {
        let print = Fingerprint::new(9, 1, 2, 3, 0, 1000, 4);
        let before = Some(Fingerprint::new(8, 5, 0, 0, 0, 0, 0));
        let statement = Statement { seq: 9, before, prints: vec![Some(print), None, Some(print)] };
        for message in [Message::Statement(statement.clone()), Message::Answer(statement)] {
            let mut bytes = message.encode();
            assert_eq!(Message::decode(&bytes, 3), Some(message));
            assert_eq!(Message::decode(&bytes, 2), None);
            for end in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..end], 3), None);
            }
            bytes[4] = 9;
            assert_eq!(Message::decode(&bytes, 3), None);
        }
        let words = LastWords { rank: 3, reason: "because".to_owned(), earlier: true };
        let goodbye = Message::Goodbye(words);
        assert_eq!(Message::decode(&goodbye.encode(), 7), Some(goodbye));
    }
}

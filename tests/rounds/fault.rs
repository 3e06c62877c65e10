//! What can go wrong in a round.

use std::fmt;

/// What the victim does, or what is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Kill,
    Stop,
    StopAndContinue,
    Exit,
    Panic,
    Error,
    Leave,
    Cut,
    WrongType,
    WrongShape,
    WrongOp,
    WrongScale,
    WrongKind,
    WrongRoot,
}

/// Who does it, and what it does to the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// The victim, at a step of its own; it ends the job.
    Own,
    /// The conductor, from outside; it ends the job.
    FromOutside,
    /// The conductor, and the job goes on.
    Harmless,
    /// The victim asks for something else than the others: an error on every rank, and the job goes on.
    Mistake,
}

impl Fault {
    pub(crate) const ALL: [Self; 14] = [
        Self::Kill,
        Self::Stop,
        Self::StopAndContinue,
        Self::Exit,
        Self::Panic,
        Self::Error,
        Self::Leave,
        Self::Cut,
        Self::WrongType,
        Self::WrongShape,
        Self::WrongOp,
        Self::WrongScale,
        Self::WrongKind,
        Self::WrongRoot,
    ];

    pub(crate) fn nature(self) -> Nature {
        match self {
            Self::Exit | Self::Panic | Self::Error | Self::Leave => Nature::Own,
            Self::Kill | Self::Stop | Self::Cut => Nature::FromOutside,
            Self::StopAndContinue => Nature::Harmless,
            _ => Nature::Mistake,
        }
    }

    /// Whether the job must end well.
    pub(crate) fn job_goes_on(self) -> bool {
        matches!(self.nature(), Nature::Harmless | Nature::Mistake)
    }

    /// The fault with this name, as [`Display`](fmt::Display) writes it.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.to_string() == name)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill -9",
            Self::Stop => "SIGSTOP for good",
            Self::StopAndContinue => "SIGSTOP, SIGCONT",
            Self::Exit => "exit",
            Self::Panic => "panic",
            Self::Error => "error",
            Self::Leave => "leaving early",
            Self::Cut => "link down",
            Self::WrongType => "another type",
            Self::WrongShape => "another shape",
            Self::WrongOp => "another op",
            Self::WrongScale => "another scale",
            Self::WrongKind => "another operation",
            Self::WrongRoot => "another root",
        })
    }
}

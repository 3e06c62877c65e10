//! The memory that is reduced: one tensor or a list, private or from `kolo.alloc`.

use crate::cli::Buffers;
use crate::data::{Pattern, Sample};
use crate::measure::Work;
use anyhow::Result;
use kolo::{Kolo, SharedBuffer};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// One tensor's memory.
#[derive(Debug)]
pub(crate) enum Buffer<T: Sample> {
    Private(Vec<T>),
    Shared(SharedBuffer<T>),
}

impl<T: Sample> Buffer<T> {
    /// Memory for `count` values.
    ///
    /// # Errors
    ///
    /// When the shared reserve is used up.
    pub(crate) fn new(kolo: &Kolo, kind: Buffers, count: usize) -> Result<Self> {
        Ok(match kind {
            Buffers::Private => Self::Private(vec![T::of(0, 1); count]),
            Buffers::Shared => Self::Shared(kolo.alloc(count)?),
        })
    }
}

impl<T: Sample> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Private(data) => data,
            Self::Shared(data) => data,
        }
    }
}

impl<T: Sample> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Private(data) => data,
            Self::Shared(data) => data,
        }
    }
}

/// Where the pattern starts in an iteration: another place each time, the same on all ranks.
fn shift(iteration: usize, tensor: usize) -> usize {
    iteration * 389 + tensor * 61
}

/// One tensor, in place or with an output of its own.
#[derive(Debug)]
pub(crate) struct Single<T: Sample> {
    pub(crate) input: Buffer<T>,
    pub(crate) output: Option<Buffer<T>>,
    pattern: Rc<Pattern<T>>,
    iteration: usize,
}

impl<T: Sample> Single<T> {
    /// Memory for `count` values.
    ///
    /// # Errors
    ///
    /// When the shared reserve is used up.
    pub(crate) fn new(
        kolo: &Kolo,
        kind: Buffers,
        count: usize,
        in_place: bool,
        pattern: &Rc<Pattern<T>>,
    ) -> Result<Self> {
        let input = Buffer::new(kolo, kind, count)?;
        let output = if in_place { None } else { Some(Buffer::new(kolo, kind, count)?) };
        Ok(Self { input, output, pattern: Rc::clone(pattern), iteration: 0 })
    }
}

impl<T: Sample> Work for Single<T> {
    fn refresh(&mut self) {
        self.iteration += 1;
        self.pattern.fill(&mut self.input, shift(self.iteration, 0));
    }

    fn touch(&mut self) {
        self.pattern.touch(&mut self.input, self.iteration);
    }

    fn poison(&mut self) {
        if let Some(output) = &mut self.output {
            self.pattern.poison(output);
        }
    }

    fn wrong(&self) -> u64 {
        self.pattern.wrong(self.output.as_ref().unwrap_or(&self.input), shift(self.iteration, 0))
    }
}

/// A list of tensors, in place.
#[derive(Debug)]
pub(crate) struct List<T: Sample> {
    pub(crate) tensors: Vec<Buffer<T>>,
    pattern: Rc<Pattern<T>>,
    iteration: usize,
}

impl<T: Sample> List<T> {
    /// Memory for tensors of these counts.
    ///
    /// # Errors
    ///
    /// When the shared reserve is used up.
    pub(crate) fn new(kolo: &Kolo, kind: Buffers, counts: &[usize], pattern: &Rc<Pattern<T>>) -> Result<Self> {
        let tensors = counts.iter().map(|count| Buffer::new(kolo, kind, *count)).collect::<Result<_>>()?;
        Ok(Self { tensors, pattern: Rc::clone(pattern), iteration: 0 })
    }
}

impl<T: Sample> Work for List<T> {
    fn refresh(&mut self) {
        self.iteration += 1;
        for (i, tensor) in self.tensors.iter_mut().enumerate() {
            self.pattern.fill(tensor, shift(self.iteration, i));
        }
    }

    fn touch(&mut self) {
        for tensor in &mut self.tensors {
            self.pattern.touch(tensor, self.iteration);
        }
    }

    fn poison(&mut self) {}

    fn wrong(&self) -> u64 {
        let wrong = |(i, tensor): (usize, &Buffer<T>)| self.pattern.wrong(tensor, shift(self.iteration, i));
        self.tensors.iter().enumerate().map(wrong).sum()
    }
}

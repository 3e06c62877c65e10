//! The operations of several steps of a set, from their first step to their end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::core::too_late;
use super::course::{Course, Declined, End, Next, Step};
use super::flight::Flight;
use super::set::in_flight;
use super::{Handle, NamedSet, Way};
use crate::coordinator::{Event, Ticket, check_user_name, step_name};
use crate::error::{Error, Mismatch, Result};
use crate::tensor::GiveBack;

/// Those that have not ended.
#[derive(Default)]
pub(super) struct Courses {
    begun: u64,
    all: BTreeMap<u64, Underway>,
    /// Whose step has ended well.
    due: Vec<u64>,
}

/// One of them.
struct Underway {
    flight: Arc<Flight>,
    /// Somebody waits for it: for each of its steps, too.
    urgent: bool,
    /// The step in flight.
    step: Option<Ticket>,
    /// Whether that is the first one.
    first: bool,
    /// Absent while a thread works out what follows.
    course: Option<Box<Course>>,
}

/// The number of one of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CourseId(u64);

impl Courses {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn begin(&mut self, flight: Arc<Flight>, urgent: bool) -> CourseId {
        self.begun += 1;
        self.all.insert(self.begun, Underway { flight, urgent, step: None, first: true, course: None });
        CourseId(self.begun)
    }

    /// Its step has ended well.
    pub(super) fn step_ended(&mut self, id: CourseId) {
        if let Some(underway) = self.all.get_mut(&id.0) {
            underway.step = None;
            underway.first = false;
            self.due.push(id.0);
        }
    }

    /// It is over: what its flight is, and the course if nobody works on it.
    pub(super) fn end(&mut self, id: CourseId) -> Option<(Arc<Flight>, Option<Box<Course>>)> {
        let Underway { flight, course, .. } = self.all.remove(&id.0)?;
        self.due.retain(|due| *due != id.0);
        Some((flight, course))
    }

    /// All of them.
    pub(super) fn names(&self) -> Vec<(CourseId, Arc<str>)> {
        let name = |(id, underway): (&u64, &Underway)| (CourseId(*id), Arc::clone(underway.flight.name()));
        self.all.iter().map(name).collect()
    }

    /// Takes out those that somebody must go on with.
    pub(super) fn take_due(&mut self) -> Vec<(CourseId, Box<Course>)> {
        let Self { all, due, .. } = self;
        let take = |id: u64| Some((CourseId(id), all.get_mut(&id)?.course.take()?));
        due.drain(..).filter_map(take).collect()
    }
}

/// A step's error as one of the whole operation `name`: what programs read there is the user's name.
pub(super) fn of_the_whole(error: Error, name: &Arc<str>) -> Error {
    match error {
        Error::Mismatch(mismatch) if *mismatch.name != **name => {
            let mut mismatch = Mismatch::clone(&mismatch);
            mismatch.name = name.to_string();
            Error::Mismatch(mismatch.into())
        }
        Error::Cancelled(_) => Error::Cancelled(Arc::clone(name)),
        other => other,
    }
}

impl NamedSet {
    /// Begins an operation of several steps. `waits`: the caller goes on to wait for it.
    ///
    /// # Errors
    /// As those of a submission.
    fn embark(self: &Arc<Self>, name: &str, mut course: Box<Course>, waits: bool) -> Result<(CourseId, Arc<Flight>)> {
        check_user_name(name)?;
        if !waits && let Err(error) = self.driver.start() {
            self.refuse(name, &error.to_string());
            return Err(error);
        }
        let step = course.first()?;
        let (flight, now) = (Arc::new(Flight::new(name)), self.driver.now());
        let mut core = self.admit(name, now)?;
        if !core.tickets.reserve(flight.name()) {
            return Err(in_flight(name));
        }
        let id = core.tickets.courses.begin(Arc::clone(&flight), waits);
        drop(core);
        let refused = self.enter_step(id, step, course, now);
        if !waits {
            self.driver.hand_over();
        }
        refused.map_or(Ok((id, flight)), Err)
    }

    /// Hands in the next step of a course, unless that has ended meanwhile. Returns why it is refused at once: what comes later,
    /// which may be before this returns, is the flight's.
    fn enter_step(self: &Arc<Self>, id: CourseId, step: Step, course: Box<Course>, now: Duration) -> Option<Error> {
        let mut core = self.lock();
        let Some(underway) = core.tickets.courses.all.get_mut(&id.0) else {
            drop(core);
            // It was given up meanwhile, or the set has ended. The memory of the course goes outside the lock.
            drop((step, course));
            return None;
        };
        let whole = Arc::clone(&underway.flight);
        let name = step.name(underway.flight.name());
        let urgent = underway.urgent;
        let (call, memory) = step.named();
        let flight = Arc::new(Flight::new(&name));
        let request = call.request(flight.name());
        let mut entry = memory.entry(flight);
        entry.course = Some(id);
        let bytes = entry.bytes();
        underway.course = Some(course);
        let begun = self.begun(&request, bytes);
        let ticket = core.tickets.insert(entry, begun, now)?;
        if let Some(underway) = core.tickets.courses.all.get_mut(&id.0) {
            underway.step = Some(ticket);
        }
        self.note(&name, now);
        let event = Event::Submit { ticket, request: &request, urgent, deadline: None };
        core.tell(now, event, self.driver.port());
        let refused = whole.outcome().and_then(Result::err);
        self.release(core, now);
        refused
    }

    /// Works out what follows the steps that have ended, and begins that. Outside the lock.
    pub(super) fn go_on(self: &Arc<Self>, due: Vec<(CourseId, Box<Course>)>) {
        for (id, mut course) in due {
            let lost = Lost(self);
            let next = course.go_on();
            std::mem::forget(lost);
            match next {
                Next::Step(step) => drop(self.enter_step(id, step, course, self.driver.now())),
                Next::Over(end) => self.arrive(id, end),
            }
        }
    }

    /// A course has come to its end by itself.
    fn arrive(self: &Arc<Self>, id: CourseId, End { result, declined }: End) {
        let now = self.driver.now();
        let mut core = self.lock();
        let Some(underway) = core.tickets.courses.all.get(&id.0) else { return };
        let name = Arc::clone(underway.flight.name());
        let error = result.as_ref().err().cloned();
        core.tickets.end_course(id, result);
        match (declined, &error) {
            (Some(Declined::Step(label)), Some(error)) => {
                let (step, reason) = (step_name(&name, label), error.to_string());
                core.tell(now, Event::SubmitFailed { name: &step, reason: &reason }, self.driver.port());
            }
            (Some(Declined::Unknown), Some(error)) => core.poison(error, now, self.driver.port()),
            _ => {}
        }
        self.release(core, now);
    }

    /// Somebody begins to wait for all steps of a course, and drives from here on.
    pub(super) fn urge_course(&self, id: CourseId) {
        let now = self.driver.now();
        let mut core = self.lock();
        let Some(underway) = core.tickets.courses.all.get_mut(&id.0) else { return };
        underway.urgent = true;
        if let Some(ticket) = underway.step {
            core.tell(now, Event::Urgent { ticket }, self.driver.port());
        }
    }

    /// Gives a course up: as any operation in its first step; later the ranks have agreed on the whole.
    pub(super) fn cancel_course(self: &Arc<Self>, id: CourseId) {
        let now = self.driver.now();
        let mut core = self.lock();
        if let Some(Underway { flight, step, first, .. }) = core.tickets.courses.all.get(&id.0) {
            match step {
                Some(ticket) if *first => {
                    let ticket = *ticket;
                    core.cancel(ticket, now, self.driver.port());
                }
                _ => {
                    let error = too_late(flight.name());
                    core.poison(&error, now, self.driver.port());
                }
            }
        }
        self.release(core, now);
        self.driver.hand_over();
    }

    /// A panic in a course, a defect of kolo: the ranks have agreed on steps that this one will never take.
    #[cold]
    fn lose_course(self: &Arc<Self>) {
        let now = self.driver.now();
        let mut core = self.lock();
        let error = "kolo panicked between two steps of an operation; that is a bug, please report it";
        core.poison(&Error::Poisoned(error.into()), now, self.driver.port());
        self.release(core, now);
        self.driver.hand_over();
    }
}

/// Ends the set when a course is lost by a panic.
struct Lost<'a>(&'a Arc<NamedSet>);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.0.lose_course();
    }
}

/// Waits for the end of a course.
pub(super) fn wait_for_course(set: &NamedSet, id: CourseId, flight: &Flight) -> Result<()> {
    loop {
        if let Some(outcome) = flight.outcome() {
            return outcome;
        }
        set.urge_course(id);
        set.driver.wait(|| flight.is_over(), Duration::MAX)?;
    }
}

impl NamedSet {
    /// Runs an operation of several steps to its end.
    pub(crate) fn run_course(self: &Arc<Self>, name: &str, course: Box<Course>) -> Result<()> {
        let (id, flight) = self.embark(name, course, true)?;
        let _guard = Guard { set: self, id, flight: &flight };
        wait_for_course(self, id, &flight)
    }

    /// Begins an operation of several steps whose result `result` gives back.
    pub(crate) fn begin_course<R>(
        self: &Arc<Self>,
        name: &str,
        course: Box<Course>,
        result: Arc<dyn GiveBack<R>>,
    ) -> Result<Handle<R>> {
        let (id, flight) = self.embark(name, course, false)?;
        Ok(Handle { way: Way::Course(Arc::clone(self), id), flight, result })
    }
}

/// Gives a course up if its caller stops waiting for it.
struct Guard<'a> {
    set: &'a Arc<NamedSet>,
    id: CourseId,
    flight: &'a Flight,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.flight.is_over() {
            self.set.cancel_course(self.id);
        }
    }
}

//! Leaders on the loopback interface: friends, strangers, the stopped and the dead.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, poll};

use super::*;
use crate::error::{Error, Failure};

const DEADLINE: Duration = Duration::from_secs(60);
/// As short as can be: the loopback interface is never cut, whatever its leaders do.
const AT_ONCE: Duration = Duration::ZERO;

fn key() -> JobKey {
    JobKey::from_bytes([7; 32])
}

fn listeners(hosts: usize) -> (Vec<Listener>, Vec<Card>) {
    let listeners: Vec<Listener> = (0..hosts).map(|_| Listener::bind(Reach::Machine).expect("loopback")).collect();
    let cards = listeners.iter().enumerate().map(|(i, l)| l.card(format!("node{i}")).expect("a card")).collect();
    (listeners, cards)
}

/// Connects `hosts` leaders, each in a thread of its own.
fn leaders(hosts: usize) -> Vec<Links> {
    let (listeners, cards) = listeners(hosts);
    std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(me, listener)| {
                let cards = &cards;
                scope.spawn(move || {
                    let party = Party { me, hosts: cards, key: &key(), job: 1, epoch: 2, timeout: AT_ONCE };
                    connect(listener, &party, DEADLINE).expect("all are there")
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Polls until `count` events have been heard.
fn hear(links: &Links, count: usize) -> Vec<LinkEvent> {
    let mut events = Vec::new();
    let end = Instant::now() + DEADLINE;
    while events.len() < count {
        assert!(Instant::now() < end, "only heard {events:?}");
        let ready: Vec<usize> = {
            let interests = links.interests();
            let mut fds: Vec<PollFd<'_>> =
                interests.iter().map(|interest| PollFd::from_borrowed_fd(interest.fd, interest.events)).collect();
            let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            poll(&mut fds, Some(&second)).expect("poll");
            let ready = interests.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
            ready.map(|(interest, _)| interest.host).collect()
        };
        for host in ready {
            links.handle(host, &mut events);
        }
    }
    events
}

#[test]
fn leaders_ring_abort_and_leave() {
    let leaders = leaders(4);
    for links in &leaders {
        assert_eq!(links.interests().len(), 3);
    }
    leaders[0].ring(3);
    leaders[2].ring(3);
    let mut rang = hear(&leaders[3], 2);
    rang.sort_by_key(|event| matches!(event, LinkEvent::Rang { host: 2 }));
    assert_eq!(rang, [LinkEvent::Rang { host: 0 }, LinkEvent::Rang { host: 2 }]);

    let failure = Failure::new(5, "node1", "ran out of memory");
    leaders[1].abort(&failure);
    leaders[1].bye();
    for host in [0, 2, 3] {
        assert_eq!(
            hear(&leaders[host], 2),
            [LinkEvent::Aborted { host: 1, failure: failure.clone() }, LinkEvent::Left { host: 1 }]
        );
        assert_eq!(leaders[host].interests().len(), 2, "a host that left is not watched");
        leaders[host].ring(1);
    }
}

#[test]
fn one_host_needs_no_link() {
    let links = leaders(1).pop().expect("one leader");
    links.ring_all();
    links.bye();
    assert!(links.interests().is_empty());
}

#[test]
fn departures_and_summonses_are_heard_by_all() {
    let leaders = leaders(3);
    let many: Vec<u32> = (0..300).collect();
    leaders[1].depart(&many);
    leaders[1].summon();
    for host in [0, 2] {
        let mut gone = Vec::new();
        for event in hear(&leaders[host], 3) {
            match event {
                LinkEvent::Departed { host: 1, ranks } => gone.extend(ranks),
                other => assert_eq!(other, LinkEvent::Summoned { host: 1 }),
            }
        }
        assert_eq!(gone, many);
    }
}

#[test]
fn a_leader_that_goes_without_goodbye_is_lost_and_its_last_words_are_heard() {
    let mut leaders = leaders(2);
    let failure = Failure::new(1, "node1", "panicked");
    leaders[1].abort(&failure);
    leaders.truncate(1);
    let events = hear(&leaders[0], 2);
    assert_eq!(events[0], LinkEvent::Aborted { host: 1, failure });
    assert!(matches!(&events[1], LinkEvent::Lost { host: 1, cause } if cause.contains("node1")), "{events:?}");
    assert!(leaders[0].interests().is_empty());
}

#[test]
fn doorbells_to_a_leader_that_does_not_read_cost_no_memory_and_none_is_lost() {
    let leaders = leaders(2);
    // Far more than socket buffers hold.
    for _ in 0..500_000 {
        leaders[0].ring(1);
    }
    assert!(!hear(&leaders[1], 1).is_empty());
}

#[test]
fn a_leader_that_does_not_answer_is_silent_until_it_does() {
    let leaders = leaders(2);
    let start = Instant::now();
    let mut events = Vec::new();
    let look = |millis: u64, events: &mut Vec<LinkEvent>| {
        leaders[0].heartbeat(start + Duration::from_millis(millis), events);
    };
    for millis in (0..1000).step_by(100) {
        look(millis, &mut events);
    }
    assert_eq!(events, []);
    look(1000, &mut events);
    assert_eq!(events, [LinkEvent::Silent { host: 1, since: Duration::from_secs(1) }]);
    look(1100, &mut events);
    assert_eq!(events.len(), 1, "said once");

    // The question was waiting all the time; handling it answers it.
    let mut nothing = Vec::new();
    while leaders[0].interests().is_empty() || events.len() == 1 {
        leaders[1].handle(0, &mut nothing);
        leaders[0].handle(1, &mut events);
    }
    assert_eq!(events[1..], [LinkEvent::Heard { host: 1 }]);
    assert_eq!(nothing, [], "a question is nobody's event");
}

#[test]
fn time_in_which_nobody_looked_is_no_silence() {
    let leaders = leaders(2);
    let start = Instant::now();
    let mut events = Vec::new();
    leaders[0].heartbeat(start, &mut events);
    leaders[0].heartbeat(start + Duration::from_secs(100), &mut events);
    leaders[0].heartbeat(start + Duration::from_millis(100_900), &mut events);
    assert_eq!(events, []);
}

#[test]
fn a_host_that_does_not_come_is_named_with_its_addresses() {
    let (mut listeners, cards) = listeners(3);
    let gone = listeners.remove(0);
    drop(gone);
    let party = Party { me: 1, hosts: &cards, key: &key(), job: 1, epoch: 0, timeout: AT_ONCE };
    let error = connect(listeners.remove(0), &party, Duration::from_millis(200)).expect_err("two are missing");
    assert!(matches!(error, Error::Timeout { .. }));
    let text = error.to_string();
    for part in ["host 0 (node0)", &cards[0].addresses[0].to_string(), "refused", "host 2 (node2)", "has not connected"]
    {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

/// Host 0 expects host 1; the dialer differs in what `dialer` says. Both must fail, and say why.
fn mismatched(dialer: impl Fn(Party<'_>) -> Error + Sync) -> (String, String) {
    let (mut both, cards) = listeners(2);
    let acceptor = both.remove(0);
    drop(both);
    let short = Duration::from_millis(500);
    std::thread::scope(|scope| {
        let dialing =
            scope.spawn(|| dialer(Party { me: 1, hosts: &cards, key: &key(), job: 1, epoch: 0, timeout: AT_ONCE }));
        let party = Party { me: 0, hosts: &cards, key: &key(), job: 1, epoch: 0, timeout: AT_ONCE };
        let error = connect(acceptor, &party, short).expect_err("a stranger").to_string();
        (error, dialing.join().expect("no panic").to_string())
    })
}

fn dial_as(party: Party<'_>) -> Error {
    let own = Listener::bind(Reach::Machine).expect("loopback");
    connect(own, &party, Duration::from_millis(500)).expect_err("turned away")
}

#[test]
fn a_dialer_with_another_key_is_turned_away() {
    let other = JobKey::from_bytes([8; 32]);
    let (_, dialer) = mismatched(|party| dial_as(Party { key: &other, ..party }));
    assert!(dialer.contains("does not know the job's key"), "{dialer}");
}

#[test]
fn a_dialer_of_another_job_or_epoch_is_turned_away() {
    let (acceptor, _) = mismatched(|party| dial_as(Party { job: 77, ..party }));
    assert!(acceptor.contains("job 0x4d") && acceptor.contains("turned away"), "{acceptor}");
    let (acceptor, _) = mismatched(|party| dial_as(Party { epoch: 5, ..party }));
    assert!(acceptor.contains("epoch 5"), "{acceptor}");
}

#[test]
fn strangers_and_hostile_bytes_do_not_disturb_the_leaders() {
    let (mut both, cards) = listeners(2);
    let (dialing, accepting) = (both.pop().expect("two"), both.pop().expect("two"));
    // More than the guests that have room, some silent, some chatty, some with the right first bytes.
    let mut strangers = Vec::new();
    for number in 0..40_u8 {
        let mut stranger = TcpStream::connect(cards[0].addresses[0]).expect("the port is open");
        let mut bytes = vec![number; usize::from(number) * 9];
        if number % 3 == 0 {
            bytes.splice(0..0, *b"KOLO\x01\0\0\0");
        }
        stranger.write_all(&bytes).expect("room in the socket");
        strangers.push(stranger);
    }
    let connect = |me, listener| {
        let party = Party { me, hosts: &cards, key: &key(), job: 1, epoch: 0, timeout: AT_ONCE };
        connect(listener, &party, DEADLINE).expect("the friend is there")
    };
    let leaders = std::thread::scope(|scope| {
        let first = scope.spawn(|| connect(0, accepting));
        let second = connect(1, dialing);
        [first.join().expect("no panic"), second]
    });
    leaders[0].ring(1);
    assert_eq!(hear(&leaders[1], 1), [LinkEvent::Rang { host: 0 }]);
    for mut stranger in strangers {
        // Whatever it was told, it was turned away: the port is closed by now.
        let mut told = Vec::new();
        match stranger.read_to_end(&mut told) {
            Ok(_) => assert!(told.is_empty(), "a stranger was told {told:?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    assert!(TcpStream::connect(cards[0].addresses[0]).is_err(), "the port closes once all are connected");
}

#[test]
fn bytes_that_are_no_frame_end_the_link_with_a_reason() {
    let (mut both, cards) = listeners(2);
    let accepting = both.remove(0);
    let key = key();
    let leader = std::thread::scope(|scope| {
        let party = Party { me: 0, hosts: &cards, key: &key, job: 1, epoch: 0, timeout: AT_ONCE };
        let leader = scope.spawn(move || connect(accepting, &party, DEADLINE).expect("a friend at first"));
        let mut stream = TcpStream::connect(cards[0].addresses[0]).expect("the port is open");
        let greeting = handshake::Greeting { job: 1, epoch: 0, from: 1, to: 0 };
        let hello = handshake::hello(&greeting, &[1; 32]);
        stream.write_all(&hello).expect("hello");
        let mut challenge = [0; handshake::CHALLENGE];
        stream.read_exact(&mut challenge).expect("a challenge");
        let proof = handshake::proof(&key, &hello, &challenge).expect("the same key");
        stream.write_all(&proof).expect("proof");
        stream.write_all(&[0, 0, 99, 1, 2, 3]).expect("nonsense");
        leader.join().expect("no panic")
    });
    let events = hear(&leader, 1);
    assert!(matches!(&events[0], LinkEvent::Lost { host: 1, cause } if cause.contains("unknown kind")), "{events:?}");
}

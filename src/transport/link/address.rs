//! Where a leader can be reached: its listening sockets, and the card that it gives to the others.

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ptr;

use crate::error::{Error, Result};

/// More addresses than any host advertises.
const ADDRESSES: usize = 64;

/// Who has to reach a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All leaders run on one machine (pretend hosts): only the loopback interface is opened.
    Machine,
    /// Leaders of other machines.
    Network,
}

/// The sockets that wait for the leaders with a higher index. Closed once all are connected.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(super) sockets: Vec<TcpListener>,
    reach: Reach,
}

/// What the other leaders have to know to dial: passed around by the bootstrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    /// The host's name, for messages.
    pub(crate) name: String,
    /// Where its leader listens, the likeliest first. Empty for a leader that nobody dials.
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Listener {
    /// Opens ports of the system's choice, for IPv4 and IPv6 where the system has them.
    pub(crate) fn bind(reach: Reach) -> Result<Self> {
        let hosts: [IpAddr; 2] = match reach {
            Reach::Machine => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Reach::Network => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        let mut sockets = Vec::new();
        let mut refused = None;
        for host in hosts {
            let bound = TcpListener::bind((host, 0)).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
            match bound {
                Ok(socket) => sockets.push(socket),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if sockets.is_empty() => {
                Err(Error::system("listening for the leaders of other hosts; is there a network interface?", error))
            }
            _ => Ok(Self { sockets, reach }),
        }
    }

    /// The card to hand around.
    ///
    /// On a network it names every address of every interface that is up, without loopback and those that hold only on
    /// one cable (link-local). A bridge that every host has for itself may be among them: whoever dials it meets
    /// itself, and the handshake tells.
    pub(crate) fn card(&self, name: impl Into<String>) -> Result<Card> {
        let mut addresses = Vec::new();
        let hosts = match self.reach {
            Reach::Machine => Vec::new(),
            Reach::Network => interfaces()?,
        };
        for socket in &self.sockets {
            let bound =
                socket.local_addr().map_err(|error| Error::system("asking for the address of a socket", error))?;
            match self.reach {
                Reach::Machine => addresses.push(bound),
                Reach::Network => addresses.extend(
                    hosts
                        .iter()
                        .filter(|host| host.is_ipv4() == bound.is_ipv4())
                        .map(|&host| SocketAddr::new(host, bound.port())),
                ),
            }
        }
        addresses.truncate(ADDRESSES);
        Ok(Card { name: name.into(), addresses })
    }
}

impl Card {
    /// The card as bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.addresses.len().min(ADDRESSES) as u8];
        for address in self.addresses.iter().take(ADDRESSES) {
            match address.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend(ip.octets());
                }
            }
            out.extend(address.port().to_le_bytes());
        }
        out.extend(self.name.as_bytes());
        out
    }

    /// The card that these bytes are, if they are one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&count, mut rest) = bytes.split_first()?;
        let mut addresses = Vec::new();
        for _ in 0..count {
            let (&family, after) = rest.split_first()?;
            let (ip, after) = match family {
                4 => after.split_first_chunk::<4>().map(|(ip, after)| (IpAddr::from(*ip), after))?,
                6 => after.split_first_chunk::<16>().map(|(ip, after)| (IpAddr::from(*ip), after))?,
                _ => return None,
            };
            let (port, after) = after.split_first_chunk()?;
            addresses.push(SocketAddr::new(ip, u16::from_le_bytes(*port)));
            rest = after;
        }
        (addresses.len() <= ADDRESSES).then_some(())?;
        Some(Self { name: str::from_utf8(rest).ok()?.to_owned(), addresses })
    }
}

/// The addresses of this machine that others may reach.
fn interfaces() -> Result<Vec<IpAddr>> {
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: writes a list that is freed below.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(Error::system("listing the network interfaces", io::Error::last_os_error()));
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: the kernel's list is linked by valid pointers and ends with null.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        let up = entry.ifa_flags as c_int & libc::IFF_UP != 0;
        let loopback = entry.ifa_flags as c_int & libc::IFF_LOOPBACK != 0;
        if !up || loopback || entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: the family says which structure is behind the pointer.
        let ip = unsafe {
            match c_int::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    IpAddr::from(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)))
                }
                libc::AF_INET6 => {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    IpAddr::from(address.sin6_addr.s6_addr)
                }
                _ => continue,
            }
        };
        if useful(ip) && !found.contains(&ip) {
            found.push(ip);
        }
    }
    // SAFETY: made by getifaddrs, freed once.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

fn useful(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_machine_wide_listener_shows_nothing_to_the_network() {
        let listener = Listener::bind(Reach::Machine).expect("loopback");
        let card = listener.card("here").expect("a card");
        assert!(!card.addresses.is_empty());
        assert!(card.addresses.iter().all(|address| address.ip().is_loopback() && address.port() != 0));
    }

    #[test]
    fn a_network_listener_names_no_loopback() {
        let listener = Listener::bind(Reach::Network).expect("a network");
        let card = listener.card("here").expect("a card");
        assert!(card.addresses.iter().all(|address| useful(address.ip()) && address.port() != 0), "{card:?}");
    }

    #[test]
    fn cards_survive_the_wire() {
        let addresses = ["10.0.0.1:65535", "[2001:db8::1]:1"].map(|text| text.parse().expect("an address"));
        let card = Card { name: "knoten-ü".to_owned(), addresses: addresses.to_vec() };
        assert_eq!(Card::decode(&card.encode()), Some(card));
        assert_eq!(Card::decode(&[]), None);
        assert_eq!(Card::decode(&[1, 5, 0, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn hostile_cards_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(card) = Card::decode(&bytes) {
                prop_assert_eq!(card.encode(), bytes);
            }
        }
    }
}

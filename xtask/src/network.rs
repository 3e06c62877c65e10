//! Hosts made out of Linux namespaces, for jobs that run across several: each has an address of its own on a bridge, a
//! name, processors, processes, and a `/dev/shm`, `/run` and `/etc/hosts`. kolo takes them for different machines, as
//! it decides by namespaces what can share memory.
//!
//! Nothing of it has a name outside, and nothing outlives its maker. Each host is held by one shell, the first process
//! of the host, which reads from a pipe whose other end this process holds. When that closes, by [`Network`]'s drop, a
//! panic or a SIGKILL, the shell ends, the kernel kills whatever else runs on the host, and takes the namespaces with
//! their links down. So there is nothing that a later run could find and would have to remove.
//!
//! `mpirun` runs on one more host, the head, which is connected as well but has no ranks. It reaches the others by a
//! remote shell of ours, which enters the namespaces of the host that it is asked for.
//!
//! The hosts have no route to anywhere else. Making them takes root's rights: see [`Network::available`].

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::harness::{self, Job};
use crate::mpi::Flavour;

/// The programs that a network is made with, and Debian's packages that hold them.
pub const PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("taskset", "util-linux"),
];

/// The remote shell, on the head.
const AGENT: &str = "/run/remote-shell";
/// How long the last processes of a network may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// As much shared memory as a host has.
const SHM: &str = "1g";

/// Some hosts that can reach each other. Dropping it ends them, with all that runs there.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<Holder>,
    head: Holder,
}

/// The process that holds one host's namespaces.
#[derive(Debug)]
struct Holder {
    name: String,
    process: Child,
    /// The host ends when this closes.
    life: Option<ChildStdin>,
}

/// Which of a host's namespaces to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enter {
    Network,
    /// All but that of the processes.
    Head,
    All,
}

/// A network of `count` hosts for the test `what`; where none can be made, `None`, after saying so where nothing hides it.
///
/// # Panics
/// When one can be made, but this one could not.
pub fn or_skip(what: &str, count: usize) -> Option<Network> {
    if let Err(why) = Network::available() {
        // Not by a macro for printing, whose words are shown for tests that fail.
        writeln!(std::io::stderr(), "skipped: {what}: {why:#}").expect("an open standard error");
        return None;
    }
    Some(Network::new(count).unwrap_or_else(|error| panic!("{what}: {error:#}")))
}

impl Network {
    /// Makes `count` hosts, called n0, n1 and so on, and the head. Host `i` has the address 10.77.0.`10 + i`.
    ///
    /// Processors are dealt to the hosts in turn, so that hosts have some of their own as far as there are enough.
    ///
    /// # Errors
    /// Whatever the system refuses, with the command that it refused.
    pub fn new(count: usize) -> Result<Self> {
        ensure!((1..100).contains(&count), "a network has 1 to 99 hosts, not {count}");
        let mut hosts = Vec::new();
        for index in 0..count {
            hosts.push(Holder::start(&name(index), Enter::All, &host_script(index, count))?);
        }
        let head = Holder::start("head", Enter::Head, &furnish("head", count, &agent(&hosts)?, ""))?;
        let network = Self { hosts, head };
        network.connect()?;
        Ok(network)
    }

    /// Why no network can be made here, if it cannot: one is tried.
    ///
    /// # Errors
    /// What is missing: root's rights, a program, or something in the kernel.
    pub fn available() -> Result<()> {
        ensure!(geteuid().is_root(), "hosts out of namespaces are made by root");
        for (program, package) in PROGRAMS {
            let found = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
            ensure!(found.is_ok(), "there is no {program}: install {package}");
        }
        Self::new(1)?.rate(0, Some("1gbit"))
    }

    /// A job on these hosts, `ranks[i]` of them on host `i`, from the lowest rank on. Only Open MPI up to 4.x knows how
    /// to start it.
    ///
    /// # Panics
    /// When there are fewer hosts.
    pub fn mpirun(&self, ranks: &[usize]) -> Job {
        self.place(harness::mpirun(ranks.iter().sum()), ranks)
    }

    /// Has a job run on these hosts; see [`mpirun`](Self::mpirun).
    pub(crate) fn place(&self, job: Job, ranks: &[usize]) -> Job {
        assert!(ranks.len() <= self.hosts.len(), "{} hosts for {ranks:?}", self.hosts.len());
        let seats: Vec<_> = ranks.iter().enumerate().map(|(host, ranks)| format!("{}:{ranks}", name(host))).collect();
        let mut arguments = vec!["--host".to_owned(), seats.join(",")];
        let more = ["--map-by slot", "--mca plm_rsh_agent", AGENT, "--mca plm_rsh_no_tree_spawn 1"];
        arguments.extend(more.iter().flat_map(|words| words.split(' ')).map(str::to_owned));
        let mut arguments: Vec<_> = arguments.into_iter().map(OsString::from).collect();
        // Who enters a host starts in its root directory.
        let here = std::env::current_dir().expect("a working directory");
        arguments.extend(["--wdir".into(), here.into_os_string()]);
        job.started_by(Flavour::OpenMpi4, self.head.enter(Enter::Head), arguments)
    }

    /// Cuts a host off from all others, as by pulling its cable.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn cut(&self, host: usize) -> Result<()> {
        self.head.ip(&["link", "set", &port(host), "down"])
    }

    /// Connects it again.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn mend(&self, host: usize) -> Result<()> {
        self.head.ip(&["link", "set", &port(host), "up"])
    }

    /// Limits what a host sends and what it receives, each to `rate` (as `tc` takes it: `100mbit`); `None` lifts the
    /// limit.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn rate(&self, host: usize, rate: Option<&str>) -> Result<()> {
        for (holder, device) in [(&self.hosts[host], "eth0".to_owned()), (&self.head, port(host))] {
            let words = match rate {
                Some(rate) => format!("qdisc replace dev {device} root tbf burst 256kb latency 50ms rate {rate}"),
                None => format!("qdisc del dev {device} root"),
            };
            holder.run("tc", &words.split(' ').collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// The name of a host, as kolo shows it.
    pub fn host_name(&self, host: usize) -> &str {
        &self.hosts[host].name
    }

    fn connect(&self) -> Result<()> {
        self.head.ip(&["link", "add", "bridge", "type", "bridge"])?;
        self.head.ip(&["addr", "add", &address(None, true), "dev", "bridge"])?;
        self.head.ip(&["link", "set", "bridge", "up"])?;
        for (index, host) in self.hosts.iter().enumerate() {
            let (port, pid) = (port(index), host.process.id().to_string());
            self.head.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
            self.head.ip(&["link", "set", &port, "master", "bridge", "up"])?;
            host.ip(&["addr", "add", &address(Some(index), true), "dev", "eth0"])?;
            host.ip(&["link", "set", "eth0", "up"])?;
        }
        Ok(())
    }
}

fn name(host: usize) -> String {
    format!("n{host}")
}

/// The end of a host's cable on the head's bridge.
fn port(host: usize) -> String {
    format!("port{host}")
}

fn address(host: Option<usize>, with_length: bool) -> String {
    format!("10.77.0.{}{}", host.map_or(1, |host| 10 + host), if with_length { "/24" } else { "" })
}

/// What the first process of a host does: it furnishes the host, says so, and waits for its end.
fn host_script(index: usize, count: usize) -> String {
    // Open MPI's daemon starts nothing by it, but insists on its being there.
    let agent = "#!/bin/sh\necho 'only the head reaches other hosts' >&2\nexit 1\n";
    furnish(&name(index), count, agent, &format!("mount -t tmpfs -o mode=1777,size={SHM} shm /dev/shm\n"))
}

fn furnish(name: &str, count: usize, agent: &str, more: &str) -> String {
    let mut lines = "127.0.0.1 localhost\n".to_owned() + &address(None, false) + " head\n";
    for host in 0..count {
        lines += &format!("{} {}\n", address(Some(host), false), self::name(host));
    }
    format!(
        "set -e\necho {name} > /proc/sys/kernel/hostname\nmount -t tmpfs -o mode=755 run /run\nmkdir -m 1777 /run/tmp\n\
         cat > /run/hosts <<'END'\n{lines}END\nmount --bind /run/hosts /etc/hosts\nip link set lo up\n\
         cat > {AGENT} <<'END'\n{agent}END\nchmod 755 {AGENT}\n{more}echo up\nread _ || :\n"
    )
}

/// The remote shell: the name of a host, then a command for its shell. Options that come before are meant for ssh.
fn agent(hosts: &[Holder]) -> Result<String> {
    let affinity = rustix::thread::sched_getaffinity(None).context("asking for our processors")?;
    let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| affinity.is_set(cpu)).collect();
    let mut script =
        "#!/bin/sh\nwhile [ \"${1#-}\" != \"$1\" ]; do shift; done\nhost=$1\nshift\ncase $host in\n".to_owned();
    for (index, host) in hosts.iter().enumerate() {
        let enter: Vec<_> = host.enter(Enter::All).iter().map(|word| word.display().to_string()).collect();
        let cpus = share(&cpus, index, hosts.len());
        script += &format!("{}) set -- taskset -c {cpus} {} sh -c \"$*\" ;;\n", host.name, enter.join(" "));
    }
    Ok(script + "*) echo \"there is no host $host\" >&2; exit 1 ;;\nesac\nTMPDIR=/run/tmp exec \"$@\"\n")
}

/// The processors of host `index`, as taskset takes them: dealt out in turn, or one that several hosts share.
fn share(cpus: &[usize], index: usize, hosts: usize) -> String {
    let mut mine: Vec<_> = cpus.iter().skip(index).step_by(hosts).map(usize::to_string).collect();
    if mine.is_empty() {
        mine.push(cpus[index % cpus.len()].to_string());
    }
    mine.join(",")
}

impl Holder {
    fn start(name: &str, kind: Enter, script: &str) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--uts", "--ipc"]);
        if kind == Enter::All {
            command.args(["--pid", "--fork", "--mount-proc"]);
        }
        let (reader, writer) = std::io::pipe()?;
        command.args(["sh", "-c", script]).stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut process = command.spawn().context("cannot start unshare")?;
        drop(command);
        let life = process.stdin.take();
        let mut holder = Self { name: name.to_owned(), process, life };
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        reader.read_line(&mut line).with_context(|| format!("reading from host {name}"))?;
        if line != "up\n" {
            holder.end()?;
            reader.read_to_string(&mut line).with_context(|| format!("reading from host {name}"))?;
            bail!("host {name} could not be made: {}", line.trim());
        }
        Ok(holder)
    }

    /// The words that lead a command which runs on this host.
    fn enter(&self, what: Enter) -> Vec<OsString> {
        let file = |option: &str, file: &str| format!("--{option}=/proc/{}/ns/{file}", self.process.id());
        let mut words = vec!["nsenter".to_owned(), file("net", "net")];
        if what != Enter::Network {
            words.extend([file("mount", "mnt"), file("uts", "uts"), file("ipc", "ipc")]);
        }
        if what == Enter::All {
            // unshare itself stays outside; what it starts is inside.
            words.push(file("pid", "pid_for_children"));
        }
        words.into_iter().map(OsString::from).collect()
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        self.run("ip", words)
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<()> {
        let enter = self.enter(Enter::Network);
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).arg(program).args(words).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("cannot start {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "on {}: {program} {}: {}", self.name, words.join(" "), said.trim());
        Ok(())
    }

    /// Ends the host, and waits until it is gone.
    fn end(&mut self) -> Result<()> {
        drop(self.life.take());
        let end = Instant::now() + ENDING;
        while self.process.try_wait()?.is_none() {
            if Instant::now() >= end {
                let pid = Pid::from_child(&self.process);
                kill_process(pid, Signal::KILL).with_context(|| format!("killing the holder of {}", self.name))?;
                self.process.wait()?;
                bail!("host {} did not end by itself within {ENDING:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // A host that does not end has been killed; a drop has nobody to tell, but whoever reads what the tests print.
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;
    use crate::process::living;

    #[test]
    fn processors_are_dealt_out() {
        assert_eq!(["0,2", "1,3"], [0, 1].map(|host| share(&[0, 1, 2, 3], host, 2)));
        assert_eq!(["5", "7", "5"], [0, 1, 2].map(|host| share(&[5, 7], host, 3)));
    }

    #[test]
    fn hosts_have_names_addresses_and_memory_of_their_own() {
        let Some(network) = or_skip("hosts_have_names_addresses_and_memory_of_their_own", 2) else { return };
        let say = |host: usize, script: &str| {
            let words = network.hosts[host].enter(Enter::All);
            let output = Command::new(&words[0]).args(&words[1..]).args(["sh", "-c", script]).output();
            let output = output.expect("nsenter starts");
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text")
        };
        for host in [0, 1] {
            let script = "cat /proc/sys/kernel/hostname; ls /dev/shm; touch /dev/shm/mine; ip -4 -br addr show eth0";
            let said = say(host, script);
            let words: Vec<&str> = said.split_whitespace().collect();
            assert_eq!(words[0], network.host_name(host), "{said}");
            assert_eq!(words[1..].len(), 3, "nothing in /dev/shm, one address: {said}");
            assert_eq!(words[3], format!("10.77.0.{}/24", 10 + host), "{said}");
            assert_eq!(say(host, "ip route").lines().count(), 1, "no way out");
        }
        assert!(say(1, "ip -br link show eth0").contains("LOWER_UP"));
        network.rate(0, Some("10mbit")).expect("a limit");
        network.rate(0, None).expect("none again");
        network.cut(1).expect("cut");
        assert!(!say(1, "ip -br link show eth0").contains("LOWER_UP"));
        network.mend(1).expect("mended");
        assert!(network.cut(7).is_err(), "there is no such host");
    }

    #[test]
    fn a_maker_that_is_killed_leaves_no_host() {
        const MARK: &str = "TEST_NETWORK_MAKER";
        const CASE: &str = "network::tests::a_maker_that_is_killed_leaves_no_host";
        if env::var_os(MARK).is_some() {
            let network = Network::new(2).expect("hosts");
            println!("\nmade");
            std::thread::park();
            drop(network);
        }
        if or_skip(CASE, 1).is_none() {
            return;
        }
        let id = format!("{}-{:?}", std::process::id(), Instant::now());
        let mut maker = Command::new(env::current_exe().expect("this test"));
        maker.args(["--exact", CASE, "--nocapture"]).env(MARK, &id).stdout(Stdio::piped());
        let mut maker = maker.spawn().expect("it starts");
        let made = BufReader::new(maker.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        assert!(made.into_iter().any(|line| line == "made"));
        let mark = format!("{MARK}={id}");
        let theirs = || living(|environment| environment.contains(&mark.as_bytes()).then_some(()));
        assert!(theirs().len() > 3, "the maker, and two processes a host");
        maker.kill().expect("killed");
        maker.wait().expect("reaped");
        let end = Instant::now() + ENDING;
        while !theirs().is_empty() {
            assert!(Instant::now() < end, "left: {:?}", theirs());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

//! Which host this is.

use std::fs;
use std::path::Path;

use rustix::system::uname;

/// The host's name, as messages show it.
pub(crate) fn hostname() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

/// Equal in two processes only where they can share memory, see each other's `/proc`, and read the same clock.
///
/// It joins the kernel's boot id with the namespaces that decide those. Two containers of one machine differ unless
/// they were told to share. That memory is really shared is still probed once it is mapped.
pub(crate) fn identity() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(
        // Without /proc nothing can be shared by our means; the name and the pid make a host of one process.
        |_| format!("{}/{}", hostname(), std::process::id()),
        |id| id.trim().to_owned(),
    );
    identity_of(&boot, Path::new("/proc/self/ns"))
}

fn identity_of(boot: &str, namespaces: &Path) -> String {
    let mut identity = boot.to_owned();
    for name in ["ipc", "mnt", "pid", "time"] {
        identity.push('/');
        match fs::read_link(namespaces.join(name)) {
            Ok(link) => identity.push_str(&link.to_string_lossy()),
            // A kernel without this kind of namespace has one for all of the host.
            Err(_) => identity.push_str("one"),
        }
    }
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_stable_and_names_its_namespaces() {
        let identity = identity();
        assert_eq!(identity, super::identity());
        assert_eq!(identity.split('/').count(), 5, "{identity}");
        assert!(!hostname().is_empty());
    }

    #[test]
    fn another_namespace_is_another_host() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["ipc", "mnt", "pid"] {
            std::os::unix::fs::symlink(format!("{name}:[1]"), dir.path().join(name)).expect("a link");
        }
        let first = identity_of("boot", dir.path());
        assert_eq!(first, "boot/ipc:[1]/mnt:[1]/pid:[1]/one");
        fs::remove_file(dir.path().join("mnt")).expect("removed");
        std::os::unix::fs::symlink("mnt:[2]", dir.path().join("mnt")).expect("a link");
        assert_ne!(first, identity_of("boot", dir.path()));
        assert_ne!(first, identity_of("later", dir.path()));
    }
}

//! The harness of the tests that run under a real `mpirun`. It lives in the package `xtask`, module `harness`, which also
//! knows how each launcher must be called; this file adds what needs `kolo`.

/// Defines a test that runs in every rank of a job started by `mpirun`, once for each number of ranks, and for each list of
/// pretend hosts.
///
/// ```ignore
/// mpi_test!(sum_of_ranks, np = [1, 2, 3, 4], hosts = ["2,2", "3,1"], env = [("KOLO_ALGORITHM", "ring")], |kolo| {
///     let mut data = [kolo.rank() as f32];
///     kolo.allreduce("x", &mut data, ReduceOp::Sum)?;
///     assert_eq!(data[0], (0..kolo.size()).sum::<usize>() as f32);
/// });
/// ```
///
/// `hosts`, `env` and `seconds` (the time one job may take, 60 if left out) are optional, in this order. With `||` in place
/// of `|kolo|` the body starts kolo itself, or not at all, and ends with an `ExitCode`.
macro_rules! mpi_test {
    ($name:ident, np = $ranks:expr
        $(, hosts = $hosts:expr)? $(, env = $env:expr)? $(, seconds = $seconds:expr)?, || $body:block) => {
        #[test]
        fn $name() {
            #[allow(unused_mut, reason = "a case without options assigns none")]
            let mut case = xtask::harness::Case {
                path: concat!(module_path!(), "::", stringify!($name)),
                ranks: &$ranks,
                hosts: &[],
                environment: &[],
                timeout: std::time::Duration::from_secs(60),
            };
            $(case.hosts = &$hosts;)?
            $(case.environment = &$env;)?
            $(case.timeout = std::time::Duration::from_secs($seconds);)?
            case.run(|| $body)
        }
    };
    ($name:ident, np = $ranks:expr
        $(, hosts = $hosts:expr)? $(, env = $env:expr)? $(, seconds = $seconds:expr)?, |$kolo:ident| $body:block) => {
        mpi_test!($name, np = $ranks $(, hosts = $hosts)? $(, env = $env)? $(, seconds = $seconds)?, || {
            kolo::run(|$kolo: &kolo::Kolo| -> kolo::Result<()> {
                $body
                Ok(())
            })
        });
    };
}

//! The command line and the JSON of the benchmark, as scripts use them, under a real `mpirun`. Speed is not tested.

use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use xtask::harness::mpirun;

const BENCH: &str = env!("CARGO_BIN_EXE_kolo-bench");

/// Runs the benchmark on `ranks` ranks; returns what it printed, and its records.
fn bench(ranks: usize, name: &str, arguments: &str) -> (String, Vec<Value>) {
    let json = Json(std::env::temp_dir().join(format!("kolo-bench-{}-{name}.json", std::process::id())));
    let path = json.0.display().to_string();
    let mut words: Vec<&str> = arguments.split_whitespace().collect();
    words.extend(["--json", &path]);
    let printed = mpirun(ranks).timeout(Duration::from_secs(120)).run_program(BENCH, &words);
    let text = std::fs::read_to_string(&json.0).expect("the file of --json");
    let records: Value = serde_json::from_str(&text).expect("JSON");
    (printed, records.as_array().expect("an array").clone())
}

/// A file that goes with the test.
struct Json(PathBuf);

impl Drop for Json {
    fn drop(&mut self) {
        // It is not there when the test failed before.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn check_record(record: &Value, ranks: usize) {
    for field in ["case", "api"] {
        assert!(record[field].is_string(), "{field}: {record}");
    }
    for field in ["time_us", "p99_us", "algbw_gbs"] {
        assert!(record[field].as_f64().is_some_and(|value| value > 0.0), "{field}: {record}");
    }
    assert!(record["busbw_gbs"].is_number(), "{record}");
    assert_eq!(record["ranks"], ranks, "{record}");
    assert_eq!(record["wrong"], 0, "{record}");
    if record["peer"].is_string() {
        assert_eq!(record["peer_wrong"], 0, "{record}");
        for field in ["peer_time_us", "ratio", "ratio_min", "ratio_max"] {
            assert!(record[field].as_f64().is_some_and(|value| value > 0.0), "{field}: {record}");
        }
    }
}

#[test]
fn allreduce_writes_a_record_a_size_and_prints_a_row_on_one_rank() {
    let (printed, records) =
        bench(2, "sizes", "allreduce --bytes 4:256KiB:256 --against mpi --rounds 2 --api communicator");
    let bytes: Vec<_> = records.iter().map(|record| record["bytes"].as_u64().unwrap()).collect();
    assert_eq!(bytes, [4, 1024, 256 << 10]);
    for record in &records {
        check_record(record, 2);
        assert_eq!((&record["case"], &record["peer"]), (&"allreduce".into(), &"mpi".into()));
        assert_eq!(record["rounds"], 2);
        assert_eq!(record["in_place"], false);
    }
    let rows = printed.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())).count();
    assert_eq!(rows, 3, "{printed}");
    assert!(printed.contains("# affinity") && printed.contains("busbw"), "{printed}");
}

#[test]
fn named_shared_and_in_place_of_every_type() {
    for (dtype, bytes, api, against) in [
        ("f16", "2", "named", ""),
        ("bf16", "4KiB", "communicator", ""),
        ("f64", "8KiB", "named", "--against mpi"),
        ("i32", "64KiB", "communicator", "--against mpi"),
        ("i64", "64KiB", "named", "--against mpi"),
        ("u8", "33", "communicator", "--against mpi"),
        ("u64", "24", "named", "--against mpi"),
        ("f32", "1MiB", "communicator", "--against mpi"),
    ] {
        let line = format!(
            "allreduce --bytes {bytes} --dtype {dtype} --api {api} --buffers shared --in-place {against} --rounds 1"
        );
        let (_, records) = bench(2, "types", &line);
        assert_eq!(records.len(), 1, "{line}");
        check_record(&records[0], 2);
        assert_eq!((&records[0]["api"], &records[0]["in_place"]), (&api.into(), &true.into()), "{line}");
        assert_eq!(records[0]["buffers"], "shared");
    }
}

#[test]
fn other_operations_and_ranks() {
    for op in ["average", "min", "max", "product"] {
        let (_, records) = bench(3, "ops", &format!("allreduce --bytes 40KiB --op {op} --rounds 1"));
        check_record(&records[0], 3);
        assert_eq!(records[0]["op"], op);
        assert!(records[0]["peer"].is_null() && records[0]["ratio"].is_null());
    }
    let (_, records) = bench(1, "alone", "allreduce --bytes 4KiB --against mpi --rounds 1");
    check_record(&records[0], 1);
}

#[test]
fn list_writes_a_record_a_peer() {
    let (printed, records) = bench(2, "list", "list --preset small161 --against mpi,mpi-fused --rounds 2");
    assert_eq!(records.len(), 2, "{printed}");
    for (record, peer) in records.iter().zip(["mpi", "mpi-fused"]) {
        check_record(record, 2);
        assert_eq!((&record["case"], &record["peer"]), (&"list small161".into(), &peer.into()));
        assert_eq!((&record["bytes"], &record["tensors"]), (&(161 * 1024).into(), &161.into()));
        assert_eq!((&record["api"], &record["in_place"]), (&"named".into(), &true.into()));
    }
}

#[test]
fn idle_and_late_write_a_record_a_rank() {
    for (name, line, roles) in [
        ("idle", "idle --seconds 0.3 --preset small161", ["idle", "idle"]),
        ("late", "late --seconds 0.3 --rounds 1", ["waiting", "late"]),
    ] {
        let (printed, records) = bench(2, name, line);
        assert_eq!(records.len(), 2, "{printed}");
        for (rank, record) in records.iter().enumerate() {
            assert_eq!(record["case"], name);
            assert_eq!((&record["rank"], &record["role"]), (&rank.into(), &roles[rank].into()));
            assert!(record["cpu_percent"].as_f64().is_some_and(|value| value >= 0.0), "{record}");
            assert!(record["wakeups_per_s"].as_f64().is_some_and(|value| value >= 0.0), "{record}");
            // Who waits may have begun after the other went to sleep.
            let least = if record["role"] == "waiting" { 0.0 } else { 0.3 };
            assert!(record["seconds"].as_f64().is_some_and(|value| value > 0.0 && value >= least), "{record}");
        }
    }
}

#[test]
fn flight_records_of_a_job_are_read_and_their_cost_is_measured_without_a_launcher() {
    let directory = std::env::temp_dir().join(format!("kolo-bench-flight-{}", std::process::id()));
    let words = ["allreduce", "--bytes", "4KiB", "--rounds", "1"];
    mpirun(2).env("KOLO_FLIGHT", "keep").env("KOLO_FLIGHT_DIR", &directory).run_program(BENCH, &words);
    let alone = |words: &[&str]| {
        let json = Json(directory.join("found.json"));
        let output =
            std::process::Command::new(BENCH).args(words).arg("--json").arg(&json.0).output().expect("started");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {printed}{}", String::from_utf8_lossy(&output.stderr));
        let records: Value = serde_json::from_str(&std::fs::read_to_string(&json.0).expect("written")).expect("JSON");
        (printed, records)
    };
    let path = directory.display().to_string();
    let (printed, found) = alone(&["flight", &path]);
    assert!(printed.contains("2 of 2 ranks recorded") && printed.contains("did not part"), "{printed}");
    let job = &found[0];
    assert_eq!((&job["case"], &job["size"]), (&"flight".into(), &2.into()), "{job}");
    for rank in job["ranks"].as_array().expect("ranks") {
        assert_eq!(rank["end"], "left", "{rank}");
        assert!(rank["recorded"].as_u64().is_some_and(|count| count > 0) && rank["last"]["kind"].is_string(), "{rank}");
    }
    assert!(job["divergences"].as_array().is_some_and(Vec::is_empty), "{job}");
    let (printed, cost) = alone(&["flight-cost", "--rounds", "1", "--directory", &path]);
    assert_eq!(cost.as_array().map(Vec::len), Some(2), "{printed}");
    assert!(cost[0]["ns"].as_f64().is_some_and(|ns| ns > 0.0) && printed.contains("ns/record"), "{printed}");
    std::fs::remove_dir_all(&directory).expect("removed");
    let missing = std::process::Command::new(BENCH).args(["flight", &path]).output().expect("started");
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains(&path));
}

#[test]
fn bad_arguments_fail_the_job_and_say_what_to_write() {
    for (line, words) in [
        ("allreduce --bytes 4:2", "below the minimum"),
        ("allreduce --dtype f16 --bytes 2 --against mpi", "no type for f16"),
        ("list --preset alexnet", "resnet50"),
        ("allreduce --bytes 4 --rounds 1 --json /nonexistent/x.json", "give a path"),
    ] {
        let finished = mpirun(2).try_program(BENCH, &line.split_whitespace().collect::<Vec<_>>());
        assert!(!finished.success(), "{line}");
        assert!(finished.output.contains(words), "{line}: {}", finished.output);
    }
    let printed = mpirun(2).run_program(BENCH, &["--version"]);
    assert_eq!(printed.matches("kolo-bench").count(), 1, "{printed}");
}

//! What a run leaves: rows in nccl-tests' columns, and JSON records. The names of the fields are stable.

use crate::cli::Peer;
use crate::stats::{Ratio, Times, bandwidths};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// One (case, size, peer): our figures beside the peer's. Without a peer its fields are null.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) case: String,
    pub(crate) api: String,
    pub(crate) ranks: usize,
    pub(crate) bytes: u64,
    pub(crate) time_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) algbw_gbs: f64,
    pub(crate) busbw_gbs: f64,
    pub(crate) wrong: u64,
    pub(crate) peer: Option<String>,
    pub(crate) peer_time_us: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) ratio_min: Option<f64>,
    pub(crate) ratio_max: Option<f64>,
    pub(crate) peer_p99_us: Option<f64>,
    pub(crate) peer_wrong: Option<u64>,
    pub(crate) preset: Option<String>,
    pub(crate) tensors: usize,
    pub(crate) count: u64,
    pub(crate) dtype: String,
    pub(crate) op: String,
    pub(crate) buffers: String,
    pub(crate) in_place: bool,
    pub(crate) algorithm: String,
    pub(crate) rounds: usize,
    /// Timed samples of ours over all rounds; a sample is `batch` operations back to back.
    pub(crate) iterations: usize,
    pub(crate) batch: usize,
    pub(crate) round_times_us: Vec<f64>,
    pub(crate) peer_round_times_us: Option<Vec<f64>>,
    pub(crate) hosts: usize,
    pub(crate) cores: usize,
}

/// What one rank spent while it had nothing to do, or while it waited.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct QuietRecord {
    pub(crate) case: String,
    pub(crate) rank: usize,
    pub(crate) cpu_percent: f64,
    pub(crate) wakeups_per_s: f64,
    pub(crate) role: String,
    pub(crate) preemptions_per_s: f64,
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
    pub(crate) ranks: usize,
}

/// What a contender reached.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) times: Times,
    pub(crate) wrong: u64,
    pub(crate) batch: usize,
}

/// What is the same for all records of a case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) case: String,
    pub(crate) api: String,
    pub(crate) preset: Option<String>,
    pub(crate) ranks: usize,
    pub(crate) bytes: u64,
    pub(crate) count: u64,
    pub(crate) tensors: usize,
    pub(crate) dtype: String,
    pub(crate) op: String,
    pub(crate) buffers: String,
    pub(crate) in_place: bool,
    pub(crate) algorithm: String,
    pub(crate) hosts: usize,
    pub(crate) cores: usize,
}

impl Case {
    /// Our outcome against each peer's; one record without a peer where there is none.
    pub(crate) fn records(&self, ours: &Outcome, peers: &[(Peer, Outcome)]) -> Vec<Record> {
        if peers.is_empty() {
            return vec![self.record(ours, None)];
        }
        peers.iter().map(|peer| self.record(ours, Some(peer))).collect()
    }

    fn record(&self, ours: &Outcome, peer: Option<&(Peer, Outcome)>) -> Record {
        let typical = ours.times.typical();
        let (algbw_gbs, busbw_gbs) = bandwidths(self.bytes, typical, self.ranks);
        let ratio = peer.map(|(_, peer)| Ratio::of(&ours.times, &peer.times));
        Record {
            case: self.case.clone(),
            api: self.api.clone(),
            ranks: self.ranks,
            bytes: self.bytes,
            time_us: typical * 1e6,
            p99_us: ours.times.p99() * 1e6,
            algbw_gbs,
            busbw_gbs,
            wrong: ours.wrong,
            peer: peer.map(|(peer, _)| crate::cli::name_of(peer)),
            peer_time_us: peer.map(|(_, peer)| peer.times.typical() * 1e6),
            ratio: ratio.map(|ratio| ratio.median),
            ratio_min: ratio.map(|ratio| ratio.minimum),
            ratio_max: ratio.map(|ratio| ratio.maximum),
            peer_p99_us: peer.map(|(_, peer)| peer.times.p99() * 1e6),
            peer_wrong: peer.map(|(_, peer)| peer.wrong),
            preset: self.preset.clone(),
            tensors: self.tensors,
            count: self.count,
            dtype: self.dtype.clone(),
            op: self.op.clone(),
            buffers: self.buffers.clone(),
            in_place: self.in_place,
            algorithm: self.algorithm.clone(),
            rounds: ours.times.rounds.len(),
            iterations: ours.times.samples(),
            batch: ours.batch,
            round_times_us: microseconds(&ours.times),
            peer_round_times_us: peer.map(|(_, peer)| microseconds(&peer.times)),
            hosts: self.hosts,
            cores: self.cores,
        }
    }
}

fn microseconds(times: &Times) -> Vec<f64> {
    times.medians().iter().map(|seconds| seconds * 1e6).collect()
}

/// The two header lines of the table.
pub(crate) fn header() -> String {
    format!(
        "# {:>12} {:>12} {:>6} {:>8} {:>11} {:>8} {:>8} {:>6}  {:>9} {:>11} {:>8} {:>8} {:>6} {:>7} {:>13}\n\
         # {:>12} {:>12} {:>6} {:>8} {:>11} {:>8} {:>8} {:>6}  {:>9} {:>11} {:>8} {:>8} {:>6} {:>7} {:>13}",
        "size",
        "count",
        "type",
        "redop",
        "time",
        "algbw",
        "busbw",
        "#wrong",
        "peer",
        "time",
        "algbw",
        "busbw",
        "#wrong",
        "ratio",
        "(min-max)",
        "(B)",
        "(elements)",
        "",
        "",
        "(us)",
        "(GB/s)",
        "(GB/s)",
        "",
        "",
        "(us)",
        "(GB/s)",
        "(GB/s)",
        "",
        "",
        "",
    )
}

/// One row: ours, then the peer's.
pub(crate) fn row(record: &Record) -> String {
    let mut row = format!(
        "  {:>12} {:>12} {:>6} {:>8} {:>11} {:>8.2} {:>8.2} {:>6}",
        record.bytes,
        record.count,
        record.dtype,
        record.op,
        time(record.time_us),
        record.algbw_gbs,
        record.busbw_gbs,
        record.wrong
    );
    if let (Some(peer), Some(us), Some(wrong)) = (&record.peer, record.peer_time_us, record.peer_wrong) {
        let (algbw, busbw) = bandwidths(record.bytes, us / 1e6, record.ranks);
        row += &format!("  {peer:>9} {:>11} {algbw:>8.2} {busbw:>8.2} {wrong:>6}", time(us));
    }
    if let (Some(ratio), Some(least), Some(most)) = (record.ratio, record.ratio_min, record.ratio_max) {
        row += &format!(" {ratio:>7.2} {:>13}", format!("({least:.2}-{most:.2})"));
    }
    row
}

/// Microseconds with three or four digits that count.
fn time(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.3}"),
        us if us < 100.0 => format!("{us:.2}"),
        us if us < 1000.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}

/// The table's rows for `idle` and `late`.
pub(crate) fn quiet_row(record: &QuietRecord) -> String {
    format!(
        "  {:>6} {:>8} {:>8} {:>12.4} {:>14.2} {:>16.2}",
        record.rank, record.role, record.threads, record.cpu_percent, record.wakeups_per_s, record.preemptions_per_s
    )
}

/// The header of [`quiet_row`]'s table.
pub(crate) fn quiet_header() -> String {
    format!(
        "# {:>6} {:>8} {:>8} {:>12} {:>14} {:>16}",
        "rank", "role", "threads", "cpu (%)", "wake-ups (/s)", "preemptions (/s)"
    )
}

/// Opened before the first measurement, so that a path that cannot be written costs no measurements.
#[derive(Debug)]
pub(crate) struct JsonFile {
    file: Option<(File, String)>,
}

impl JsonFile {
    /// Creates the file on the rank that writes it.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub(crate) fn create(path: Option<&Path>, writes: bool) -> Result<Self> {
        let file = match path {
            Some(path) if writes => {
                let file = File::create(path).with_context(|| {
                    format!("cannot write --json {}: give a path that rank 0 may create", path.display())
                })?;
                Some((file, path.display().to_string()))
            }
            _ => None,
        };
        Ok(Self { file })
    }

    /// Writes the records as one array.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn write<R: Serialize>(self, records: &[R]) -> Result<()> {
        let Some((file, path)) = self.file else {
            return Ok(());
        };
        let mut file = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, records).with_context(|| format!("cannot write {path}"))?;
        file.write_all(b"\n").and_then(|()| file.flush()).with_context(|| format!("cannot write {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn case() -> Case {
        Case {
            case: "allreduce".into(),
            api: "communicator".into(),
            preset: None,
            ranks: 2,
            bytes: 4000,
            count: 1000,
            tensors: 1,
            dtype: "f32".into(),
            op: "sum".into(),
            buffers: "private".into(),
            in_place: false,
            algorithm: "auto".into(),
            hosts: 1,
            cores: 2,
        }
    }

    fn outcome(us: f64) -> Outcome {
        Outcome { times: Times { rounds: vec![vec![us / 1e6; 4]; 3] }, wrong: 0, batch: 1 }
    }

    #[test]
    fn json_has_the_stable_fields() {
        let records = case().records(&outcome(2.0), &[(Peer::Mpi, outcome(5.0)), (Peer::MpiFused, outcome(8.0))]);
        let json = serde_json::to_value(&records).unwrap();
        assert_eq!(json.as_array().unwrap().len(), 2);
        for field in [
            "case",
            "api",
            "ranks",
            "bytes",
            "time_us",
            "p99_us",
            "algbw_gbs",
            "busbw_gbs",
            "wrong",
            "peer",
            "peer_time_us",
            "ratio",
        ] {
            assert!(!json[0][field].is_null(), "{field}");
        }
        let near = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-9;
        assert!(near(&json[0]["ratio"], 2.5) && near(&json[1]["ratio"], 4.0), "peer time over ours");
        assert!(near(&json[0]["time_us"], 2.0) && near(&json[0]["peer_time_us"], 5.0));
        assert!(near(&json[0]["algbw_gbs"], 2.0) && near(&json[0]["busbw_gbs"], 2.0));
        assert_eq!(json[1]["peer"], "mpi-fused");
        assert_eq!((json[0]["rounds"].as_u64(), json[0]["iterations"].as_u64()), (Some(3), Some(12)));
    }

    #[test]
    fn without_a_peer_its_fields_are_null() {
        let json = serde_json::to_value(case().records(&outcome(2.0), &[])).unwrap();
        assert_eq!(json.as_array().unwrap().len(), 1);
        assert!(["peer", "peer_time_us", "ratio"].iter().all(|field| json[0][field].is_null()));
    }

    #[test]
    fn quiet_records_have_the_stable_fields() {
        let record = QuietRecord {
            case: "idle".into(),
            rank: 1,
            cpu_percent: 0.1,
            wakeups_per_s: 2.0,
            role: "idle".into(),
            preemptions_per_s: 0.0,
            threads: 3,
            seconds: 5.0,
            ranks: 2,
        };
        let json = serde_json::to_value([record]).unwrap();
        assert!(["case", "rank", "cpu_percent", "wakeups_per_s"].iter().all(|field| !json[0][field].is_null()));
    }

    #[test]
    fn rows_fill_the_columns() {
        let records = case().records(&outcome(2.0), &[(Peer::Mpi, outcome(5.0))]);
        let (header, row) = (header(), row(&records[0]));
        let width = header.lines().next().unwrap().len();
        assert_eq!(row.len(), width, "\n{header}\n{row}");
        assert!(row.contains("2.500") || row.contains("2.50"), "{row}");
    }

    #[test]
    fn the_file_holds_an_array_and_a_bad_path_explains() {
        let path = std::env::temp_dir().join(format!("kolo-bench-{}.json", std::process::id()));
        let file = JsonFile::create(Some(&path), true).unwrap();
        file.write(&case().records(&outcome(2.0), &[])).unwrap();
        let value: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(value[0]["bytes"], 4000);
        let error = JsonFile::create(Some(Path::new("/nonexistent/x.json")), true).unwrap_err();
        assert!(format!("{error:#}").contains("give a path"), "{error:#}");
        assert!(JsonFile::create(Some(Path::new("/nonexistent/x.json")), false).is_ok(), "only one rank writes");
    }
}

/// How a log uses its disk and memory. The default suits a process that is limited to 512 MiB.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Size of a segment file; less on a small disk (1/32 of it, but at least 256 KiB). Below 4 GiB.
    pub segment_bytes: u64,
    /// Memory of appends that may wait to be written, some 180 bytes per entry included. An append beyond it is answered
    /// [`crate::AppendError::Overloaded`], and its ledger then takes no more: a backstop, for callers that have no bound.
    pub max_queued_bytes: usize,
    /// Bytes that are taken into one write. Two such buffers exist at most.
    pub commit_bytes: usize,
    /// Free space that only reserved appends, fences and deletions may use; at most 1/16 of the disk.
    pub reserve_bytes: u64,
    /// Cached indexes of sealed segments, and (a half of it) the index of the segment being written.
    pub index_memory_bytes: usize,
    /// A sealed segment is compacted when less than this share of it is live.
    pub compact_below: f64,
    /// What compaction may read and write per second.
    pub compaction_bytes_per_second: u64,
    /// All ledgers are replicas. So is one of which damage hides the key, which says so.
    pub only_replicas: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 128 << 20,
            max_queued_bytes: 128 << 20,
            commit_bytes: 4 << 20,
            reserve_bytes: 256 << 20,
            index_memory_bytes: 16 << 20,
            compact_below: 0.5,
            compaction_bytes_per_second: 32 << 20,
            only_replicas: false,
        }
    }
}

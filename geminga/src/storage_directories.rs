//! From the folders that a storage node was given to the directories that it uses.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use geminga_log::{Log, LogOptions, OpenError};
use geminga_storage_node::{
    Assembly, Directories, Directory, Found, Identity, IdentityError, assemble, witnessed_ledger_ids_end,
};

use crate::data_dir::{DataDir, InUse};

/// Why a node does not start, and what is to be done: with a part of it taken for not lacking, it would deny what it had acknowledged.
const UNKNOWN_LACK: &str = "it is not known which ledgers lack entries: remove the damaged file if another data directory of this \
    node has it, or else begin anew with an empty one in the place of each";

/// What is open, and kept from other processes as long as this lives.
pub struct OpenDirectories {
    /// Name of the node, if its directories have it.
    pub node: Option<String>,
    /// Grows with each change of the directories.
    pub revision: u64,
    pub directories: Directories,
    /// Some directory of the node is not there.
    pub is_incomplete: bool,
    pub locks: Vec<DataDir>,
}

/// Recovery after a crash happens here. `give_up`: see [`assemble`]. `strangers`: a lone folder with a log that does not say
/// whose it is may be used, by a node that is in no cluster.
///
/// # Errors
/// No directory can be used, they belong to several nodes, or one is in use.
pub fn open(
    paths: &[&Path],
    give_up: Option<u64>,
    strangers: bool,
    memory_limit: u64,
) -> anyhow::Result<OpenDirectories> {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let found: Vec<Found> = paths.iter().map(|path| look_at(path)).collect();
    let options = log_options(memory_limit, paths.len());
    if let ([path], [Found::Unmarked], true) = (paths, &found[..], strangers) {
        let (lock, directory) = open_one(path, &options)?;
        let directories = Directories::new(vec![directory], 0)?;
        return Ok(OpenDirectories { node: None, revision: 0, directories, is_incomplete: false, locks: vec![lock] });
    }
    // Metadata may be an older dump, which knows less of the ids that were given.
    let marked = paths.iter().zip(&found).filter(|(_, found)| matches!(found, Found::Marked(_)));
    let witnessed = witnessed_ledger_ids_end(&marked.map(|(path, _)| path.to_path_buf()).collect::<Vec<_>>())?;
    let give_up = give_up.map(|horizon| horizon.max(witnessed));
    let Assembly { node, used, refused, missing, limbo_below, settled_below } =
        assemble(&names, found, give_up, Identity::new_name)?;
    for (at, reason) in refused {
        tracing::error!(directory = names[at], "data directory is not used: {reason}");
    }
    let mut is_incomplete = !missing.is_empty();
    let (mut locks, mut open) = (Vec::new(), Vec::new());
    let used_count = used.len();
    for (at, identity) in used {
        match open_one(paths[at], &options) {
            Ok((lock, directory)) => {
                locks.push(lock);
                open.push((directory, identity));
            }
            Err(error) if used_count == 1 || is_fatal(&error) => return Err(error),
            Err(error) => {
                tracing::error!(directory = names[at], "data directory is not used, it failed: {error:#}");
                is_incomplete = true;
            }
        }
    }
    if open.is_empty() {
        bail!("none of the data directories can be used (--data-dir)");
    }
    mark(&open)?;
    if is_incomplete {
        tracing::error!(
            node,
            ?missing,
            "data directories of this node are missing: of their ledgers it answers that it does not know; see \
             --give-up-missing-directories if they are gone for good"
        );
    }
    // What holes may hide is in limbo until metadata settle it; without metadata, what is new is believed to be.
    let has_holes = open.iter().any(|(directory, _)| directory.log.stats().holes > 0);
    let is_unsure = is_incomplete || (has_holes && !strangers);
    let least = if is_unsure { limbo_below.max(witnessed) } else { limbo_below };
    let (limbo_below, settled_below) = if is_unsure { (u64::MAX, 0) } else { (limbo_below, settled_below) };
    let revision = open[0].1.revision;
    let directories = Directories::new(open.into_iter().map(|(directory, _)| directory).collect(), limbo_below)?;
    let directories = directories.with_least_limbo(least).recall(settled_below).context(UNKNOWN_LACK)?;
    if !directories.is_settled() || directories.unfinished_count() > 0 {
        tracing::warn!(
            below = limbo_below,
            unfinished = directories.unfinished_count(),
            "of older ledgers this node may lack entries that it should have"
        );
    }
    Ok(OpenDirectories { node: Some(node), revision, directories, is_incomplete, locks })
}

fn look_at(path: &Path) -> Found {
    match Identity::read(path) {
        Ok(Some(identity)) => Found::Marked(identity),
        Ok(None) => match has_segments(&path.join("log")) {
            Ok(true) => Found::Unmarked,
            Ok(false) => Found::Empty,
            Err(source) => Found::Unreadable(IdentityError::Io { folder: path.display().to_string(), source }),
        },
        Err(error) => Found::Unreadable(error.into()),
    }
}

fn has_segments(log: &Path) -> io::Result<bool> {
    let files = match std::fs::read_dir(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        files => files?,
    };
    for file in files {
        if file?.file_name().to_string_lossy().starts_with("segment-") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A part of what a log takes when it is alone.
fn log_options(memory_limit: u64, directories: usize) -> LogOptions {
    let alone = LogOptions::default();
    LogOptions {
        max_queued_bytes: memory_limit as usize / 4 / directories,
        index_memory_bytes: alone.index_memory_bytes / directories,
        only_replicas: true,
        ..alone
    }
}

fn open_one(path: &Path, options: &LogOptions) -> anyhow::Result<(DataDir, Directory)> {
    let lock = DataDir::open(path)?;
    let folder = lock.log();
    let (log, report) =
        Log::open(&folder, options.clone()).with_context(|| format!("cannot open the log in {}", folder.display()))?;
    tracing::info!(folder = %folder.display(), ?report, "log is open");
    Ok((lock, Directory { path: PathBuf::from(path), log }))
}

/// Not the disk's fault: nothing that a node could go on without.
fn is_fatal(error: &anyhow::Error) -> bool {
    error.is::<InUse>() || matches!(error.downcast_ref(), Some(OpenError::Locked(_) | OpenError::NewerFormat { .. }))
}

/// Directories that are new say whose they are before the others count them.
fn mark(open: &[(Directory, Identity)]) -> anyhow::Result<()> {
    for (directory, identity) in open {
        if Identity::read(&directory.path)?.is_none() {
            let uncounted = Identity { directories: Vec::new(), revision: 0, ..identity.clone() };
            uncounted.write(&directory.path)?;
        }
    }
    for (directory, identity) in open {
        if Identity::read(&directory.path)?.as_ref() != Some(identity) {
            identity.write(&directory.path)?;
        } else if Identity::is_unchecked(&directory.path) {
            // It says nothing new: a full disk is no reason not to start.
            if let Err(error) = identity.write(&directory.path) {
                tracing::warn!(%error, "a file of a build before is left without a checksum");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 64 << 20;

    /// Two directories of a node that remembers metadata which had given ids up to 900; then the second one is gone.
    fn with_one_missing(folder: &Path) -> [PathBuf; 2] {
        let paths = [folder.join("a"), folder.join("b")];
        drop(open(&[&paths[0], &paths[1]], None, false, MEMORY).expect("a new node"));
        std::fs::write(paths[0].join("witness"), br#"{"count":3,"version":7,"ledger_ids_end":900}"#).expect("written");
        std::fs::remove_dir_all(&paths[1]).expect("it was there");
        paths
    }

    #[test]
    fn what_metadata_from_a_dump_say_is_no_bound_of_what_a_missing_directory_had() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = with_one_missing(folder.path());
        let opened = open(&[&paths[0]], None, false, MEMORY).expect("the rest of it");
        assert!(opened.is_incomplete);
        opened.directories.set_limbo_below(100);
        assert_eq!(opened.directories.limbo_below(), 900);
        opened.directories.set_limbo_below(1000);
        assert_eq!(opened.directories.limbo_below(), 1000);
        drop(opened);

        let opened = open(&[&paths[0]], Some(100), false, MEMORY).expect("what is missing is given up");
        assert_eq!((opened.is_incomplete, opened.directories.limbo_below()), (false, 900));
        drop(opened);
        let opened = open(&[&paths[0]], None, false, MEMORY).expect("it is kept");
        assert_eq!(opened.directories.limbo_below(), 900);
    }

    #[test]
    fn damaged_notes_stop_a_start_and_say_what_is_to_be_done() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = [folder.path().join("a"), folder.path().join("b")];
        let start = || open(&[&paths[0], &paths[1]], None, false, MEMORY);
        drop(start().expect("a new node"));
        for (note, whole, damaged, advice) in [
            ("unfinished", "[3,5]", "[3,5]\n ", "remove the damaged file if another data directory"),
            ("witness", "{\"count\":3}", "{\"count\":3}\n ", "remove the file and start again"),
        ] {
            let path = paths[1].join(note);
            std::fs::write(&path, whole).expect("written");
            drop(start().expect("a build before wrote it"));
            std::fs::write(&path, damaged).expect("written");
            let error = format!("{:#}", start().err().expect("it is damaged"));
            assert!(error.contains(&format!("the file '{note}' in {}", paths[1].display())), "{error}");
            assert!(error.contains(advice), "{error}");
            std::fs::remove_file(&path).expect("it was there");
        }
    }

    #[test]
    fn what_the_build_before_says_of_a_directory_gets_a_checksum_and_a_damaged_one_is_as_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = [folder.path().join("a"), folder.path().join("b")];
        let start = || open(&[&paths[0], &paths[1]], None, false, MEMORY);
        drop(start().expect("a new node"));
        let identity = paths[1].join("identity");
        let checked = std::fs::read(&identity).expect("it is there");
        std::fs::write(&identity, checked.trim_ascii_end()).expect("written");
        assert!(!start().expect("as before").is_incomplete);
        assert_eq!(std::fs::read(&identity).expect("it is there"), checked);

        let turned = String::from_utf8(checked).expect("text").replace("\"limbo_below\":0", "\"limbo_below\":1");
        std::fs::write(&identity, turned).expect("written");
        assert!(start().expect("the other one is whole").is_incomplete);
        let alone = open(&[&paths[1]], None, false, MEMORY);
        let error = format!("{:#}", alone.err().expect("nothing is whole"));
        assert!(error.contains("the file 'identity' in") && error.contains("its checksum is wrong"), "{error}");
    }
}

//! What the data directories that a node was given make together. Pure: what was found goes in, what is to be done comes out.
//!
//! A directory that is not there takes its ledgers with it and no others. As nobody knows which those were, whatever is
//! found nowhere else is in *limbo*: "I don't know", never "it is not there". An empty directory in the place of one that is
//! missing is not used: a disk that was not mounted looks like that, and so does a new disk, which must never be trusted
//! with what the old one had. Only when somebody says that what is missing is gone for good does it take its place.

use std::collections::BTreeMap;

use crate::identity::{Identity, IdentityError};

/// What is in a data directory.
#[derive(Debug)]
pub enum Found {
    /// Nothing, or the folder does not exist.
    Empty,
    /// A log, and no word of whose it is.
    Unmarked,
    Marked(Identity),
    Unreadable(IdentityError),
}

/// A node's directories, by their place among those that were given.
#[derive(Debug, PartialEq, Eq)]
pub struct Assembly {
    pub node: String,
    /// To be used, each with the identity that is to be written.
    pub used: Vec<(usize, Identity)>,
    /// Not used, and why.
    pub refused: Vec<(usize, String)>,
    /// Names of directories of the node that are not there.
    pub missing: Vec<String>,
    /// Of ledgers below it that are nowhere it is unknown whether they were here. From directories that were given up.
    pub limbo_below: u64,
    /// How far it is settled what that means: see limbo.rs.
    pub settled_below: u64,
}

/// `paths` name the directories in errors. `give_up`: directories that are missing are gone for good, and ledgers with
/// ids below this may have been on them. `new_name` makes names.
///
/// # Errors
/// Nothing can be used, or using it would mix nodes.
pub fn assemble(
    paths: &[String],
    found: Vec<Found>,
    give_up: Option<u64>,
    mut new_name: impl FnMut() -> String,
) -> Result<Assembly, IdentityError> {
    let node = match node_of(&found)? {
        Some(node) => node,
        None if found.iter().any(|found| matches!(found, Found::Empty)) => new_name(),
        None => return Err(unusable(paths, found)),
    };
    let of_node = |found: &Found| match found {
        Found::Marked(identity) if identity.id == node => Some(identity.clone()),
        _ => None,
    };
    let newest = found.iter().filter_map(of_node).max_by_key(|identity| identity.revision);
    let (mut known, revision) = newest.map_or((Vec::new(), 0), |newest| (newest.directories, newest.revision));
    let limbo_before = found.iter().filter_map(of_node).map(|identity| identity.limbo_below).max().unwrap_or(0);
    // One that was not there when another was given up does not know that this has to be settled.
    let with_newest = found.iter().filter_map(of_node).filter(|identity| identity.revision == revision);
    let mut settled_below = with_newest.map(|identity| identity.settled_below).max().unwrap_or(0);

    let (mut present, mut empty) = (BTreeMap::new(), Vec::new());
    let mut refused = Vec::new();
    for (at, found) in found.into_iter().enumerate() {
        match found {
            Found::Marked(identity) if identity.id != node => {
                refused.push((at, format!("it belongs to another storage node, {}, and is not used", identity.id)));
            }
            Found::Marked(identity) => {
                let was_given_up = !known.contains(&identity.directory) && !identity.directories.is_empty();
                if was_given_up {
                    refused.push((at, "this node has given it up: its ledgers are elsewhere by now".to_owned()));
                } else if let Some(other) = present.insert(identity.directory, at) {
                    return Err(IdentityError::Twice(paths[other].clone(), paths[at].clone()));
                }
            }
            Found::Unmarked => {
                let folder = paths[at].clone();
                refused.push((at, IdentityError::Missing { folder }.to_string()));
            }
            Found::Unreadable(error) => refused.push((at, error.to_string())),
            Found::Empty => empty.push(at),
        }
    }

    let mut missing: Vec<String> = known.iter().filter(|name| !present.contains_key(*name)).cloned().collect();
    let mut limbo_below = limbo_before;
    if let Some(horizon) = give_up.filter(|_| !missing.is_empty()) {
        known.retain(|name| !missing.contains(name));
        missing.clear();
        limbo_below = limbo_below.max(horizon);
        settled_below = 0;
    }
    for at in empty {
        if missing.is_empty() {
            present.insert(new_name(), at);
        } else {
            let names = missing.join(", ");
            refused.push((
                at,
                format!("it is empty while the node's directory {names} is missing: is a disk not mounted?"),
            ));
        }
    }
    if present.is_empty() {
        return Err(IdentityError::NoDirectory);
    }
    let mut directories: Vec<String> = missing.iter().chain(present.keys()).cloned().collect();
    directories.sort();
    known.sort();
    let revision = revision + u64::from(directories != known);
    let identity_of = |directory: String| Identity {
        id: node.clone(),
        directory,
        directories: directories.clone(),
        revision,
        limbo_below,
        settled_below,
    };
    let mut used: Vec<(usize, Identity)> = present.into_iter().map(|(name, at)| (at, identity_of(name))).collect();
    used.sort_by_key(|(at, _)| *at);
    Ok(Assembly { node, used, refused, missing, limbo_below, settled_below })
}

/// The node that most of the directories belong to, if any belongs to one.
fn node_of(found: &[Found]) -> Result<Option<String>, IdentityError> {
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for found in found {
        if let Found::Marked(identity) = found {
            *votes.entry(&identity.id).or_default() += 1;
        }
    }
    let most = votes.values().max().copied().unwrap_or(0);
    let mut first = votes.into_iter().filter(|(_, count)| *count == most).map(|(node, _)| node.to_owned());
    match (first.next(), first.next()) {
        (Some(one), Some(other)) => Err(IdentityError::SeveralNodes(one, other)),
        (node, _) => Ok(node),
    }
}

/// Why there is nothing to begin with.
fn unusable(paths: &[String], found: Vec<Found>) -> IdentityError {
    let reasons = found.into_iter().enumerate().filter_map(|(at, found)| match found {
        Found::Unreadable(error) => Some(error),
        Found::Unmarked => Some(IdentityError::Missing { folder: paths[at].clone() }),
        Found::Empty | Found::Marked(_) => None,
    });
    reasons.into_iter().next().unwrap_or(IdentityError::NoDirectory)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::state_file::{Problem, StateFileError};

    fn marked(id: &str, directory: &str, directories: &[&str], revision: u64) -> Found {
        Found::Marked(Identity {
            id: id.to_owned(),
            directory: directory.to_owned(),
            directories: directories.iter().map(|name| (*name).to_owned()).collect(),
            revision,
            limbo_below: 0,
            settled_below: 0,
        })
    }

    fn assembled(found: Vec<Found>, give_up: Option<u64>) -> Result<Assembly, IdentityError> {
        let paths: Vec<String> = (0..found.len()).map(|at| format!("disk-{at}")).collect();
        let mut names = ["x", "y", "z"].into_iter().map(str::to_owned);
        assemble(&paths, found, give_up, || names.next().expect("enough names"))
    }

    fn used(assembly: &Assembly) -> Vec<usize> {
        assembly.used.iter().map(|(at, _)| *at).collect()
    }

    #[test]
    fn empty_directories_become_a_node() {
        let made = assembled(vec![Found::Empty, Found::Empty], None).expect("a new node");
        assert_eq!((&made.node[..], used(&made), made.missing.len()), ("x", vec![0, 1], 0));
        assert!(made.used.iter().all(|(_, identity)| identity.directories == ["y", "z"] && identity.revision == 1));
    }

    #[test]
    fn a_directory_is_added_to_a_node_that_has_all_of_its_own() {
        let made = assembled(vec![marked("n", "a", &["a"], 1), Found::Empty], None).expect("a larger node");
        assert_eq!((used(&made), made.missing.len(), made.limbo_below), (vec![0, 1], 0, 0));
        assert_eq!(made.used[1].1.directories, ["a", "x"]);
        assert_eq!(made.used[0].1.revision, 2);
        // The machine stopped when the new one was marked, and before it was counted.
        let again = assembled(vec![marked("n", "a", &["a"], 1), marked("n", "x", &[], 0)], None).expect("the same");
        assert_eq!(again.used, made.used);
    }

    #[test]
    fn an_empty_disk_never_stands_for_one_that_is_missing() {
        let made = assembled(vec![marked("n", "a", &["a", "b"], 1), Found::Empty], None).expect("the rest of it");
        assert_eq!((used(&made), &made.missing[..]), (vec![0], &["b".to_owned()][..]));
        assert!(made.refused[0].1.contains("not mounted"), "{:?}", made.refused);
        assert_eq!(made.used[0].1.revision, 1, "what is missing is still counted");
    }

    #[test]
    fn what_is_given_up_leaves_its_ledgers_in_limbo() {
        let made = assembled(vec![marked("n", "a", &["a", "b"], 4), Found::Empty], Some(900)).expect("a new disk");
        assert_eq!((used(&made), made.missing.len(), made.limbo_below), (vec![0, 1], 0, 900));
        assert!(
            made.used.iter().all(|(_, identity)| identity.directories == ["a", "x"] && identity.limbo_below == 900)
        );
        // It comes back: its ledgers were taken for lost, and may be elsewhere.
        let now = || marked("n", "a", &["a", "x"], 5);
        let back = assembled(vec![now(), marked("n", "b", &["a", "b"], 4)], None).expect("without it");
        assert_eq!(used(&back), [0]);
        assert!(back.refused[0].1.contains("given it up"));
        assert_eq!(back.missing, ["x"]);
    }

    #[test]
    fn what_was_settled_is_not_once_more_is_given_up() {
        let settled = |directory: &str, revision, settled_below| match marked("n", directory, &["a", "b"], revision) {
            Found::Marked(identity) => Found::Marked(Identity { limbo_below: 900, settled_below, ..identity }),
            other => other,
        };
        // The machine stopped when one directory knew of it.
        let made = assembled(vec![settled("a", 5, 0), settled("b", 5, 900)], None).expect("all of it");
        assert_eq!((made.limbo_below, made.settled_below), (900, 900));
        assert!(made.used.iter().all(|(_, identity)| identity.settled_below == 900));
        let made = assembled(vec![settled("a", 6, 0), settled("b", 5, 900)], None).expect("one was away");
        assert_eq!((made.limbo_below, made.settled_below), (900, 0));
        // Metadata from before the first time.
        let made = assembled(vec![settled("a", 5, 900), Found::Empty], Some(700)).expect("a new disk");
        assert_eq!((made.limbo_below, made.settled_below), (900, 0));
    }

    #[test]
    fn a_disk_of_another_node_is_not_used() {
        let found = vec![
            marked("n", "a", &["a", "b", "c"], 1),
            marked("m", "k", &["k"], 9),
            marked("n", "c", &["a", "b", "c"], 1),
        ];
        let made = assembled(found, None).expect("the node with more");
        assert_eq!((used(&made), &made.missing[..]), (vec![0, 2], &["b".to_owned()][..]));
        assert!(made.refused[0].1.contains("another storage node, m"));
        let even = vec![marked("n", "a", &["a"], 1), marked("m", "k", &["k"], 9)];
        assert!(matches!(assembled(even, None), Err(IdentityError::SeveralNodes(..))));
    }

    #[test]
    fn copies_damage_and_strange_logs_are_refused() {
        let twice = vec![marked("n", "a", &["a"], 1), marked("n", "a", &["a"], 1)];
        assert!(matches!(assembled(twice, None), Err(IdentityError::Twice(..))));
        let damaged = || {
            let torn = Problem::Damaged("torn".to_owned());
            IdentityError::from(StateFileError::new("identity", Path::new("disk-1"), torn))
        };
        assert!(matches!(assembled(vec![Found::Unreadable(damaged())], None), Err(IdentityError::Unreadable(_))));
        assert!(matches!(assembled(vec![Found::Unmarked], None), Err(IdentityError::Missing { .. })));
        let found = vec![marked("n", "a", &["a", "b"], 1), Found::Unreadable(damaged()), Found::Unmarked];
        let made = assembled(found, None).expect("the one that is good");
        assert_eq!((used(&made), made.refused.len(), made.missing.len()), (vec![0], 2, 1));
    }
}

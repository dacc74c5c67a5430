//! Where a bundle is cut into smaller ones, and what its namespace's policies say then.

use geminga_metadata::Policies;
use geminga_model::{BundleName, BundleRange};

/// Where a bundle is cut (Pulsar's split algorithms of the same meaning).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitAt {
    /// Into two halves of the range (`range_equally_divide`).
    Middle,
    /// Into two with as many topics (`topic_count_equally_divide`).
    Topics,
    /// At these hashes (`specified_positions_divide`).
    Positions(Vec<u32>),
}

impl SplitAt {
    /// The parts of `range`, in which topics have these hashes; sorted. Fewer than two: it cannot be cut like this.
    pub fn cut(&self, range: BundleRange, mut hashes: Vec<u32>) -> Vec<BundleRange> {
        hashes.sort_unstable();
        let mut positions = match self {
            SplitAt::Middle => vec![range.low + (range.high - range.low) / 2],
            SplitAt::Positions(positions) => positions.clone(),
            SplitAt::Topics => hashes.get(hashes.len() / 2).copied().into_iter().collect(),
        };
        positions.retain(|at| *at > range.low && *at < range.high);
        positions.sort_unstable();
        positions.dedup();
        let lows = std::iter::once(range.low).chain(positions.iter().copied());
        let highs = positions.iter().copied().chain(std::iter::once(range.high));
        lows.zip(highs).map(|(low, high)| BundleRange { low, high }).collect()
    }
}

/// The policies with the parts in the place of the range; `None` if the range is no bundle of the namespace (any more).
pub fn with_parts(mut policies: Policies, range: BundleRange, parts: &[BundleName]) -> Option<Policies> {
    let bundles = policies.bundles.as_mut()?;
    let at = bundles.boundaries.iter().position(|text| *text == format!("0x{:08x}", range.high))?;
    if at == 0 || bundles.boundaries[at - 1] != format!("0x{:08x}", range.low) {
        return None;
    }
    let inner = parts[1..].iter().map(|part| format!("0x{:08x}", part.range.low));
    bundles.boundaries.splice(at..at, inner);
    bundles.bundle_count = bundles.boundaries.len() as u32 - 1;
    Some(policies)
}

#[cfg(test)]
mod tests {
    use geminga_metadata::policies::BundlesData;
    use geminga_model::NamespaceName;

    use super::*;

    fn parts(at: SplitAt, range: &str, hashes: &[u32]) -> Vec<String> {
        at.cut(range.parse().unwrap(), hashes.to_vec()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_are_cut() {
        let range = "0x00000000_0x40000000";
        assert_eq!(parts(SplitAt::Middle, range, &[]), ["0x00000000_0x20000000", "0x20000000_0x40000000"]);
        let last = "0xc0000000_0xffffffff";
        assert_eq!(parts(SplitAt::Middle, last, &[]), ["0xc0000000_0xdfffffff", "0xdfffffff_0xffffffff"]);
        let topics = [9, 1, 5, 3];
        assert_eq!(parts(SplitAt::Topics, range, &topics), ["0x00000000_0x00000005", "0x00000005_0x40000000"]);
        let positions = SplitAt::Positions(vec![7, 5, 7, 0x4000_0000]);
        assert_eq!(
            parts(positions, range, &[]),
            ["0x00000000_0x00000005", "0x00000005_0x00000007", "0x00000007_0x40000000"]
        );
        assert_eq!(parts(SplitAt::Topics, range, &[]).len(), 1);
        assert_eq!(parts(SplitAt::Middle, "0x00000000_0x00000001", &[]).len(), 1);
    }

    #[test]
    fn boundaries_get_the_parts() {
        let namespace: NamespaceName = "public/default".parse().unwrap();
        let policies = Policies { bundles: Some(BundlesData::even(2)), ..Policies::default() };
        let range: BundleRange = "0x80000000_0xffffffff".parse().unwrap();
        let parts = SplitAt::Positions(vec![0x9000_0000, 0xa000_0000]).cut(range, Vec::new());
        let parts: Vec<BundleName> =
            parts.into_iter().map(|range| BundleName { namespace: namespace.clone(), range }).collect();
        let after = with_parts(policies, range, &parts).unwrap();
        let bundles = after.bundles.clone().unwrap();
        assert_eq!(bundles.bundle_count, 4);
        assert_eq!(bundles.boundaries, ["0x00000000", "0x80000000", "0x90000000", "0xa0000000", "0xffffffff"]);
        assert!(with_parts(after, range, &parts).is_none(), "cut already");
    }
}

/// How busy the machine is, whoever keeps it so.
#[derive(Debug, Default)]
pub struct MachineCpu {
    /// Ticks of all processors: busy ones, and all.
    before: Option<(u64, u64)>,
}

impl MachineCpu {
    /// The part of the processors' time since the last call that was not idle, 0 to 1. None at the first call, and where the
    /// kernel does not say.
    pub fn busy(&mut self) -> Option<f64> {
        let now = std::fs::read_to_string("/proc/stat").ok().as_deref().and_then(parse);
        let before = std::mem::replace(&mut self.before, now);
        let ((busy, all), (busy_before, all_before)) = (now?, before?);
        let all = all.checked_sub(all_before).filter(|ticks| *ticks > 0)?;
        Some(busy.saturating_sub(busy_before) as f64 / all as f64)
    }
}

/// The first line of `/proc/stat` has the ticks spent as user, nice, system, idle, waiting for disks, and in interrupts; what
/// follows (guests) is in these already.
fn parse(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|ticks| ticks.parse().ok()).collect::<Option<_>>()?;
    let (idle, all) = (ticks.get(3)? + ticks.get(4)?, ticks.iter().sum::<u64>());
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_are_not_busy() {
        assert_eq!(parse("cpu  10 1 5 80 4 0 0 0 7 7\ncpu0 1"), Some((16, 100)));
        assert_eq!(parse("cpu x"), None);
        assert_eq!(parse(""), None);
        let mut cpu = MachineCpu::default();
        assert_eq!(cpu.busy(), None);
    }
}

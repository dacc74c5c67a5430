use std::fmt::{self, Display, Write as _};

use parking_lot::RwLock;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

use crate::{Histogram, ProcessStats};

/// Writes lines that are computed when the page is asked for, with [`family`] and [`sample`].
type Source = Box<dyn Fn(&mut String) + Send + Sync>;

/// A page of metrics: the registered ones, the process's, and those of sources.
#[derive(Default)]
pub struct Metrics {
    registry: RwLock<Registry>,
    sources: RwLock<Vec<Source>>,
}

impl Metrics {
    pub fn new() -> Self {
        Metrics::default()
    }

    /// Registers metrics of prometheus-client's types, or a [`Histogram`].
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry.write());
    }

    /// Registers a histogram of the time that a stage of a message's way takes.
    pub fn stage(&self, name: &str, help: &str) -> Histogram {
        let histogram = Histogram::default();
        self.registry.write().register(name, help, histogram.clone());
        histogram
    }

    /// Adds a source; it is asked each time the page is.
    pub fn add_source(&self, source: impl Fn(&mut String) + Send + Sync + 'static) {
        self.sources.write().push(Box::new(source));
    }

    /// Appends the whole page in Prometheus' text format.
    pub fn render(&self, page: &mut String) {
        encode_registry(page, &self.registry.read()).expect("writing to a String cannot fail");
        for source in self.sources.read().iter() {
            source(page);
        }
        match ProcessStats::read() {
            Ok(stats) => stats.render(page),
            Err(error) => tracing::debug!(%error, "could not read the process's statistics"),
        }
    }
}

/// Labels of a sample, in the order to be written.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Begins a family of samples. `kind` is `counter`, `gauge` or `histogram`.
pub fn family(page: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("writing to a String cannot fail");
}

/// Writes one sample.
pub fn sample(page: &mut String, name: &str, labels: Labels, value: impl Display) {
    page.push_str(name);
    write_labels(page, labels, None).expect("writing to a String cannot fail");
    writeln!(page, " {value}").expect("writing to a String cannot fail");
}

/// Writes the samples of a histogram, in seconds.
pub fn sample_histogram(page: &mut String, name: &str, labels: Labels, histogram: &Histogram) {
    write_histogram(page, name, labels, histogram).expect("writing to a String cannot fail");
}

fn write_histogram(page: &mut String, name: &str, labels: Labels, histogram: &Histogram) -> fmt::Result {
    let (sum, buckets) = histogram.snapshot();
    let mut cumulative = 0;
    for (bound, count) in buckets {
        cumulative += count;
        write!(page, "{name}_bucket")?;
        write_labels(page, labels, Some(bound))?;
        writeln!(page, " {cumulative}")?;
    }
    for (suffix, value) in [("sum", sum), ("count", cumulative as f64)] {
        write!(page, "{name}_{suffix}")?;
        write_labels(page, labels, None)?;
        writeln!(page, " {value}")?;
    }
    Ok(())
}

fn write_labels(page: &mut String, labels: Labels, bound: Option<f64>) -> fmt::Result {
    if labels.is_empty() && bound.is_none() {
        return Ok(());
    }
    page.push('{');
    for (index, (name, value)) in labels.iter().enumerate() {
        if index > 0 {
            page.push(',');
        }
        write!(page, "{name}=\"")?;
        for character in value.chars() {
            match character {
                '\\' => page.push_str("\\\\"),
                '"' => page.push_str("\\\""),
                '\n' => page.push_str("\\n"),
                other => page.push(other),
            }
        }
        page.push('"');
    }
    if let Some(bound) = bound {
        let separator = if labels.is_empty() { "" } else { "," };
        if bound.is_infinite() {
            write!(page, "{separator}le=\"+Inf\"")?;
        } else {
            write!(page, "{separator}le=\"{bound}\"")?;
        }
    }
    page.push('}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_page_has_registered_computed_and_process_metrics() {
        let metrics = Metrics::new();
        let stage = metrics.stage("stage_seconds", "A stage");
        stage.record(Duration::from_micros(2));
        metrics.add_source(|page| {
            family(page, "topics", "gauge", "Topics");
            sample(page, "topics", &[("namespace", "a\"\\\nb")], 3);
        });
        let mut page = String::new();
        metrics.render(&mut page);
        for line in [
            "stage_seconds_bucket{le=\"0.000002\"} 1",
            "stage_seconds_bucket{le=\"+Inf\"} 1",
            "stage_seconds_count 1",
            "# TYPE topics gauge",
            "topics{namespace=\"a\\\"\\\\\\nb\"} 3",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(page.lines().any(|have| have == line), "no line '{line}' in\n{page}");
        }
        assert!(!page.contains("# EOF"), "more lines may follow");
    }

    #[test]
    fn computed_histograms_are_cumulative() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(1));
        histogram.record(Duration::from_micros(4));
        let mut page = String::new();
        sample_histogram(&mut page, "h", &[("stage", "fsync")], &histogram);
        assert!(page.starts_with("h_bucket{stage=\"fsync\",le=\"0.000001\"} 1\n"), "{page}");
        assert!(page.contains("h_bucket{stage=\"fsync\",le=\"0.000004\"} 2\n"), "{page}");
        assert!(page.contains("h_bucket{stage=\"fsync\",le=\"+Inf\"} 2\nh_sum{stage=\"fsync\"} 0.000005\n"), "{page}");
    }
}

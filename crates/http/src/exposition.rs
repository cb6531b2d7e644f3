//! The text that Prometheus reads: families of samples, each with its help and its kind.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::fmt::{Display, Write as _};

/// The kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// Appends families to a text.
pub(crate) struct Exposition<'a>(pub(crate) &'a mut String);

impl Exposition<'_> {
    /// Appends a family of samples with labels, such as `lane="io"`; names and labels are ours, so nothing
    /// is escaped.
    pub(crate) fn family<V: Display>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        self.head(name, kind, help);
        for (labels, value) in samples {
            // Writing to a string cannot fail.
            let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
        }
    }

    /// Appends a family of one sample without labels.
    pub(crate) fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn head(&mut self, name: &str, kind: Kind, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_a_head_and_a_line_for_each_sample() {
        let mut text = String::new();
        let mut exposition = Exposition(&mut text);
        exposition.single("up", Kind::Gauge, "Whether it is up.", 1);
        let samples = [("a=\"1\"".to_owned(), 2.5), ("a=\"2\"".to_owned(), 0.0)];
        exposition.family("seen_total", Kind::Counter, "What was seen.", samples);
        let expected = "# HELP up Whether it is up.\n# TYPE up gauge\nup 1\n\
            # HELP seen_total What was seen.\n# TYPE seen_total counter\n\
            seen_total{a=\"1\"} 2.5\nseen_total{a=\"2\"} 0\n";
        assert_eq!(text, expected);
    }
}

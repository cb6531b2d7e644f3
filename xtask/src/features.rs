//! Which sets of features of a crate are worth compiling.
//!
//! None, each one alone, and all together; the powerset is left to cargo-hack. Features bring others
//! along, so sets that come to the same are compiled once: a feature that is the default's only member
//! is the default, and a crate without features is one set. A feature whose name begins with `__` is a
//! part of others and nobody's to ask for: it is not compiled alone.

use std::collections::{BTreeMap, BTreeSet};

/// Returns the sets to compile, each as the features to name on the command line.
pub(crate) fn sets(features: &BTreeMap<String, Vec<String>>) -> Vec<Vec<String>> {
    let singles = features.keys().map(|name| vec![name.clone()]);
    let all = features.keys().filter(|name| *name != "default").cloned().collect();
    let mut seen = BTreeSet::new();
    std::iter::once(Vec::new())
        .chain(singles.filter(|set| set[0] != "default" && !set[0].starts_with("__")))
        .chain([all])
        .filter(|set: &Vec<String>| seen.insert(closure(set, features)))
        .collect()
}

/// The features that are on when `set` is asked for.
fn closure(set: &[String], features: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let mut on = BTreeSet::new();
    let mut open = set.to_vec();
    while let Some(name) = open.pop() {
        if let Some(brings) = features.get(&name)
            && on.insert(name)
        {
            open.extend(brings.iter().cloned());
        }
    }
    on
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `name: brings, brings; name` and compares the sets, written as `-, a, a+b`.
    fn check(features: &str, expected: &str) {
        let features = features
            .split(';')
            .filter(|feature| !feature.trim().is_empty())
            .map(|feature| {
                let (name, brings) = feature.split_once(':').unwrap_or((feature, ""));
                let brings = brings.split(',').map(str::trim).filter(|name| !name.is_empty());
                (name.trim().to_owned(), brings.map(str::to_owned).collect())
            })
            .collect();
        let sets: Vec<String> = sets(&features).iter().map(|set| set.join("+")).collect();
        assert_eq!(format!("-{}", sets.join(", ")), expected);
    }

    #[test]
    fn a_crate_without_features_is_one_set() {
        check("", "-");
    }

    #[test]
    fn each_feature_stands_alone_and_all_stand_together() {
        check("a; b; c", "-, a, b, c, a+b+c");
    }

    #[test]
    fn an_only_feature_is_not_compiled_twice() {
        check("default: disk; disk: dep:x", "-, disk");
    }

    #[test]
    fn a_part_of_features_is_not_compiled_alone() {
        check("a: __p; b: __p; __p", "-, a, b, __p+a+b");
    }

    #[test]
    fn a_feature_that_brings_all_others_is_all_of_them() {
        check("a: b; b", "-, a, b");
    }
}

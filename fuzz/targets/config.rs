//! Configuration out of arbitrary TOML: a report or a configuration, and what is explained loads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ultra_perf::config::{Config, ConfigLoader, Machine};

fuzz_target!(|text: &str| {
    match loader().toml("fuzz.toml", text).load() {
        Err(error) => {
            assert!(!error.problems().is_empty(), "refused without a reason");
            assert!(!error.to_string().is_empty());
        }
        Ok(config) => assert_loads_back(&config),
    }
});

/// The same machine for every input.
fn loader() -> ConfigLoader {
    ConfigLoader::new().machine(Machine {
        memory_bytes: 8 << 30,
        cores: 4,
        cache_dir: Some("/var/cache".into()),
    })
}

fn assert_loads_back(config: &Config) {
    let explanation = config.explain();
    let mut again = loader();
    for row in explanation.settings() {
        assert!(row.valid, "{} loaded and is not valid", row.key);
        // What hides a secret cannot bring it back.
        if !row.value.contains("***") {
            again = again.set(row.key, row.value.clone(), "the explanation");
        }
    }
    let again = again.load().expect("what is explained is valid");
    for (row, back) in explanation.settings().iter().zip(again.explain().settings()) {
        assert_eq!(row.key, back.key);
        assert!(row.value.contains("***") || row.value == back.value, "{row:?} became {back:?}");
    }
}

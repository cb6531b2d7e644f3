//! The project's binary, for suites that measure it as a process.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Builds the binary `ultra-perf` in the release profile and returns where it is.
///
/// # Errors
///
/// Cargo cannot be started, or the binary cannot be built; cargo's words go to standard error.
pub fn build_ultra_perf() -> io::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--package", "ultra-perf-cli"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .stderr(Stdio::inherit())
        .output()?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = messages.lines().filter_map(executable).next_back();
    executable
        .filter(|_| output.status.success())
        .ok_or_else(|| io::Error::other("the binary ultra-perf was not built"))
}

/// The program that a message of cargo's tells of.
fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    Some(message.get("executable")?.as_str()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_the_messages() {
        let message = r#"{"reason":"compiler-artifact","executable":"/x/release/ultra-perf"}"#;
        assert_eq!(executable(message), Some("/x/release/ultra-perf".into()));
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null}"#), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable("not JSON"), None);
    }
}

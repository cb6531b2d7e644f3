//! Bytes that claim to be a chunk of the history: it is read or refused, and never panics.
//!
//! A checksum keeps damage away from the reader, so it is left out here: what is behind it has to stand
//! bytes that were made on purpose. What is read is written again and must then read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = monitor::history::try_decode(input);
});

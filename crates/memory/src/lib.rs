//! Who uses my memory, how do I reuse it, and how do I get it back.

#![deny(unsafe_code)]

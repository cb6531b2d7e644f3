//! The memory tier against models: sixteen threads that do everything at once (`threads`), and one
//! thread whose every step is accounted for (`steps`).

mod steps;
mod threads;
mod value;
#[path = "../support/watchdog.rs"]
mod watchdog;

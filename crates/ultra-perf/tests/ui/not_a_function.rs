//! Attributes on what is no function with a body.
use ultra_perf::{cached, monitored};

#[cached]
struct User;

trait Load {
    #[monitored]
    fn load(&self);
}

fn main() {}

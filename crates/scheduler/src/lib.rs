//! Order ahead of tokio and rayon: priorities that hold under overload, with bounds and figures.

#![forbid(unsafe_code)]

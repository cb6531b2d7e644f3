//! Advice goes back to where it came from: an applied recommendation is a change like any other.

use monitor::advice::{Actuator, ActuatorError};
use serde_json::Value;

use crate::watch::Itself;

/// By this name advice changes settings.
const BY: &str = "advice";

impl Actuator for Itself {
    fn apply(&self, path: &str, value: &Value) -> Result<(), ActuatorError> {
        let perf = self.get().ok_or_else(|| ActuatorError("the handle is gone".to_owned()))?;
        let applied = perf.apply([(path, value.clone())], BY);
        applied.map(drop).map_err(|error| ActuatorError(error.to_string()))
    }
}

//! The effective configuration, told key by key with the origin of each value.

use std::{collections::BTreeMap, fmt};

use serde::{Serialize, ser::SerializeStruct as _};

use super::{Config, Effect, Origin};

/// Lists every key with its effective value and origin, without secrets.
///
/// `Display` is an aligned table, `Serialize` an object with `settings` and `notes`.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    settings: Vec<Explained>,
    notes: Vec<Note>,
}

/// Tells one key's effective value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explained {
    /// The key.
    pub key: String,
    /// The value as text: what the environment or the command line would have to say.
    pub value: String,
    /// Where the value came from.
    pub origin: Origin,
    /// Whether the value is one that the key may have.
    pub valid: bool,
    /// What it takes for another value to count.
    pub effect: Effect,
}

/// Remarks on something that is no problem, such as a value that was lowered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Note {
    /// The key.
    pub key: &'static str,
    /// The remark.
    pub message: String,
    /// What it is about.
    pub origin: Origin,
}

impl Explanation {
    /// Explains `config`; for the keys in `invalid`, shows what was given instead.
    pub(super) fn of(config: &Config, invalid: &BTreeMap<String, String>) -> Self {
        let mut settings = Vec::new();
        config.show(&mut |path, key, value| {
            let given = invalid.get(&path);
            settings.push(Explained {
                value: given.cloned().unwrap_or(value),
                origin: config.origins.get(&path).unwrap_or(&Origin::Default).clone(),
                valid: given.is_none(),
                effect: key.effect,
                key: path,
            });
        });
        Self { settings, notes: config.notes.clone() }
    }

    /// Returns the keys with their values, in the order of the reference.
    #[must_use]
    pub fn settings(&self) -> &[Explained] {
        &self.settings
    }

    /// Returns what is told of `key`, if it is there.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Explained> {
        self.settings.iter().find(|row| row.key == key)
    }

    /// Returns the remarks.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |of: fn(&Explained) -> &str| {
            self.settings.iter().map(|row| of(row).chars().count()).max().unwrap_or(0)
        };
        let keys = width(|row| &row.key);
        // One long path must not push every origin off the screen.
        let values = width(|row| &row.value).min(36);
        for Explained { key, value, origin, valid, .. } in &self.settings {
            write!(f, "{key:keys$}  {value:values$}  {origin}")?;
            writeln!(f, "{}", if *valid { "" } else { "  (invalid)" })?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (from {})", self.key, self.message, self.origin)
    }
}

impl Serialize for Explained {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("Explained", 5)?;
        row.serialize_field("key", &self.key)?;
        row.serialize_field("value", &self.value)?;
        row.serialize_field("origin", &self.origin.to_string())?;
        row.serialize_field("valid", &self.valid)?;
        row.serialize_field("effect", &self.effect)?;
        row.end()
    }
}

impl Serialize for Note {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut note = serializer.serialize_struct("Note", 3)?;
        note.serialize_field("key", self.key)?;
        note.serialize_field("message", &self.message)?;
        note.serialize_field("origin", &self.origin.to_string())?;
        note.end()
    }
}

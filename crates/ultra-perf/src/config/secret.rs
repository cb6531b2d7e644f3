//! Encryption keys: which there are, and where their bytes are kept.
//!
//! A key is written as `ID=SOURCE`. The source is the name of a variable or the path of a file, so
//! that no secret has to stand in a configuration; or it is the key itself, which is never shown again.
//! What a source holds is 32 bytes: as 64 hexadecimal digits, in base64, or, in a file, as they are.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::setting::{KeyType, Raw};

const KEY_BYTES: usize = 32;
/// The most keys of a list.
const KEYS_MAX: usize = 64;
/// More than any form of a key has, with white space around it.
const FILE_BYTES_MAX: u64 = 1 << 10;

/// Lists encryption keys and where their bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySources(Vec<KeySource>);

impl KeySources {
    pub(super) fn iter(&self) -> impl Iterator<Item = &KeySource> {
        self.0.iter()
    }

    /// Returns the numbers of the keys, in the order in which they are written.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|key| key.id)
    }
}

/// A key and where its bytes are.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct KeySource {
    pub(super) id: u32,
    place: Place,
}

#[derive(Clone, PartialEq, Eq)]
enum Place {
    Env(String),
    File(PathBuf),
    Hex([u8; KEY_BYTES]),
    Base64([u8; KEY_BYTES]),
}

/// Shows where a key is, and never what it is.
impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.id)?;
        match &self.place {
            Place::Env(name) => write!(f, "env:{name}"),
            Place::File(path) => write!(f, "file:{}", path.display()),
            Place::Hex(_) => f.write_str("hex:***"),
            Place::Base64(_) => f.write_str("base64:***"),
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl KeySource {
    fn parse(text: &str) -> Option<Self> {
        let (id, place) = text.trim().split_once('=')?;
        let place = match place.split_once(':')? {
            ("env", name) if is_name(name) => Place::Env(name.to_owned()),
            ("file", path) if !path.is_empty() && !path.contains('\0') => Place::File(path.into()),
            ("hex", text) => Place::Hex(hex(text.as_bytes())?),
            ("base64", text) => Place::Base64(base64(text.as_bytes())?),
            _ => return None,
        };
        Some(Self { id: id.parse().ok()?, place })
    }

    /// Fetches the bytes; the error says what is wrong with them and what would be right.
    pub(super) fn resolve(
        &self,
        env: &BTreeMap<String, String>,
    ) -> Result<[u8; KEY_BYTES], String> {
        let form = "32 random bytes as 64 hexadecimal digits or in base64";
        let key = match &self.place {
            Place::Hex(key) | Place::Base64(key) => *key,
            Place::Env(name) => {
                let text = env.get(name).filter(|text| !text.is_empty());
                let text = text.ok_or_else(|| {
                    format!("must name a variable that holds {form}; {name} is not set")
                })?;
                key_of(text.as_bytes())
                    .ok_or_else(|| format!("{name} must hold {form}, and holds something else"))?
            }
            Place::File(path) => {
                let path_shown = path.display();
                let bytes = read(path).map_err(|error| {
                    let kind = error.kind();
                    format!("must name a file that holds {form}; {path_shown}: {kind}")
                })?;
                let raw = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).ok();
                raw.or_else(|| key_of(&bytes)).ok_or_else(|| {
                    format!(
                        "{path_shown} must hold {form} or as they are, and holds something else"
                    )
                })?
            }
        };
        if key == [0; KEY_BYTES] {
            return Err("must be random bytes, and is all zeros".to_owned());
        }
        Ok(key)
    }
}

/// Says where the one key is that signs something: a source as of [`KeySources`], without a number.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(KeySource);

impl SigningKey {
    /// Fetches the bytes; the error says what is wrong with them and what would be right.
    pub(super) fn resolve(&self, env: &BTreeMap<String, String>) -> Result<Secret, String> {
        self.0.resolve(env).map(Secret)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

impl KeyType for SigningKey {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        json!({ "type": "string", "pattern": "^\\s*(env|file|hex|base64):." })
    }

    fn kind() -> String {
        "a key such as \"env:STICKY_KEY\" or \"file:/run/secrets/sticky-key\"".to_owned()
    }

    fn label() -> String {
        "key".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let (Raw::Text(text) | Raw::String(text)) = raw else {
            return Err(format!("must be {}", Self::kind()));
        };
        let source = KeySource::parse(&format!("0={}", text.trim()));
        source.map(Self).ok_or_else(|| format!("must be {}", Self::kind()))
    }

    fn show(&self) -> String {
        self.0.to_string().replacen("0=", "", 1)
    }

    fn redact(text: &str) -> String {
        match KeySource::parse(&format!("0={}", text.trim())) {
            Some(source) => Self(source).show(),
            None if text.starts_with("env:") || text.starts_with("file:") => text.to_owned(),
            None => "***".to_owned(),
        }
    }
}

/// Holds 32 secret bytes and never prints them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; KEY_BYTES]);

impl Secret {
    /// Returns the bytes, for what signs with them.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A key in either of the forms that are text.
fn key_of(text: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let text = text.trim_ascii();
    hex(text).or_else(|| base64(text))
}

fn hex(text: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let digits: Option<Vec<u8>> =
        text.iter().map(|b| char::from(*b).to_digit(16).map(|digit| digit as u8)).collect();
    let bytes: Vec<u8> =
        digits?.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)).collect();
    if text.len() == 2 * KEY_BYTES { bytes.try_into().ok() } else { None }
}

/// Base64 of RFC 4648 in either alphabet, with or without the padding.
fn base64(text: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let text = text.strip_suffix(b"=").unwrap_or(text);
    let mut bytes = Vec::with_capacity(KEY_BYTES + 1);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xFFF;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    // What is left of the last digit is padding, and zero.
    let is_whole = bits & ((1 << count) - 1) == 0 && count < 6;
    bytes.try_into().ok().filter(|_| is_whole)
}

impl KeyType for KeySources {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        let one =
            json!({ "type": "string", "pattern": "^\\s*[0-9]{1,10}=(env|file|hex|base64):." });
        json!({ "type": "array", "items": one, "minItems": 1, "maxItems": KEYS_MAX })
    }

    fn kind() -> String {
        "a list of keys by number, such as [\"1=env:CACHE_KEY\"] or \
         [\"2=file:/run/secrets/cache-key\"]"
            .to_owned()
    }

    fn label() -> String {
        "list".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let refusal = || format!("must be {}", Self::kind());
        let sources: Option<Vec<_>> = match raw {
            Raw::List(items) => items.iter().map(|item| KeySource::parse(item)).collect(),
            Raw::Text(text) => text.split(',').map(KeySource::parse).collect(),
            _ => None,
        };
        let sources = sources.filter(|sources| !sources.is_empty()).ok_or_else(refusal)?;
        let mut ids: Vec<_> = sources.iter().map(|source| source.id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                Err(format!("must give each key a number of its own; {} comes twice", pair[0]))
            }
            None if ids.len() > KEYS_MAX => Err(format!("must be {KEYS_MAX} keys at most")),
            None => Ok(Self(sources)),
        }
    }

    fn show(&self) -> String {
        let shown: Vec<_> = self.0.iter().map(KeySource::to_string).collect();
        shown.join(",")
    }

    fn redact(text: &str) -> String {
        let shown = |item: &str| match KeySource::parse(item) {
            Some(source) => source.to_string(),
            // A reference that is only spelled wrong helps to see; anything else may be a key.
            None => match item.split_once('=').and_then(|(id, place)| {
                let harmless = place.starts_with("env:") || place.starts_with("file:");
                (harmless && id.len() <= 10).then_some(item)
            }) {
                Some(item) => item.to_owned(),
                None => "***".to_owned(),
            },
        };
        text.split(',').map(shown).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn counted() -> [u8; 32] {
        std::array::from_fn(|at| at as u8)
    }

    fn read(text: &str) -> Result<KeySources, String> {
        KeySources::read(&Raw::Text(text.to_owned()))
    }

    #[test]
    fn a_key_is_read_in_every_form() {
        for text in [HEX, &HEX.to_uppercase(), BASE64, BASE64.trim_end_matches('=')] {
            assert_eq!(key_of(text.as_bytes()), Some(counted()), "{text}");
            assert_eq!(key_of(format!(" {text}\n").as_bytes()), Some(counted()));
        }
        let other = [0xFB; 32];
        assert_eq!(key_of(b"+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s="), Some(other));
        assert_eq!(key_of(b"-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s"), Some(other));
        for wrong in [
            &HEX[1..],
            &BASE64[1..],
            "",
            "=",
            "AAEC",
            &format!("{HEX}00"),
            &BASE64.replace("8=", "9="),
        ] {
            assert_eq!(key_of(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn sources_are_read_and_shown_without_what_is_secret() {
        let text = format!("1=env:CACHE_KEY, 2=file:/run/k,3=hex:{HEX},4=base64:{BASE64}");
        let sources = read(&text).unwrap();
        assert_eq!(sources.ids().collect::<Vec<_>>(), [1, 2, 3, 4]);
        let shown = "1=env:CACHE_KEY,2=file:/run/k,3=hex:***,4=base64:***";
        assert_eq!(sources.show(), shown);
        assert_eq!(KeySources::redact(&text), shown);
        assert!(!format!("{sources:?}").contains(&HEX[..8]));
        for (text, shown) in [(HEX, "***"), ("1=enf:X", "***"), ("1=env:MY KEY", "1=env:MY KEY")] {
            assert_eq!(KeySources::redact(text), shown);
        }
        for wrong in
            ["", "1", "1=", "1=env:", "x=env:A", "1=hex:00", "1=file:", "-1=env:A", "1=env:A;B"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read("7=env:A,7=env:B").unwrap_err().contains("7 comes twice"));
        assert!(KeySources::read(&Raw::List(vec![])).is_err());
    }

    #[test]
    fn a_signing_key_has_no_number_and_is_not_shown() {
        let key = |text: &str| SigningKey::read(&Raw::Text(text.to_owned()));
        let direct = key(&format!("hex:{HEX}")).unwrap();
        assert_eq!(direct.resolve(&BTreeMap::new()).map(|it| *it.expose()), Ok(counted()));
        assert_eq!(format!("{direct:?} {:?}", Secret(counted())), "hex:*** Secret(***)");
        assert_eq!(key("env:STICKY").unwrap().show(), "env:STICKY");
        for (wrong, shown) in [(HEX, "***"), ("1=env:A", "***"), ("env:A B", "env:A B")] {
            assert!(key(wrong).is_err(), "{wrong}");
            assert_eq!(SigningKey::redact(wrong), shown);
        }
    }

    #[test]
    fn a_reference_is_followed_and_what_is_wrong_with_it_is_told_without_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        let env = [("GOOD", HEX), ("BAD", "hunter2"), ("NONE", "")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let resolve = |text: &str| read(text).unwrap().0[0].resolve(&env);
        assert_eq!(resolve("1=env:GOOD"), Ok(counted()));
        let path = format!("1=file:{}", file.display());
        for (bytes, expected) in [
            (HEX.as_bytes(), Some(counted())),
            (format!("{BASE64}\n").as_bytes(), Some(counted())),
            (&[7; 32], Some([7; 32])),
            (&[7; 33], None),
            (&[b'a'; 5_000], None),
        ] {
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(resolve(&path).ok(), expected);
        }
        for (text, says) in [
            ("1=env:BAD", "BAD must hold 32 random bytes as 64 hexadecimal digits"),
            ("1=env:NONE", "NONE is not set"),
            ("1=env:MISSING", "MISSING is not set"),
            ("1=file:/nowhere/at/all", "/nowhere/at/all: entity not found"),
            (&format!("1=hex:{}", "0".repeat(64)), "all zeros"),
        ] {
            let told = resolve(text).unwrap_err();
            assert!(told.contains(says) && !told.contains("hunter2"), "{told}");
        }
    }
}

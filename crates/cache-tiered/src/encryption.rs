//! Encryption of what the tiers below memory keep.
//!
//! XChaCha20-Poly1305 of the RustCrypto crates: its nonces have 192 bits, so random ones may be used
//! for any number of values under one key, where the 96 bits of AES-GCM or of plain ChaCha20-Poly1305
//! end at 2^32 values. It needs no hardware support to be constant in time.
//!
//! The header of the envelope, the name of the cache and the key of the entry are authenticated with
//! every value, so whoever can write to Redis or to the disk cannot put one entry in the place of
//! another, nor lengthen its life, nor change its schema. What they can do is delete an entry, or put
//! back an older one of the same key whose expiry has not come. Values are compressed before they are
//! encrypted: their length tells something about what is in them.

use std::fmt;
use std::sync::Arc;

use chacha20poly1305::aead::Generate;
use chacha20poly1305::{AeadInOut, KeyInit, Tag, XChaCha20Poly1305, XNonce};

use crate::error::Problem;

/// Bytes of a nonce.
pub(crate) const NONCE: usize = 24;
/// Bytes of an authentication tag.
pub(crate) const TAG: usize = 16;
/// The most keys that a cache reads with.
const KEYS_MAX: usize = 64;

/// The keys of a cache whose lower tiers are encrypted; one writes, all of them read.
///
/// To change keys, make a new one active and keep the old ones until what they wrote has expired. An
/// entry under a key that is not here is a miss. Keys are wiped from memory when the last clone is
/// dropped, and `Debug` shows their numbers only.
///
/// # Examples
///
/// ```
/// use cache_tiered::EncryptionKeys;
///
/// let (old, new) = ([1; 32], [2; 32]); // from a secret store, 32 random bytes each
/// let keys = EncryptionKeys::new(3, &new).with_old(1, &old);
/// assert_eq!(format!("{keys:?}"), "EncryptionKeys { active: 3, ids: [1, 3] }");
/// ```
#[derive(Clone)]
pub struct EncryptionKeys {
    active: u32,
    /// The active one is the first.
    ciphers: Vec<(u32, Arc<XChaCha20Poly1305>)>,
    /// A key is all zeros: somebody forgot to fill a buffer.
    has_blank: bool,
}

impl EncryptionKeys {
    /// Takes the key that writes; its number stands in every envelope and must never name another key.
    #[must_use]
    pub fn new(id: u32, key: &[u8; 32]) -> Self {
        Self { active: id, ciphers: Vec::new(), has_blank: false }.with_old(id, key)
    }

    /// Adds a key that only reads.
    #[must_use]
    pub fn with_old(mut self, id: u32, key: &[u8; 32]) -> Self {
        self.has_blank |= *key == [0; 32];
        self.ciphers.push((id, Arc::new(XChaCha20Poly1305::new(key.into()))));
        self
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let ids = self.ids();
        let mut problems = Vec::new();
        let mut report = |expected: &str| {
            problems.push(Problem::new("encryption.keys", format!("{ids:?}"), expected));
        };
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            report("must give each key a number of its own");
        }
        if ids.len() > KEYS_MAX {
            report("must be 64 keys at most");
        }
        if self.has_blank {
            report("must be random keys, and one is all zeros");
        }
        problems
    }

    fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.ciphers.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}

impl fmt::Debug for EncryptionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptionKeys")
            .field("active", &self.active)
            .field("ids", &self.ids())
            .finish()
    }
}

/// The keys of one cache, bound to its name.
#[derive(Debug)]
pub(crate) struct Encryption {
    keys: EncryptionKeys,
    name: Vec<u8>,
}

impl Encryption {
    pub(crate) fn new(keys: EncryptionKeys, cache: &str) -> Self {
        Self { keys, name: cache.as_bytes().to_vec() }
    }

    /// The key that writes.
    pub(crate) fn active(&self) -> u32 {
        self.keys.active
    }

    /// A number that nobody draws twice; `None` when the system has no random numbers.
    pub(crate) fn unique(&self) -> Option<[u8; NONCE]> {
        Some(XNonce::try_generate().ok()?.into())
    }

    pub(crate) fn knows(&self, id: u32) -> bool {
        self.cipher(id).is_some()
    }

    /// Encrypts in place with the active key. `None` when the system has no random numbers, or the
    /// value is longer than the cipher takes.
    pub(crate) fn encrypt(
        &self,
        header: &[u8],
        key: &[u8],
        payload: &mut [u8],
    ) -> Option<([u8; NONCE], [u8; TAG])> {
        let nonce = XNonce::try_generate().ok()?;
        let bound = self.bound(header, key);
        let cipher = self.cipher(self.keys.active)?;
        let tag = cipher.encrypt_inout_detached(&nonce, &bound, payload.into()).ok()?;
        Some((nonce.into(), tag.into()))
    }

    /// Decrypts in place; `None` when anything is not as it was written.
    pub(crate) fn decrypt(
        &self,
        id: u32,
        header: &[u8],
        key: &[u8],
        nonce: &[u8; NONCE],
        payload: &mut [u8],
        tag: &[u8; TAG],
    ) -> Option<()> {
        let bound = self.bound(header, key);
        let (nonce, tag) = (XNonce::from(*nonce), Tag::from(*tag));
        self.cipher(id)?.decrypt_inout_detached(&nonce, &bound, payload.into(), &tag).ok()
    }

    fn cipher(&self, id: u32) -> Option<&XChaCha20Poly1305> {
        self.keys.ciphers.iter().find(|(known, _)| *known == id).map(|(_, cipher)| &**cipher)
    }

    /// What is authenticated beside the value. Headers of one kind have one length and a beginning of
    /// their own, so this reads in one way only.
    fn bound(&self, header: &[u8], key: &[u8]) -> Vec<u8> {
        let length = (self.name.len() as u32).to_le_bytes();
        [header, &length, &self.name, key].concat()
    }
}
